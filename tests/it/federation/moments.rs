//! Events by time: `timestamp_to_event`, for clients and for other servers.

use chatd_kit::{
    Answer, Other, Server, Settings, Synapse, User,
    other::{Pdu, Reply, now_ms},
    path, scenario,
};
use serde_json::{Value, json};

const BY_TIME: &str = "/_matrix/federation/v1/timestamp_to_event/";

async fn nearest(user: &User, room: &str, time: i64, dir: &str) -> Answer {
    let url = path("/_matrix/client/v1/rooms/{}/timestamp_to_event", &[room]);
    user.get(url).query("ts", time).query("dir", dir).await
}

fn time_of(event: &Value) -> i64 {
    event["origin_server_ts"].as_i64().expect("a time")
}

/// What `nearest` has to find among events, which are in the order of the room.
fn expected(events: &[Value], time: i64, dir: &str) -> Option<String> {
    let found = match dir {
        "f" => events.iter().filter(|event| time_of(event) >= time).min_by_key(|e| time_of(e)),
        _ => events.iter().filter(|event| time_of(event) <= time).max_by_key(|e| time_of(e)),
    };
    found.map(|event| event["event_id"].as_str().expect("an id").to_owned())
}

async fn check(user: &User, room: &str, events: &[Value], time: i64) {
    for dir in ["f", "b"] {
        let answer = nearest(user, room, time, dir).await;
        match expected(events, time, dir) {
            None => drop(answer.refused(404, "M_NOT_FOUND")),
            Some(id) => assert_eq!(answer.string("event_id"), id, "{time} {dir}"),
        }
    }
}

