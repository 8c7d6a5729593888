//! A server that lies: each lie is refused or contained, and the room goes on.

use std::time::{Duration, Instant};

use chatd_kit::{
    Answer, Other, Peer, Server, Settings, User,
    other::{Key, Pdu, Reply, Room, authorization},
    path,
};
use serde_json::{Value, json};

use super::acts::until_event;

/// A server with alice, another server with mallory, and a room of alice in which both are.
pub struct Stage {
    pub server: Server,
    pub peer: Peer,
    pub other: Other,
    pub alice: User,
    pub mallory: String,
    pub id: String,
    pub room: Room,
}

impl Stage {
    pub async fn set(version: &str) -> Self {
        let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
        let (peer, other) = (server.peer(), Other::start().await);
        let alice = server.user("alice").await;
        let id = alice.create_room().preset("public_chat").version(version).await;
        let mallory = other.user("mallory");
        let room = other.join(&peer, &id, &mallory).await;
        Self { server, peer, other, alice, mallory, id, room }
    }

    pub fn text(&self, text: &str) -> chatd_kit::other::Draft {
        let content = json!({"msgtype": "m.text", "body": text});
        self.room.draft(&self.mallory, "m.room.message", content)
    }

    /// Sends one event; what the server says of it.
    pub async fn send(&self, pdu: &Pdu) -> Value {
        let answer = self.other.send(&self.peer, std::slice::from_ref(pdu), &[]).await;
        answer.ok()["pdus"][&pdu.id].clone()
    }

    /// Sends one event that nobody should believe, and makes sure that alice never sees it, and that
    /// the log tells of its end.
    pub async fn is_refused(&self, pdu: &Pdu, why: &str) {
        let before = self.server.log().len();
        let result = self.send(pdu).await;
        self.goes_on().await;
        self.until_told(before, pdu, why).await;
        let seen = self.alice.event(&self.id, &pdu.id).await;
        assert_eq!(seen.status, 404, "{why}: {result}: {seen}");
    }

    /// Both sides are heard by each other.
    pub async fn goes_on(&self) {
        let here = self.text("the room goes on").add();
        self.other.deliver(&self.peer, std::slice::from_ref(&here)).await;
        until_event(&self.alice, &self.id, &here.id).await;
        let there = self.alice.send(&self.id, "it does").await;
        let body = |pdu: &Value| self.room.event(&there).is_some_and(|known| known.json == *pdu);
        self.other.until_pdu("a text of alice", body).await;
    }

    /// Waits until the log says that the event is refused, or that something has not the form of one,
    /// which has no id.
    async fn until_told(&self, before: usize, pdu: &Pdu, what: &str) {
        chatd_kit::eventually(&format!("the log tells about {what}"), || async {
            let log = self.server.log();
            let ends = ["an event is refused", "an event is not allowed", "given up"];
            let is_told = |line: &str| {
                let is_end = ends.iter().any(|end| line.contains(end)) && line.contains(&pdu.id);
                is_end || line.contains("not an event") && line.contains(&self.id)
            };
            if log[before..].lines().any(is_told) { Ok(()) } else { Err(log[before..].to_owned()) }
        })
        .await;
    }

    pub fn memory_mib(&mut self) -> u64 {
        let pid = self.server.process().pid().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("KiB");
        kib / 1024
    }
}

#[tokio::test]
async fn forged_events_are_refused_or_emptied() {
    for version in ["1", "6", "11", "12"] {
        let stage = Stage::set(version).await;
        let rules = stage.room.rules();
        let change = |event: &mut Value| event["content"]["body"] = "never said".into();
        let hash = stage.text("said").make().forged(&rules, change);
        let result = stage.send(&hash).await;
        assert!(result["error"].is_null(), "a wrong hash is no reason to drop it: {result}");
        let seen = until_event(&stage.alice, &stage.id, &hash.id).await;
        assert_eq!(seen["content"], json!({}), "version {version}: {seen}");
        stage.room.take(&hash);

        let name = stage.other.name();
        let stranger = Key::generate("x_1");
        let unknown = stage.text("by an unknown key").signed_as(&name, &stranger).make();
        stage.is_refused(&unknown, "a key that the server does not have").await;
        let mut unsigned = stage.text("by nobody").make();
        unsigned.json["signatures"] = json!({});
        stage.is_refused(&unsigned, "no signature at all").await;
        let change = |event: &mut Value| event["depth"] = json!(1_000_000);
        let protected = stage.text("deep").make().forged(&rules, change);
        stage.is_refused(&protected, "a change of what is signed").await;

        let far = Other::start().await;
        let their =
            stage.room.draft(&far.user("eve"), "m.room.message", json!({"body": "I am eve"}));
        let theirs = their.signed_as(&far.name(), &far.key()).make();
        stage.is_refused(&theirs, "a sender who is not in the room").await;
        let hers = stage.room.draft(&stage.alice.id, "m.room.message", json!({"body": "alice"}));
        stage.is_refused(&hers.make(), "in the name of alice").await;
    }
}

