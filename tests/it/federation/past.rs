//! What is told with events of the past: who spoke, the state of then, and to which other servers.

use chatd_kit::{
    Answer, Other, Server, Settings, User, eventually,
    other::{Pdu, Room},
    path, scenario,
};
use serde_json::{Value, json};

use super::acts::until_event;

/// Somebody comes, says something, and leaves.
fn visit(room: &Room, user: &str, name: &str, text: &str) -> Pdu {
    let join = json!({"membership": "join", "displayname": name});
    room.set(user, "m.room.member", user, join);
    let said = room.say(user, text);
    room.set(user, "m.room.member", user, json!({"membership": "leave"}));
    said
}

fn say(room: &Room, user: &str, count: usize) {
    for n in 0..count {
        room.say(user, &format!("text {n}"));
    }
}

async fn page(user: &User, room: &str, from: Option<&str>, limit: usize) -> Answer {
    let filter = json!({"lazy_load_members": true}).to_string();
    let request = user.messages(room, "b").query("limit", limit).query("filter", filter);
    match from {
        Some(from) => request.query("from", from).await,
        None => request.await,
    }
}

/// Names of the members that came with an answer, by id.
fn members(answer: &Answer) -> Vec<(&str, &Value)> {
    let state = answer.ok()["state"].as_array().into_iter().flatten();
    let members = state.filter(|event| event["type"] == "m.room.member");
    members.map(|e| (e["state_key"].as_str().unwrap(), &e["content"]["displayname"])).collect()
}

async fn context(user: &User, room: &str, event: &str) -> Answer {
    user.get(path("/rooms/{}/context/{}", &[room, event])).query("limit", 0).await
}

/// The page that has one event only, with what came with it.
async fn page_of(user: &User, room: &str, event: &str) -> Answer {
    let around = context(user, room, event).await;
    let page = page(user, room, Some(&around.string("end")), 1).await;
    assert_eq!(page.ok()["chunk"][0]["event_id"], event, "{page}");
    page
}

fn topic(answer: &Answer) -> &Value {
    let state = answer.ok()["state"].as_array().expect("a state");
    let topics: Vec<&Value> = state.iter().filter(|e| e["type"] == "m.room.topic").collect();
    assert_eq!(topics.len(), 1, "{answer}");
    &topics[0]["content"]["topic"]
}

/// What `asking` is told of an event, when it is known.
async fn told(server: &Server, asking: &Other, event: &Pdu) -> Value {
    let route = path("/_matrix/federation/v1/event/{}", &[&event.id]);
    eventually("the event is known", || async {
        let answer = asking.get(&server.peer(), &route).await;
        match answer.status {
            200 => Ok(answer.ok()["pdus"][0]["content"]["body"].clone()),
            _ => Err(answer.to_string()),
        }
    })
    .await
}

scenario! {
    async fn pages_of_the_past_have_the_members_of_then(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob, carol) = (server.user("alice").await, other.user("bob"), other.user("carol"));
        let room = other.create_room("11", &bob);
        let id = room.id();
        let visited = visit(&room, &carol, "Carol", "I will not stay");
        say(&room, &bob, 130);
        alice.join_via(&id, &other.name()).await.ok();
        let (mut from, mut heard) = (None::<String>, false);
        loop {
            let page = page(&alice, &id, from.as_deref(), 30).await;
            let members = members(&page);
            for event in page.ok()["chunk"].as_array().unwrap() {
                let sender = event["sender"].as_str().unwrap();
                assert_eq!(members.iter().filter(|(id, _)| *id == sender).count(), 1, "{page}");
                heard |= event["event_id"] == *visited.id;
            }
            match page.ok()["end"].as_str() {
                Some(end) => from = Some(end.to_owned()),
                None => break,
            }
        }
        assert!(heard, "what Carol has said is there");
        let page = page_of(&alice, &id, &visited.id).await;
        assert_eq!(members(&page), [(&*carol, &json!("Carol"))]);
    }

    async fn the_state_in_a_gap_is_that_of_then(server: Server) with (Settings::federating()) {
        let (other, peer) = (Other::start().await, server.peer());
        let (alice, bob, carol) = (server.user("alice").await, other.user("bob"), other.user("carol"));
        let room = other.create_room("11", &bob);
        let id = room.id();
        room.set(&bob, "m.room.topic", "", json!({"topic": "before"}));
        alice.join_via(&id, &other.name()).await.ok();
        let early = room.say(&bob, "early in the gap");
        room.set(&bob, "m.room.topic", "", json!({"topic": "meanwhile"}));
        let visited = visit(&room, &carol, "Carol", "nobody hears me");
        say(&room, &bob, 150);
        room.set(&bob, "m.room.topic", "", json!({"topic": "after"}));
        let last = room.say(&bob, "heard");
        other.deliver(&peer, std::slice::from_ref(&last)).await;
        for event in [&last, &early, &visited] {
            until_event(&alice, &id, &event.id).await;
        }
        for (event, expected) in [(&early, "before"), (&visited, "meanwhile"), (&last, "after")] {
            assert_eq!(topic(&context(&alice, &id, &event.id).await), expected);
        }
        let page = page_of(&alice, &id, &visited.id).await;
        assert_eq!(members(&page), [(&*carol, &json!("Carol"))]);
        let at = context(&alice, &id, &visited.id).await.string("end");
        let members = alice.get(path("/rooms/{}/members", &[&id])).query("at", at).await;
        let members = members.ok()["chunk"].as_array().unwrap();
        let carols = members.iter().find(|member| member["state_key"] == *carol);
        assert_eq!(carols.expect("she is there")["content"]["membership"], "join");
    }

    async fn other_servers_are_told_of_the_past_what_they_were_there_for(server: Server)
        with (Settings::federating())
    {
        let (other, third, peer) = (Other::start().await, Other::start().await, server.peer());
        let (alice, bob, carol) = (server.user("alice").await, other.user("bob"), third.user("carol"));
        let room = other.create_room("11", &bob);
        let id = room.id();
        let is_now = |membership: &str| {
            room.draft(&carol, "m.room.member", json!({"membership": membership}))
                .state(&carol)
                .signed_as(&third.name(), &third.key())
                .add();
        };
        let shown = json!({"history_visibility": "joined"});
        room.set(&bob, "m.room.history_visibility", "", shown);
        let before = room.say(&bob, "before");
        is_now("join");
        let there = room.say(&bob, "there");
        is_now("leave");
        let after = room.say(&bob, "after");
        is_now("join");
        alice.join_via(&id, &other.name()).await.ok();
        alice.history(&id).await;
        let unheard = room.say(&bob, "unheard");
        is_now("leave");
        let left = room.say(&bob, "left");
        say(&room, &bob, 150);
        is_now("join");
        let last = room.say(&bob, "heard");
        other.deliver(&peer, std::slice::from_ref(&last)).await;
        for event in [&unheard, &last] {
            until_event(&alice, &id, &event.id).await;
        }
        for hidden in [&before, &after, &left] {
            assert_eq!(told(&server, &third, hidden).await, Value::Null, "{}", hidden.json);
        }
        for seen in [&there, &unheard, &last] {
            assert_eq!(told(&server, &third, seen).await, seen.json["content"]["body"]);
        }
        let around = path("/_matrix/federation/v1/backfill/{}?limit=3&v={}", &[&id, &after.id]);
        let around = third.get(&peer, &around).await;
        let around = around.ok()["pdus"].as_array().expect("a list");
        let texts: Vec<&str> =
            around.iter().filter_map(|pdu| pdu["content"]["body"].as_str()).collect();
        assert_eq!(texts, ["there"]);
    }
}
