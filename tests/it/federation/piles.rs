//! A server that lies by numbers: what it has is deep, wide or without an end. It costs this server
//! little memory and time, and the room goes on. `CHATD_PILE` is how much there is of it.

use std::time::{Duration, Instant};

use chatd_kit::{
    Other,
    other::{Pdu, Reply, Room},
};
use serde_json::{Value, json};

use super::{acts::until_event, hostile::Stage};

const MISSING: &str = "/_matrix/federation/v1/get_missing_events/";
const STATE_IDS: &str = "/_matrix/federation/v1/state_ids/";
const STATE: &str = "/_matrix/federation/v1/state/";
const EVENT_AUTH: &str = "/_matrix/federation/v1/event_auth/";

/// How much of something; less in the suite than by hand.
fn pile(usual: usize) -> usize {
    std::env::var("CHATD_PILE").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Time and memory since something began.
struct Cost {
    start: Instant,
    before_mib: u64,
}

impl Cost {
    fn start(stage: &mut Stage) -> Self {
        Self { start: Instant::now(), before_mib: stage.memory_mib() }
    }

    /// Says what it was until now.
    fn say(&self, stage: &mut Stage, what: &str) {
        let grown = stage.memory_mib().saturating_sub(self.before_mib);
        chatd_kit::say(format!("{what}: {:?}, {grown} MiB", self.start.elapsed()));
    }

    /// Panics if it was more than this.
    fn is_within(&self, stage: &mut Stage, what: &str, within: Duration, most_mib: u64) {
        let (time, grown) =
            (self.start.elapsed(), stage.memory_mib().saturating_sub(self.before_mib));
        chatd_kit::say(format!("{what}: {time:?}, {grown} MiB"));
        assert!(time < within, "{what}: {time:?}");
        assert!(grown < most_mib, "{what}: {grown} MiB");
    }
}

/// Power levels one after the other, each allowed by the one before, and by `first`.
fn chain_of_levels(room: &Room, sender: &str, first: &[String], count: usize) -> Vec<Pdu> {
    let mut chain: Vec<Pdu> = Vec::with_capacity(count);
    for number in 0..count {
        let levels = json!({"users": {sender: 100}, "events": {"kit.thing": number % 100}});
        let mut auth = first.to_vec();
        auth.extend(chain.last().map(|last| last.id.clone()));
        let draft = room.draft(sender, "m.room.power_levels", levels).state("");
        chain.push(draft.after(&auth).allowed_by(&auth).make());
    }
    chain
}

fn current_id(room: &Room, kind: &str, key: &str) -> String {
    room.state(kind, key).expect("the room has it").id
}

/// What nobody but the liar has allowed, ten thousand times over.
#[tokio::test]
async fn deep_auth_chains_are_walked_and_refused() {
    let mut stage = Stage::set("10").await;
    let first = [
        current_id(&stage.room, "m.room.create", ""),
        current_id(&stage.room, "m.room.member", &stage.mallory),
    ];
    let chain = chain_of_levels(&stage.room, &stage.mallory, &first, pile(10_000));
    let events: Vec<&Value> = chain.iter().map(|pdu| &pdu.json).collect();
    stage.other.always("GET", EVENT_AUTH, Reply::json(&json!({"auth_chain": events})));
    let mut auth = first.to_vec();
    auth.push(chain.last().expect("a chain").id.clone());
    let lie = stage.text("allowed by ten thousand").allowed_by(&auth).make();
    let cost = Cost::start(&mut stage);
    stage.is_refused(&lie, "a deep auth chain").await;
    assert!(!stage.other.seen("GET", EVENT_AUTH).is_empty(), "it has been asked for");
    cost.is_within(&mut stage, "a deep auth chain", Duration::from_secs(120), 400);
}

/// The same is true: levels have been changed that often. The room can be joined.
#[tokio::test]
async fn rooms_with_deep_auth_chains_can_be_joined() {
    let mut stage = Stage::set("10").await;
    let deep = stage.other.create_room("10", &stage.mallory);
    let first = [
        current_id(&deep, "m.room.create", ""),
        current_id(&deep, "m.room.member", &stage.mallory),
    ];
    let chain = chain_of_levels(&deep, &stage.mallory, &first, pile(10_000));
    let mut auth = first.to_vec();
    auth.push(chain.last().expect("a chain").id.clone());
    let earlier = deep.state("m.room.power_levels", "").expect("the room has levels");
    let levels = json!({"users": {&stage.mallory: 100}});
    let last = deep.draft(&stage.mallory, "m.room.power_levels", levels).state("");
    last.allowed_by(&auth).add();
    let events = |pdus: &[Pdu]| pdus.iter().map(|pdu| pdu.json.clone()).collect::<Vec<_>>();
    let state: Vec<Pdu> = deep.current().values().filter_map(|id| deep.event(id)).collect();
    let mut told = events(&chain);
    told.extend(events(&state));
    told.push(earlier.json);
    let answer = json!({
        "origin": stage.other.name(), "members_omitted": false,
        "state": events(&state), "auth_chain": told,
    });
    stage.other.always("PUT", "/_matrix/federation/v2/send_join/", Reply::json(&answer));
    let cost = Cost::start(&mut stage);
    stage.alice.join_via(&deep.id(), &stage.other.name()).await.ok();
    cost.is_within(&mut stage, "a join with a deep auth chain", Duration::from_secs(120), 400);
    let text = deep.say(&stage.mallory, "you are in");
    stage.other.deliver(&stage.peer, std::slice::from_ref(&text)).await;
    until_event(&stage.alice, &deep.id(), &text.id).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn piles_of_forks_are_drawn_together() {
    let mut stage = Stage::set("10").await;
    let trunk = stage.room.heads();
    let count = pile(600);
    let cost = Cost::start(&mut stage);
    for batch in 0..count / 50 {
        let fork = |n| stage.text(&format!("fork {batch} {n}")).after(&trunk).make();
        let forks: Vec<Pdu> = (0..50).map(fork).collect();
        stage.other.deliver(&stage.peer, &forks).await;
        if batch % 100 == 99 {
            cost.say(&mut stage, &format!("{} forks", (batch + 1) * 50));
        }
    }
    stage.alice.send(&stage.id, "after all of them").await;
    let is_it = |pdu: &Value| pdu["content"]["body"] == "after all of them";
    let sent = stage.other.until_pdu("a text", is_it).await;
    let prev = sent["prev_events"].as_array().map_or(0, Vec::len);
    assert!((1..=20).contains(&prev), "it has {prev} predecessors");
    stage.goes_on().await;
    let within =
        Duration::from_secs(60) + Duration::from_millis(20) * u32::try_from(count).expect("few");
    cost.is_within(&mut stage, &format!("{count} forks"), within, 400);
}

/// Each event follows twenty that nobody has, and these are followed by no more.
#[tokio::test]
async fn events_after_piles_of_unknown_ones_are_contained() {
    let mut stage = Stage::set("10").await;
    for (method, route) in [("POST", MISSING), ("GET", STATE_IDS), ("GET", STATE)] {
        stage.other.always(method, route, Reply::refused(404, "M_NOT_FOUND"));
    }
    let cost = Cost::start(&mut stage);
    let made_up = |n: usize| format!("${:A>43}", n);
    for batch in 0..pile(1_000) / 50 {
        let events: Vec<Pdu> = (0..50)
            .map(|n| {
                let first = (batch * 50 + n) * 20;
                let prev: Vec<String> = (first..first + 20).map(made_up).collect();
                stage.text("after twenty").after(&prev).make()
            })
            .collect();
        let answer = stage.other.send(&stage.peer, &events, &[]).await;
        answer.ok();
    }
    stage.goes_on().await;
    chatd_kit::eventually("some are given up", || async {
        let log = stage.server.log();
        if log.contains("an event is given up") { Ok(()) } else { Err("none yet".to_owned()) }
    })
    .await;
    let asked = stage.other.seen("", "").len();
    assert!(asked < 3_000, "{asked} requests");
    cost.is_within(&mut stage, "events after unknown ones", Duration::from_secs(120), 400);
}

/// A state of very many events, none of which exists.
#[tokio::test]
async fn states_of_made_up_events_are_not_fetched() {
    let mut stage = Stage::set("10").await;
    stage.other.always("POST", MISSING, Reply::json(&json!({"events": []})));
    stage.other.always("GET", STATE, Reply::endless("{\"pdus\":[", "{},".repeat(20_000)));
    for count in [60_000, 250_000] {
        let ids: Vec<String> = (0..count).map(|n| format!("${n:A>43}")).collect();
        let answer = json!({"pdu_ids": ids, "auth_chain_ids": []});
        stage.other.always("GET", STATE_IDS, Reply::json(&answer));
        let lie = stage.text("after a large state").after(&["$nobody-has-this"]).make();
        let cost = Cost::start(&mut stage);
        stage.is_refused(&lie, "a state of made up events").await;
        cost.is_within(&mut stage, &format!("{count} ids"), Duration::from_secs(60), 400);
    }
    assert!(stage.other.seen("GET", STATE).is_empty(), "nobody asks for that much");
    let why = "unknown events";
    assert!(stage.server.log().contains(why), "the log says why");
}

/// Members that nobody has let in, with the state that a join gives.
#[tokio::test]
async fn joins_that_tell_of_too_much_cost_little() {
    let mut stage = Stage::set("10").await;
    let far = Other::start().await;
    let room = far.create_room("10", &far.user("bob"));
    let (told, name) = (room.clone(), far.name());
    far.on("PUT", "/_matrix/federation/v2/send_join/", move |_| {
        let state = told.current();
        let mut events: Vec<Value> =
            state.values().filter_map(|id| Some(told.event(id)?.json)).collect();
        let eve = format!("@eve:{name}");
        let one = told.draft(&eve, "m.room.member", json!({"membership": "join"}));
        let one = one.state(&eve).make().json;
        for number in 0..30_000 {
            let mut forged = one.clone();
            forged["state_key"] = format!("@eve{number}:{name}").into();
            events.push(forged);
        }
        Some(Reply::json(&json!({
            "origin": name, "state": events, "auth_chain": events, "members_omitted": false,
        })))
    });
    let cost = Cost::start(&mut stage);
    // What nobody has signed is left out, and the rest is a room.
    stage.alice.join_via(&room.id(), &far.name()).await.ok();
    let path = chatd_kit::path("/rooms/{}/joined_members", &[&room.id()]);
    let members = stage.alice.get(path).await;
    let count = members.ok()["joined"].as_object().map_or(0, |joined| joined.len());
    assert_eq!(count, 2, "members of whom somebody has signed something");
    cost.is_within(&mut stage, "a join with forged members", Duration::from_secs(120), 900);
    stage.goes_on().await;
}