#[tokio::test]
async fn events_that_nothing_allows_are_refused() {
    let stage = Stage::set("10").await;
    let levels = json!({"users": {&stage.mallory: 100, &stage.alice.id: 0}});
    let coup = stage.room.draft(&stage.mallory, "m.room.power_levels", levels).state("").make();
    stage.is_refused(&coup, "power for oneself").await;
    let ban = json!({"membership": "ban"});
    let ban = stage.room.draft(&stage.mallory, "m.room.member", ban).state(&stage.alice.id).make();
    stage.is_refused(&ban, "a ban without the power").await;
    let none: [&str; 0] = [];
    let bare = stage.text("allowed by nothing").allowed_by(&none).make();
    stage.is_refused(&bare, "no auth events").await;
    let made_up = ["$jgvnnAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"];
    let missing = stage.text("allowed by what nobody has").allowed_by(&made_up).make();
    stage.is_refused(&missing, "auth events that do not exist").await;
    let create = json!({"creator": stage.mallory, "room_version": "10"});
    let create = stage.room.draft(&stage.mallory, "m.room.create", create).state("");
    stage.is_refused(&create.after(&none).allowed_by(&none).make(), "a second beginning").await;
    let joined = json!({"membership": "join"});
    let eve = stage.other.user("eve");
    let join = stage.room.draft(&stage.mallory, "m.room.member", joined).state(&eve).make();
    stage.is_refused(&join, "a join for somebody else").await;
}

#[tokio::test]
async fn events_without_the_form_of_one_are_refused() {
    let stage = Stage::set("10").await;
    let length = stage.text("").make().json.to_string().len();
    let largest = stage.text(&"x".repeat(65_536 - length)).add();
    assert_eq!(largest.json.to_string().len(), 65_536);
    stage.other.deliver(&stage.peer, std::slice::from_ref(&largest)).await;
    until_event(&stage.alice, &stage.id, &largest.id).await;
    // Its predecessor has another depth now, which may have one more digit.
    let length = stage.text("").make().json.to_string().len();
    let huge = stage.text(&"x".repeat(65_537 - length)).make();
    assert_eq!(huge.json.to_string().len(), 65_537);
    stage.is_refused(&huge, "65 537 bytes").await;
    for (member, value) in [
        ("type", json!("t".repeat(256))),
        ("state_key", json!("k".repeat(256))),
        ("depth", json!(-1)),
        ("prev_events", json!([])),
        ("prev_events", json!(vec!["$x"; 21])),
        ("prev_events", json!("none")),
        ("auth_events", json!(vec!["$x"; 11])),
        ("sender", json!("mallory")),
    ] {
        let odd = stage.text("odd").with(member, value).make();
        stage.is_refused(&odd, member).await;
    }
    // Not canonical: this has no reference hash, and so no id.
    let mut float = stage.text("a fraction").make().json;
    float["content"]["number"] = json!(1.5);
    let body =
        json!({"origin": stage.other.name(), "origin_server_ts": 1, "pdus": [float, 7, null]});
    let path = "/_matrix/federation/v1/send/floats";
    let answer = ask_as_it_is(&stage, "PUT", path, &body).await;
    assert!(answer.status < 500, "{answer}");
    stage.goes_on().await;
}

/// With a signature over a body that is no canonical JSON.
async fn ask_as_it_is(stage: &Stage, method: &str, path: &str, body: &Value) -> Answer {
    let (name, key) = (stage.other.name(), stage.other.key());
    let signature = key.signature(body.to_string().as_bytes());
    let header = format!(
        "X-Matrix origin=\"{name}\",destination=\"{}\",key=\"{}\",sig=\"{signature}\"",
        stage.peer.name,
        key.id()
    );
    let request = stage.server.request(method, path).header("authorization", &header);
    request.json(body).unchecked().await
}

