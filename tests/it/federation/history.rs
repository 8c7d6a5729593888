//! What was said before a server came, or while it could not hear: fetched when somebody scrolls
//! back, shown to whom it may be.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chatd_kit::{
    Other, Server, Settings, Synapse, User, eventually,
    other::{Pdu, Reply, Room},
    path, scenario,
};
use futures::future::join_all;
use serde_json::{Value, json};

use super::acts::{until_event, until_member};

/// Requests for events of the past.
const BACKFILL: &str = "/_matrix/federation/v1/backfill/";

/// Requests for single events.
const EVENT: &str = "/_matrix/federation/v1/event/";
/// Longer than a server may take for an answer without being slow.
const SLOWLY: Duration = Duration::from_secs(6);

/// Nothing is told that would be a sign of life of whoever takes it.
fn still() -> Settings {
    Settings::federating().with("presence", json!({"enabled": false}))
}

/// The texts among these events, in order.
fn texts(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

/// Bob says so many things, which begin with `what`.
fn say(room: &Room, bob: &str, what: &str, count: usize) -> Vec<String> {
    let said: Vec<String> = (0..count).map(|n| format!("{what} {n}")).collect();
    for text in &said {
        room.say(bob, text);
    }
    said
}

/// Waits until the texts of the room are these, in this order.
async fn until_texts(user: &User, room: &str, expected: &[String]) {
    eventually(&format!("{} reads all of {room}", user.id), || async {
        let history = user.history(room).await;
        let found = texts(&history);
        if found == expected { Ok(()) } else { Err(format!("{found:#?}")) }
    })
    .await;
}

scenario! {
    async fn history_of_another_server_is_read_to_its_beginning(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        for version in ["1", "11", "12"] {
            let room = other.create_room(version, &bob);
            let said = say(&room, &bob, "text", 500);
            alice.join_via(&room.id(), &other.name()).await.ok();
            let history = alice.history(&room.id()).await;
            assert_eq!(texts(&history), said, "version {version}");
            let first = &history[0];
            assert_eq!(first["type"], "m.room.create", "version {version}: {first}");
        }
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn history_is_fetched_once_and_told_by_no_sync(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let said = say(&room, &bob, "text", 250);
        let before = alice.sync().await.next_batch();
        alice.join_via(&room.id(), &other.name()).await.ok();
        let id = room.id();
        let all = join_all((0..6).map(|_| alice.history(&id))).await;
        assert!(all.iter().all(|history| texts(history) == said));
        let asked = other.seen("GET", BACKFILL).len();
        assert!(asked <= 4, "{asked} requests for 3 pages");
        assert_eq!(texts(&alice.history(&id).await), said);
        assert_eq!(other.seen("GET", BACKFILL).len(), asked);

        let forwards = alice.messages(&id, "f").query("limit", 1000).await;
        assert_eq!(texts(forwards.ok()["chunk"].as_array().unwrap()), said);
        for synced in [alice.sync().await, alice.sync().since(&before).await] {
            assert_eq!(texts(&synced.timeline(&id)), [] as [&str; 0], "{}", synced.text);
        }
        alice.send(&id, "now").await;
        let history = alice.history(&id).await;
        assert_eq!(texts(&history).last(), Some(&"now"));
    }

    async fn history_is_shown_to_whom_it_may_be(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let shows = |to: &str| {
            let content = json!({"history_visibility": to});
            room.set(&bob, "m.room.history_visibility", "", content);
        };
        room.say(&bob, "for everybody in the room, ever");
        shows("joined");
        let hidden = room.say(&bob, "for those who are here");
        shows("invited");
        room.say(&bob, "for those who are invited");
        room.set(&bob, "m.room.member", &alice.id, json!({"membership": "invite"}));
        room.say(&bob, "for alice, who is invited");
        shows("shared");
        room.say(&bob, "for everybody again");
        shows("joined");
        alice.join_via(&room.id(), &other.name()).await.ok();
        let history = alice.history(&room.id()).await;
        let expected = [
            "for everybody in the room, ever",
            "for alice, who is invited",
            "for everybody again",
        ];
        assert_eq!(texts(&history), expected);
        let seen = alice.event(&room.id(), &hidden.id).await;
        assert_eq!(seen.status, 404, "{seen}");
    }

    async fn an_event_from_before_is_found_with_what_was_around_it(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        room.set(&bob, "m.room.topic", "", json!({"topic": "old"}));
        say(&room, &bob, "early", 20);
        let wanted = room.say(&bob, "what we look for");
        say(&room, &bob, "late", 150);
        room.set(&bob, "m.room.topic", "", json!({"topic": "new"}));
        alice.join_via(&room.id(), &other.name()).await.ok();
        let id = room.id();
        let found = alice.event(&id, &wanted.id).await;
        assert_eq!(found.ok()["content"]["body"], "what we look for");

        let early = room.say(&bob, "elsewhere").id;
        let nobodys = format!("${}", "a".repeat(43));
        for unknown in [&nobodys, &early] {
            assert_eq!(alice.event(&id, unknown).await.status, 404);
        }
        let context = alice.get(path("/rooms/{}/context/{}", &[&id, &wanted.id])).query("limit", 4);
        let context = context.await;
        let context = context.ok();
        assert_eq!(texts(context["events_before"].as_array().unwrap()), ["early 19", "early 18"]);
        assert_eq!(texts(context["events_after"].as_array().unwrap()), ["late 0", "late 1"]);
        let state = context["state"].as_array().unwrap();
        let topics: Vec<&Value> = state.iter().filter(|e| e["type"] == "m.room.topic").collect();
        assert_eq!(topics.len(), 1, "{state:#?}");
        assert_eq!(topics[0]["content"]["topic"], "old");
        let start = context["start"].as_str().unwrap();
        let page = alice.messages(&id, "b").query("from", start).query("limit", 1).await;
        assert_eq!(texts(page.ok()["chunk"].as_array().unwrap()), ["early 17"]);
    }

    async fn what_was_redacted_stays_so(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        for version in ["10", "11"] {
            let room = other.create_room(version, &bob);
            let redact = |target: &str| {
                room.draft(&bob, "m.room.redaction", json!({"redacts": target}))
                    .with("redacts", target)
                    .add();
            };
            let early = room.say(&bob, "taken back early");
            redact(&early.id);
            let late = room.say(&bob, "taken back late");
            say(&room, &bob, "text", 150);
            redact(&late.id);
            alice.join_via(&room.id(), &other.name()).await.ok();
            let history = alice.history(&room.id()).await;
            for gone in [&early, &late] {
                let event = history.iter().find(|event| event["event_id"] == *gone.id);
                let event = event.expect("it is there");
                assert_eq!(event["content"], json!({}), "version {version}: {event}");
                assert!(event["unsigned"]["redacted_because"].is_object(), "{event}");
            }
        }
    }

    async fn a_server_that_cannot_answer_ends_no_history(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        room.say(&bob, "unheard");
        alice.join_via(&room.id(), &other.name()).await.ok();
        other.go_away();
        let page = alice.messages(&room.id(), "b").await;
        assert!(page.ok()["end"].is_string(), "there may be more: {page}");
        // A page that ends where it begins would be the last one for some clients.
        let mut from = page.string("end");
        for _ in 0..2 {
            let page = alice.messages(&room.id(), "b").query("from", &from).await;
            assert_eq!(page.ok()["chunk"], json!([]), "{page}");
            assert_ne!(page.string("end"), from, "{page}");
            from = page.string("end");
        }
        other.come_back().await;
        until_texts(&alice, &room.id(), &["unheard".to_owned()]).await;
    }

    /// What it has told is of use, but there may be others who have it.
    async fn whoever_was_slow_is_asked_last(server: Server) with (Settings::federating())
    {
        let (other, third) = (Other::start().await, Other::start().await);
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let (carol, dan) = (other.user("carol"), third.user("dan"));
        let room = other.create_room("11", &bob);
        let join = json!({"membership": "join"});
        room.set(&carol, "m.room.member", &carol, join.clone());
        room.draft(&dan, "m.room.member", join)
            .state(&dan)
            .signed_as(&third.name(), &third.key())
            .add();
        let said: Vec<Pdu> = (0..150).map(|n| room.say(&bob, &format!("text {n}"))).collect();
        let expected: Vec<String> = (0..150).map(|n| format!("text {n}")).collect();
        other.on("GET", BACKFILL, move |seen| {
            let last = seen.query("v")?;
            let last = said.iter().position(|pdu| pdu.id == last)?;
            let pdus = said[last.saturating_sub(99)..=last].iter().map(|pdu| &pdu.json);
            let pdus: Vec<&Value> = pdus.collect();
            Some(Reply::json(&json!({"pdus": pdus})).after(SLOWLY))
        });
        alice.join_via(&room.id(), &other.name()).await.ok();
        alice.messages(&room.id(), "b").await.ok();
        assert!(third.seen("GET", BACKFILL).is_empty(), "it has fewer members");
        until_texts(&alice, &room.id(), &expected).await;
        assert!(!third.seen("GET", BACKFILL).is_empty(), "another one was slow");
    }

    async fn whoever_does_not_say_whether_an_event_is_known_is_left_alone(server: Server) with (still())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        alice.join_via(&room.id(), &other.name()).await.ok();
        let never = Reply::json(&json!({})).after(Duration::from_secs(600));
        other.always("GET", EVENT, never);
        let before = other.seen("GET", EVENT).len();
        for name in ["first", "second"] {
            alice.event(&room.id(), &format!("${name}:{}", other.name())).await.refused(404, "M_NOT_FOUND");
            assert_eq!(other.seen("GET", EVENT).len(), before + 1, "{name}");
        }
    }

    /// Time is up before all have been asked: that says nothing of those who have not been.
    async fn an_event_that_some_do_not_know_is_looked_for_again(server: Server)
        with (still())
    {
        let (other, last) = (Other::start().await, Other::start().await);
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let slow = [other.clone(), Other::start().await, Other::start().await];
        let two = slow.iter().flat_map(|server| [(server, "carol"), (server, "dan")]);
        for (server, name) in two.chain([(&last, "eve")]) {
            let user = server.user(name);
            let join = room.draft(&user, "m.room.member", json!({"membership": "join"}));
            join.state(&user).signed_as(&server.name(), &server.key()).add();
        }
        alice.join_via(&room.id(), &other.name()).await.ok();
        let unknown = Reply::refused(404, "M_NOT_FOUND");
        for server in &slow {
            server.always("GET", EVENT, unknown.clone().after(Duration::from_secs(7)));
        }
        let event = format!("$event:{}", other.name());
        let asked = || last.seen("GET", EVENT).iter().any(|seen| seen.segment(4) == event);
        alice.event(&room.id(), &event).await.refused(404, "M_NOT_FOUND");
        assert!(!asked(), "the others have more members, and take their time");
        for server in &slow {
            server.always("GET", EVENT, unknown.clone());
        }
        alice.event(&room.id(), &event).await.refused(404, "M_NOT_FOUND");
        assert!(asked(), "it may know the event");
    }

    /// What comes of looking for one thing says nothing of another.
    async fn whoever_looks_for_the_beginning_is_not_told_of_a_gap(server: Server) with (Settings::federating())
    {
        let (other, peer) = (Other::start().await, server.peer());
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let before = room.say(&bob, "before");
        alice.join_via(&room.id(), &other.name()).await.ok();
        let is_first = AtomicBool::new(true);
        other.on("GET", BACKFILL, move |_| {
            let is_first = is_first.swap(false, Ordering::Relaxed);
            is_first.then(|| Reply::refused(404, "M_NOT_FOUND").after(Duration::from_secs(3)))
        });
        say(&room, &bob, "unheard", 150);
        let last = room.say(&bob, "heard");
        other.deliver(&peer, std::slice::from_ref(&last)).await;
        other.until("a question about the gap", "GET", BACKFILL, |_| Some(())).await;
        alice.event(&room.id(), &before.id).await.ok();
    }

    /// Not as `random`: that proxy goes on to send requests to instances that are killed.
    async fn a_fetch_that_is_broken_off_has_one_effect(server: Server)
        in (monolith, fleet) with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let said = say(&room, &bob, "text", 250);
        alice.join_via(&room.id(), &other.name()).await.ok();
        for step in ["backfill", "state_ids", "backfill", "state_ids"] {
            let step = format!("/_matrix/federation/v1/{step}/");
            let before = other.seen("GET", &step).len();
            let id = room.id();
            let reading = alice.history(&id);
            let asked = other.until("a question", "GET", &step, |_| {
                (other.seen("GET", &step).len() > before).then_some(())
            });
            tokio::select! {
                _ = reading => {}
                () = asked => {}
            }
            server.kill9().expect("it is killed");
            server.restart().await.expect("it starts again");
        }
        until_texts(&alice, &room.id(), &said).await;
    }

    async fn what_was_said_in_somebodys_absence_stands_where_it_belongs(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let id = room.id();
        let mut said = say(&room, &bob, "before", 20);
        alice.join_via(&id, &other.name()).await.ok();
        alice.send(&id, "here").await;
        other.until_pdu("a text", |pdu| pdu["content"]["body"] == "here").await;
        alice.leave(&id).await.ok();
        other.until_pdu("a leave", |pdu| pdu["content"]["membership"] == "leave").await;
        said.push("here".to_owned());
        said.extend(say(&room, &bob, "meanwhile", 130));
        alice.join_via(&id, &other.name()).await.ok();
        let since = alice.sync().await.next_batch();
        alice.send(&id, "back").await;
        said.push("back".to_owned());
        until_texts(&alice, &id, &said).await;
        let synced = alice.sync().since(&since).await;
        assert_eq!(texts(&synced.timeline(&id)), ["back"]);
    }

    /// Nobody reads it, and the server that has said it is gone when somebody does.
    async fn what_was_said_in_everybodys_absence_is_fetched_at_the_return(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let id = room.id();
        alice.join_via(&id, &other.name()).await.ok();
        until_texts(&alice, &id, &[]).await;
        alice.leave(&id).await.ok();
        other.until_pdu("a leave", |pdu| pdu["content"]["membership"] == "leave").await;
        let said = say(&room, &bob, "meanwhile", 330);
        alice.join_via(&id, &other.name()).await.ok();
        let since = alice.sync().await.next_batch();
        let client = server.database().connect().await.unwrap();
        let gaps = "SELECT count(*) FROM event_gaps g
                    JOIN events e ON e.nid = g.event AND e.flags & 1 = 0
                    WHERE e.pos > (SELECT min(f.pos) FROM events f
                                   WHERE f.room = e.room AND f.pos > 0)";
        eventually("no gap", || async {
            let left: i64 = client.query_one(gaps, &[]).await.unwrap().get(0);
            if left == 0 { Ok(()) } else { Err(format!("{left} gaps")) }
        })
        .await;
        other.go_away();
        until_texts(&alice, &id, &said).await;
        alice.send(&id, "back").await;
        let synced = alice.sync().since(&since).await;
        assert_eq!(texts(&synced.timeline(&id)), ["back"]);
    }

    async fn what_could_not_be_heard_is_filled_in(server: Server) with (Settings::federating()) {
        let (other, peer) = (Other::start().await, server.peer());
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let id = room.id();
        let mut said = say(&room, &bob, "before", 5);
        alice.join_via(&id, &other.name()).await.ok();
        let topic = json!({"topic": "while it could not hear"});
        said.extend(say(&room, &bob, "unheard", 150));
        room.set(&bob, "m.room.topic", "", topic.clone());
        said.extend(say(&room, &bob, "still unheard", 150));
        let last = room.say(&bob, "heard");
        said.push("heard".to_owned());
        other.deliver(&peer, std::slice::from_ref(&last)).await;
        until_event(&alice, &id, &last.id).await;
        until_texts(&alice, &id, &said).await;
        assert_eq!(*alice.get_state(&id, "m.room.topic", "").await.ok(), topic);
    }
}