scenario! {
    async fn the_nearest_event_is_found_in_both_directions(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        for text in ["one", "two", "three"] {
            alice.send(&room, text).await;
        }
        let events = alice.history(&room).await;
        let times: Vec<i64> = events.iter().map(time_of).collect();
        for time in times.iter().flat_map(|time| [time - 1, *time, time + 1]).chain([0, -1]) {
            check(&alice, &room, &events, time).await;
        }
        nearest(&alice, &room, i64::MAX, "f").await.refused(404, "M_NOT_FOUND");
        nearest(&alice, &room, i64::MIN, "b").await.refused(404, "M_NOT_FOUND");
        check(&alice, &room, &events, i64::MAX).await;
        check(&alice, &room, &events, i64::MIN).await;
    }

    async fn only_what_a_user_may_see_is_found(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let hidden = json!({"history_visibility": "joined"});
        let room = alice.create_room().preset("public_chat")
            .state("m.room.history_visibility", hidden).await;
        nearest(&bob, &room, 0, "f").await.refused(403, "M_FORBIDDEN");
        nearest(&bob, "!none:example.org", 0, "f").await.refused(403, "M_FORBIDDEN");
        alice.send(&room, "before").await;
        bob.join(&room).await.ok();
        let seen = alice.send(&room, "seen").await;
        bob.leave(&room).await.ok();
        alice.send(&room, "after").await;
        let events = bob.history(&room).await;
        assert!(events.iter().any(|event| event["event_id"] == seen.as_str()));
        for time in events.iter().map(time_of).chain([0, i64::MAX]) {
            check(&bob, &room, &events, time).await;
        }
        let early = nearest(&bob, &room, 0, "f").await.string("event_id");
        assert_eq!(early, events[0]["event_id"], "the first that he sees");
    }

    async fn what_is_asked_has_to_be_complete(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let url = path("/_matrix/client/v1/rooms/{}/timestamp_to_event", &[&room]);
        alice.get(&url).query("dir", "f").await.refused(400, "M_MISSING_PARAM");
        alice.get(&url).query("ts", 5).await.refused(400, "M_MISSING_PARAM");
        alice.get(&url).query("ts", 5).query("dir", "x").await.refused(400, "M_INVALID_PARAM");
        alice.get(&url).query("ts", "x").query("dir", "f").await.refused(400, "M_INVALID_PARAM");
    }

    async fn servers_in_the_room_are_told_whatever_the_clocks_say(server: Server)
    with (Settings::federating())
    {
        let alice = server.user("alice").await;
        let room = alice.create_room().preset("public_chat").await;
        let (other, stranger) = (Other::start().await, Other::start().await);
        let bob = other.user("bob");
        let far = other.join(&server.peer(), &room, &bob).await;
        let text = json!({"msgtype": "m.text", "body": "x"});
        let at = |time: i64| far.draft(&bob, "m.room.message", text.clone())
            .with("origin_server_ts", time).add();
        let tomorrow = i64::try_from(now_ms()).expect("a time") + 20 * 3_600_000;
        let pdus: Vec<Pdu> = [1_000_000, 999_000, 5, tomorrow].map(at).into();
        other.deliver(&server.peer(), &pdus).await;
        let ask = async |time: i64, dir: &str| {
            let route = path(&format!("{BY_TIME}{{}}?ts={time}&dir={dir}"), &[&room]);
            other.get(&server.peer(), &route).await
        };
        for (time, dir, found) in [
            (0, "f", 2), (6, "f", 1), (999_001, "f", 0), (999_000, "b", 1), (998_999, "b", 2),
            (2_000_000, "b", 0), (i64::MAX, "b", 3), (tomorrow - 1_000, "f", 3),
        ] {
            let answer = ask(time, dir).await;
            assert_eq!(answer.string("event_id"), pdus[found].id, "{time} {dir}");
            assert_eq!(answer.ok()["origin_server_ts"], pdus[found].json["origin_server_ts"]);
            assert_eq!(nearest(&alice, &room, time, dir).await.string("event_id"), pdus[found].id);
        }
        ask(4, "b").await.refused(404, "M_NOT_FOUND");
        let route = path(&format!("{BY_TIME}{{}}?ts=0&dir=f"), &[&room]);
        stranger.get(&server.peer(), &route).await.refused(403, "M_FORBIDDEN");
    }

    async fn others_are_asked_where_the_history_here_ends(server: Server)
    with (Settings::federating())
    {
        let (alice, other) = (server.user("alice").await, Other::start().await);
        let bob = other.user("bob");
        let far = other.create_room("11", &bob);
        let text = json!({"msgtype": "m.text", "body": "old"});
        let old = far.draft(&bob, "m.room.message", text).with("origin_server_ts", 5_000).add();
        alice.join_via(&far.id(), &other.name()).await.ok();
        let told = |id: &str, time: i64| {
            Reply::json(&json!({"event_id": id, "origin_server_ts": time}))
        };
        other.always("GET", BY_TIME, told(&old.id, 5_000));
        for (time, dir) in [(5_001, "b"), (4_000, "f")] {
            let found = nearest(&alice, &far.id(), time, dir).await;
            assert_eq!(found.string("event_id"), old.id);
            assert_eq!(found.ok()["origin_server_ts"], 5_000);
        }
        let asked = other.seen("GET", BY_TIME).pop().expect("a question");
        assert_eq!((asked.query("ts"), asked.query("dir")), (Some("4000".into()), Some("f".into())));
        // What is in the other direction, not what it is said to be, or nothing at all.
        nearest(&alice, &far.id(), 4_000, "b").await.refused(404, "M_NOT_FOUND");
        other.always("GET", BY_TIME, told(&old.id, 4_999));
        nearest(&alice, &far.id(), 5_001, "b").await.refused(404, "M_NOT_FOUND");
        other.always("GET", BY_TIME, told("$none", 5_000));
        nearest(&alice, &far.id(), 5_001, "b").await.refused(404, "M_NOT_FOUND");
        other.always("GET", BY_TIME, Reply::refused(404, "M_NOT_FOUND"));
        let own = nearest(&alice, &far.id(), 4_000, "f").await;
        assert_eq!(own.string("event_id"), far.state("m.room.member", &alice.id).expect("hers").id);
        // Whoever reads it has it fetched; from then on it is known here.
        alice.event(&far.id(), &old.id).await.ok();
        for (time, dir) in [(5_001, "b"), (4_000, "f")] {
            assert_eq!(nearest(&alice, &far.id(), time, dir).await.string("event_id"), old.id);
        }
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn what_was_before_is_not_looked_for_where_it_is_hidden(server: Server) with (Settings::federating())
    {
        let (alice, other) = (server.user("alice").await, Other::start().await);
        let bob = other.user("bob");
        let far = other.create_room("11", &bob);
        let hidden = json!({"history_visibility": "joined"});
        far.set(&bob, "m.room.history_visibility", "", hidden);
        alice.join_via(&far.id(), &other.name()).await.ok();
        nearest(&alice, &far.id(), 5_000, "b").await.refused(404, "M_NOT_FOUND");
        nearest(&alice, &far.id(), 5_000, "f").await.ok();
        assert_eq!(other.seen("GET", BY_TIME).len(), 0);
    }
}

#[tokio::test]
async fn synapse_and_chatd_ask_each_other_for_what_was_before() {
    let synapse = Synapse::shared().await;
    let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
    let (alice, bob) = (server.user("alice").await, synapse.user("bob").await);
    for (first, second, name) in [(&bob, &alice, synapse.name()), (&alice, &bob, server.name())] {
        let room = first.create_room().preset("public_chat").await;
        let mut texts = Vec::new();
        for text in ["one", "two", "three"] {
            texts.push(first.send(&room, text).await);
        }
        let time = time_of(first.event(&room, &texts[1]).await.ok());
        second.join_via(&room, name).await.ok();
        for dir in ["f", "b"] {
            let found = nearest(second, &room, time, dir).await;
            assert_eq!(found.ok()["origin_server_ts"], time, "{dir} of {name}");
            second.event(&room, &found.string("event_id")).await.ok();
        }
    }
}