#[tokio::test]
async fn requests_in_the_name_of_others_are_refused() {
    let stage = Stage::set("10").await;
    let path = path("/_matrix/federation/v1/state/{}", &[&stage.id]);
    let (name, key, me) = (stage.other.name(), stage.other.key(), stage.peer.name.clone());
    let far = Other::start().await;
    let good = authorization((&name, &key), &me, "GET", &path, None);
    for (header, why) in [
        (String::new(), "nobody"),
        (authorization((&far.name(), &key), &me, "GET", &path, None), "a key of another server"),
        (authorization((&name, &far.key()), &me, "GET", &path, None), "an unknown key"),
        (authorization((&name, &key), "elsewhere.example", "GET", &path, None), "not for us"),
        (authorization((&name, &key), &me, "GET", "/other", None), "another path"),
        (good.replace("X-Matrix", "Y-Matrix"), "another scheme"),
    ] {
        let request = stage.server.request("GET", path.clone()).query("event_id", "$x");
        let request =
            if header.is_empty() { request } else { request.header("authorization", &header) };
        let answer = request.unchecked().await;
        assert!([400, 401, 403].contains(&answer.status), "{why}: {answer}");
    }
    let expired = Other::start().await;
    expired.publish(|keys| keys.valid_until_ms = 1);
    let answer = expired.get(&stage.peer, &path).await;
    assert_eq!(answer.status, 401, "keys that are not valid any more: {answer}");
    let endless = Other::start().await;
    endless.always("GET", "/_matrix/key/", Reply::endless("{\"a\":\"", "x".repeat(65_536)));
    let answer = endless.get(&stage.peer, &path).await;
    assert_eq!(answer.status, 401, "keys that never end: {answer}");
    stage.goes_on().await;
}

#[tokio::test]
async fn replays_and_disorder_change_nothing() {
    let stage = Stage::set("10").await;
    let (first, second) = (stage.text("the first").add(), stage.text("the second").add());
    // The later one comes first; what it follows is asked for.
    stage.other.deliver(&stage.peer, std::slice::from_ref(&second)).await;
    until_event(&stage.alice, &stage.id, &second.id).await;
    until_event(&stage.alice, &stage.id, &first.id).await;
    for _ in 0..3 {
        let all = [first.clone(), second.clone(), first.clone()];
        stage.other.send_as(&stage.peer, "again", &all, &[]).await.ok();
    }
    let history = stage.alice.history(&stage.id).await;
    let count = |pdu: &Pdu| history.iter().filter(|e| e["event_id"] == pdu.id.as_str()).count();
    assert_eq!((count(&first), count(&second)), (1, 1));

    let text = |n: i64| {
        json!({"edu_type": "m.direct_to_device", "content": {
            "sender": stage.mallory, "type": "kit.whisper", "message_id": "same",
            "messages": {&stage.alice.id: {"*": {"n": n}}},
        }})
    };
    let mut feed = stage.alice.feed().await;
    for n in 0..3 {
        stage.other.send(&stage.peer, &[], &[text(n)]).await.ok();
    }
    let heard = feed
        .until("a whisper", |synced| Some(synced.to_device().len()).filter(|count| *count > 0))
        .await;
    assert_eq!(heard + feed.now().await.to_device().len(), 1, "one message id is one message");
    stage.goes_on().await;
}

#[tokio::test]
async fn a_gap_without_an_end_costs_little() {
    let mut stage = Stage::set("10").await;
    let before = stage.memory_mib();
    // Whatever is asked for has one more before it.
    let endless = stage.room.clone();
    let mallory = stage.mallory.clone();
    stage.other.on("POST", "/_matrix/federation/v1/get_missing_events/", move |seen| {
        let wanted = seen.body["latest_events"][0].as_str()?.to_owned();
        let earlier = format!("$made-up-before-{}", wanted.len());
        let content = json!({"body": "x".repeat(1_000)});
        let pdus: Vec<Value> = (0..100)
            .map(|_| {
                endless
                    .draft(&mallory, "m.room.message", content.clone())
                    .after(&[&earlier])
                    .make()
                    .json
            })
            .collect();
        Some(Reply::json(&json!({"events": pdus})))
    });
    stage.other.always(
        "GET",
        "/_matrix/federation/v1/state_ids/",
        Reply::refused(404, "M_NOT_FOUND"),
    );
    stage.other.always("GET", "/_matrix/federation/v1/state/", Reply::refused(404, "M_NOT_FOUND"));
    stage.other.always("GET", "/_matrix/federation/v1/event/", Reply::refused(404, "M_NOT_FOUND"));
    let asked = stage.other.seen("", "").len();
    let deep = stage.text("very deep").after(&["$nobody-has-this"]).make();
    let start = Instant::now();
    let _ = stage.send(&deep).await;
    stage.other.behave();
    stage.goes_on().await;
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    let asked = stage.other.seen("", "").len() - asked;
    assert!(asked < 100, "{asked} requests for one event");
    let grown = stage.memory_mib().saturating_sub(before);
    assert!(grown < 200, "{grown} MiB for one event");
}