#[tokio::test]
async fn a_liar_makes_no_history() {
    let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
    let (other, alice) = (Other::start().await, server.user("alice").await);
    let bob = other.user("bob");
    for version in ["1", "11"] {
        let room = other.create_room(version, &bob);
        say(&room, &bob, "text", 30);
        let lost = room.say(&bob, "before the lie");
        let broken = room.say(&bob, "in the name of bob");
        let later: Vec<String> = (0..30).map(|n| format!("later {n}")).collect();
        let known: Vec<Value> = later.iter().map(|text| room.say(&bob, text).json).collect();
        let elsewhere = other.create_room(version, &bob).say(&bob, "in another room");
        let text = |text: &str| room.draft(&bob, "m.room.message", json!({"body": text}));
        let apart = text("that leads nowhere").after(&[&lost.id]).make();
        let coup = json!({"users": {alice.id.clone(): 100}});
        let coup = room.draft(&alice.id, "m.room.power_levels", coup).state("");
        let coup = coup.after(&[&lost.id]).signed_as(&other.name(), &other.key()).make();
        let mut broken_json = broken.json.clone();
        broken_json["signatures"] = json!({});
        let mut answer = vec![elsewhere.json, apart.json, coup.json, json!({"not": "an event"})];
        answer.extend(known.into_iter().chain([broken_json, lost.json]));
        let answer = json!({"origin": other.name(), "origin_server_ts": 1, "pdus": answer});
        other.on("GET", BACKFILL, move |_| Some(Reply::json(&answer)));
        alice.join_via(&room.id(), &other.name()).await.ok();
        let history = alice.history(&room.id()).await;
        // What leads to the lie is not believed; nobody else is there who could tell.
        assert_eq!(texts(&history), later, "version {version}");
        other.behave();
    }
}

#[tokio::test]
async fn history_of_synapse_is_read_to_its_beginning() {
    let synapse = Synapse::shared().await;
    let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
    let (alice, bob) = (server.user("alice").await, synapse.user("bob").await);
    let room = bob.create_room().preset("public_chat").await;
    let said: Vec<String> = (0..250).map(|n| n.to_string()).collect();
    for text in &said {
        bob.send(&room, text).await;
    }
    alice.join_via(&room, synapse.name()).await.ok();
    assert_eq!(texts(&alice.history(&room).await), said);

    let room = alice.create_room().preset("public_chat").await;
    for text in &said {
        alice.send(&room, text).await;
    }
    bob.join_via(&room, server.name()).await.ok();
    until_member(&alice, &room, &bob, "join").await;
    assert_eq!(texts(&bob.history(&room).await), said);
}