#[tokio::test]
async fn answers_without_an_end_cost_little() {
    let mut stage = Stage::set("10").await;
    let before = stage.memory_mib();
    let endless = || Reply::endless("{\"pdus\":[\"", "x".repeat(65_536));
    stage.other.always("", "/_matrix/federation/v1/get_missing_events/", endless());
    stage.other.always("", "/_matrix/federation/v1/state", endless());
    stage.other.always("", "/_matrix/federation/v1/event", endless());
    let deep = stage.text("after what never ends").after(&["$nobody-has-this"]).make();
    let start = Instant::now();
    let _ = stage.send(&deep).await;
    stage.other.behave();
    stage.goes_on().await;
    assert!(start.elapsed() < Duration::from_secs(100), "{:?}", start.elapsed());
    let grown = stage.memory_mib().saturating_sub(before);
    assert!(grown < 300, "{grown} MiB");

    let trap = stage.other.create_room("10", &stage.mallory);
    for route in ["/_matrix/federation/v2/send_join", "/_matrix/federation/v1/make_join"] {
        stage.other.always("", route, Reply::endless("{\"state\":[\"", "x".repeat(65_536)));
        let answer = stage.alice.join_via(&trap.id(), &stage.other.name()).await;
        assert!(answer.status >= 400, "{answer}");
        let grown = stage.memory_mib().saturating_sub(before);
        assert!(grown < 500, "{route}: {grown} MiB");
    }
    stage.goes_on().await;
}

#[tokio::test]
async fn circles_of_events_lead_nowhere() {
    let stage = Stage::set("1").await;
    let name = stage.other.name();
    let [one, two] = ["one", "two"].map(|word| format!("${word}:{name}"));
    let text = |id: &str, before: &str| {
        stage.text("in a circle").with("event_id", id).after(&[before]).make()
    };
    let (first, second) = (text(&one, &two), text(&two, &one));
    let events = json!({"events": [first.json, second.json]});
    stage.other.always("POST", "/_matrix/federation/v1/get_missing_events/", Reply::json(&events));
    let start = Instant::now();
    let _ = stage.other.send(&stage.peer, &[first, second], &[]).await;
    stage.goes_on().await;
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

/// PostgreSQL keeps no NUL in a text: what has one as a name must be refused before it comes there,
/// and what refers to it must not stop what is behind it.
#[tokio::test]
async fn names_that_no_table_keeps_do_no_harm() {
    let stage = Stage::set("11").await;
    let content = json!({"msgtype": "m.text", "body": "in an odd place"});
    let odd = stage.room.draft(&stage.mallory, "m.test", content.clone()).state("\0").make();
    stage.is_refused(&odd, "a state key with NUL").await;
    let odd = stage.room.draft(&stage.mallory, "m.\0", content).make();
    stage.is_refused(&odd, "a type with NUL").await;
    let odd = stage.text("after what has no name").after(&["$\0"]).make();
    stage.is_refused(&odd, "a reference with NUL").await;

    let known = stage.alice.send(&stage.id, "known").await;
    for (rel_type, parent) in [("\0", &*known), (&*"x".repeat(3_000), &*known), ("m.x", "$\0")] {
        let relates = json!({"rel_type": rel_type, "event_id": parent});
        let content = json!({"msgtype": "m.text", "body": "related", "m.relates_to": relates});
        let odd = stage.room.draft(&stage.mallory, "m.room.message", content.clone()).add();
        assert_eq!(stage.send(&odd).await, json!({}), "{rel_type:?}");
        until_event(&stage.alice, &stage.id, &odd.id).await;
        let txn = format!("related to {}", odd.id);
        stage.alice.send_event(&stage.id, "m.room.message", &txn, &content).await.ok();
    }

    // Somebody who tells a state of such names is believed in nothing else, and holds up nobody.
    let ids = json!({"pdu_ids": ["$\0"], "auth_chain_ids": []});
    stage.other.always("GET", "/_matrix/federation/v1/state_ids/", Reply::json(&ids));
    stage.other.always(
        "POST",
        "/_matrix/federation/v1/get_missing_events/",
        Reply::json(&json!({"events": []})),
    );
    let lost = stage.text("after what nobody has").after(&["$nobody-has-this"]).make();
    stage.send(&lost).await;
    stage.goes_on().await;
    chatd_kit::eventually("it is given up", || async {
        let log = stage.server.log();
        let is_told = |line: &str| line.contains(&lost.id) && line.contains("given up");
        if log.lines().any(is_told) { Ok(()) } else { Err(log) }
    })
    .await;
    stage.other.behave();

    let space = json!({"creation_content": {"type": "m.space"}, "preset": "public_chat"});
    let space = stage.alice.post("/createRoom", &space).await.string("room_id");
    let child = json!({"via": [stage.peer.name]});
    stage.alice.set_state(&space, "m.space.child", &stage.id, &child).await.ok();
    let allow = json!([{"type": "m.room_membership", "room_id": "\0"}]);
    let rules = json!({"join_rule": "restricted", "allow": allow});
    stage.alice.set_state(&stage.id, "m.room.join_rules", "", &rules).await.ok();
    let url = path("/_matrix/client/v1/rooms/{}/hierarchy", &[&space]);
    let tree = stage.alice.get(url).await;
    assert_eq!(tree.ok()["rooms"].as_array().map(Vec::len), Some(2), "{tree}");
    stage.goes_on().await;
}

#[tokio::test]
async fn nobody_joins_for_others() {
    let stage = Stage::set("10").await;
    let eve = stage.other.user("eve");
    let made = stage.other.make(&stage.peer, "join", &stage.id, &eve).await;
    let sealed = stage.other.seal(&made);
    let rules = stage.room.rules();
    let (name, key) = (stage.other.name(), stage.other.key());
    let changed = |member: &str, value: Value| {
        let mut event = sealed.json.clone();
        event[member] = value;
        event["signatures"] = json!({});
        Pdu::seal(event, &rules, &name, &key)
    };
    for (pdu, why) in [
        (changed("state_key", json!(stage.alice.id)), "for alice"),
        (changed("sender", json!(stage.alice.id)), "by alice"),
        (changed("content", json!({"membership": "ban"})), "no join"),
        (changed("type", json!("m.room.message")), "no member event"),
        (changed("room_id", json!("!elsewhere:example.org")), "another room"),
    ] {
        let answer = stage.other.send_made(&stage.peer, "join", &stage.id, &pdu).await;
        assert!((400..500).contains(&answer.status), "{why}: {answer}");
    }
    let far = stage.other.make(&stage.peer, "join", &stage.id, &stage.alice.id).await;
    assert!((400..500).contains(&far.status), "a template for somebody else's user: {far}");
    stage.goes_on().await;
}

#[tokio::test]
async fn unknown_room_versions_are_refused() {
    let stage = Stage::set("10").await;
    let path = path("/_matrix/federation/v1/make_join/{}/{}", &[&stage.id, &stage.mallory]);
    let answer = stage.other.get(&stage.peer, &format!("{path}?ver=1&ver=kit.unheard-of")).await;
    answer.refused(400, "M_INCOMPATIBLE_ROOM_VERSION");

    let strange = stage.other.create_room("10", &stage.mallory);
    let made = json!({"room_version": "kit.unheard-of", "event": {}});
    stage.other.always("GET", "/_matrix/federation/v1/make_join/", Reply::json(&made));
    let answer = stage.alice.join_via(&strange.id(), &stage.other.name()).await;
    assert!((400..=502).contains(&answer.status), "{answer}");
    stage.other.behave();

    let content = json!({"membership": "invite"});
    let invite =
        strange.draft(&stage.mallory, "m.room.member", content).state(&stage.alice.id).make();
    let body = json!({
        "room_version": "kit.unheard-of",
        "event": invite.json,
        "invite_room_state": [],
    });
    let path = chatd_kit::path("/_matrix/federation/v2/invite/{}/{}", &[&strange.id(), &invite.id]);
    let answer = stage.other.ask(&stage.peer, "PUT", &path, Some(&body)).await;
    answer.refused(400, "M_INCOMPATIBLE_ROOM_VERSION");
    stage.goes_on().await;
}

#[tokio::test]
async fn a_flood_for_unknown_rooms_is_cheap() {
    let stage = Stage::set("10").await;
    let unknown = stage.other.create_room("10", &stage.mallory);
    let texts: Vec<Pdu> = (0..50).map(|n| unknown.say(&stage.mallory, &n.to_string())).collect();
    for _ in 0..20 {
        let answer = stage.other.send(&stage.peer, &texts, &[]).await;
        assert!(answer.status < 500, "{answer}");
    }
    let asked = stage.other.seen("", "/_matrix/federation/v1/get_missing_events/").len();
    assert_eq!(asked, 0, "nothing is asked about rooms in which nobody is");
    let too_many: Vec<Pdu> = (0..51).map(|n| stage.text(&n.to_string()).make()).collect();
    let answer = stage.other.send(&stage.peer, &too_many, &[]).await;
    assert!((400..500).contains(&answer.status), "51 events: {answer}");
    stage.goes_on().await;
}
