//! Rooms that are joined without their members, which are fetched afterwards.

use chatd_kit::{
    Answer, Other, Server, Settings, Synapse, User, eventually,
    other::{Reply, Room},
    path, scenario, spawn,
    sync::Feed,
};
use serde_json::{Value, json};

use super::{is_state, join_by, until_in};

/// Also where the ids of a state are told.
const STATE: &str = "/_matrix/federation/v1/state";
const WHOLE_STATE: &str = "/_matrix/federation/v1/state/";

/// A feed that loads members as it needs them, which is told of a room at once.
async fn lazy(user: &User) -> Feed {
    user.feed().await.filtered(json!({"room": {"state": {"lazy_load_members": true}}}))
}

/// A server that leaves out members, and does not tell them later either; a room of it with three
/// of its users.
async fn closed() -> (Other, Room) {
    let other = Other::start().await;
    other.omit_members();
    other.always("GET", STATE, Reply::refused(404, "M_NOT_FOUND"));
    let bob = other.user("bob");
    let room = other.create_room("11", &bob);
    for name in ["carol", "dave"] {
        let user = other.user(name);
        room.set(&user, "m.room.member", &user, json!({"membership": "join"}));
    }
    (other, room)
}

/// The same, and a user of this one who has joined the room.
async fn joined(server: &Server) -> (Other, Room, User) {
    let (other, room) = closed().await;
    let alice = server.user("alice").await;
    join_by(&alice, &room.id(), &other.name()).await.ok();
    (other, room, alice)
}

async fn members(user: &User, room: &str) -> Answer {
    user.get(path("/rooms/{}/joined_members", &[room])).await
}

/// Waits until `user` is told as many members.
async fn until_whole(user: &User, room: &str, count: usize) {
    eventually("all members", || async {
        let answer = members(user, room).await;
        let told: Value = serde_json::from_str(&answer.text).unwrap_or_default();
        let joined = told["joined"].as_object().map(serde_json::Map::len);
        if joined == Some(count) { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
}

/// Another server says something: it has been taken, whether it is shown or not.
async fn hears(server: &Server, other: &Other, room: &Room, text: &str) -> String {
    let said = room.say(&other.user("carol"), text);
    other.deliver(&server.peer(), std::slice::from_ref(&said)).await;
    said.id
}

scenario! {
    async fn a_user_is_in_before_the_members_are_known(server: Server) with (Settings::federating()) {
        let (other, room) = closed().await;
        let id = room.id();
        let alice = server.user("alice").await;
        let mut feed = lazy(&alice).await;
        join_by(&alice, &id, &other.name()).await.ok();
        let told = until_in(&mut feed, "join", &id).await;
        assert!(is_state(told["state"]["events"].as_array().expect("state"),
            "m.room.create"), "{told:#}");
        alice.send(&id, "here I am").await;
        other.until_pdu("a text", |pdu| pdu["content"]["body"] == "here I am").await;
        let said = hears(&server, &other, &room, "welcome").await;
        let waits = {
            let (alice, id) = (alice.clone(), id.clone());
            spawn(async move { members(&alice, &id).await })
        };
        other.behave();
        // What the client does not ask for by itself is how many they are.
        let mut counted = false;
        feed.until("the text and the count", |synced| {
            let room = synced.room(&id);
            counted |= room["summary"]["m.joined_member_count"] == 4;
            let is_there = synced.timeline_ids(&id).contains(&said);
            (is_there && counted).then_some(())
        })
        .await;
        let answer = waits.await;
        let joined = answer.ok();
        assert_eq!(joined["joined"].as_object().map(serde_json::Map::len), Some(4), "{joined}");
        let more = hears(&server, &other, &room, "again").await;
        feed.until_event(&id, &more).await;
        let sent = alice.send(&id, "thanks").await;
        other.until_pdu("a text", |pdu| pdu["content"]["body"] == "thanks").await;
        assert!(!sent.is_empty());
        // Whoever comes later sees the same.
        let first = alice.sync().await;
        let summary = &first.section("join", &id)["summary"];
        assert_eq!(summary["m.joined_member_count"], 4, "{summary}");
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn who_wants_all_members_sees_the_room_when_they_are_known(server: Server)
    with (Settings::federating()) {
        let (other, room) = closed().await;
        let id = room.id();
        let alice = server.user("alice").await;
        let (mut whole, mut lazy) = (alice.feed().await, lazy(&alice).await);
        join_by(&alice, &id, &other.name()).await.ok();
        until_in(&mut lazy, "join", &id).await;
        let own = alice.send(&id, "hello").await;
        lazy.until_event(&id, &own).await;
        let since = whole.now().await;
        assert!(since.room(&id).is_null(), "{}", since.text);
        assert!(alice.sync().await.room(&id).is_null());
        other.behave();
        let told = until_in(&mut whole, "join", &id).await;
        let state = told["state"]["events"].as_array().expect("state");
        let members = |events: &[Value]| {
            events.iter().filter(|event| event["type"] == "m.room.member").count()
        };
        let timeline = told["timeline"]["events"].as_array().expect("a timeline");
        assert_eq!(members(state) + members(timeline), 4, "{told:#}");
        assert!(is_state(state, "m.room.create"), "{told:#}");
        assert!(timeline.iter().any(|event| event["event_id"] == own.as_str()), "{told:#}");
        assert_eq!(told["summary"]["m.joined_member_count"], 4, "{told:#}");
        let first = alice.sync().await;
        assert!(first.room(&id).is_object());
        let later = hears(&server, &other, &room, "and on").await;
        let event = whole.until("the text, alone", |synced| {
            let timeline = synced.timeline(&id);
            (!timeline.is_empty()).then_some(timeline)
        });
        assert_eq!(event.await[0]["event_id"], later.as_str());
        lazy.until_event(&id, &later).await;
        // It is not new a second time.
        let state = whole.now().await.state(&id);
        assert!(state.is_empty(), "{state:?}");
    }

    async fn members_are_told_event_by_event_where_the_whole_state_is_too_much(server: Server) with (Settings::federating()) {
        let (other, room) = closed().await;
        other.behave();
        other.always("GET", WHOLE_STATE, Reply::refused(500, "M_UNKNOWN"));
        let id = room.id();
        let alice = server.user("alice").await;
        join_by(&alice, &id, &other.name()).await.ok();
        until_whole(&alice, &id, 4).await;
        let mut feed = lazy(&alice).await;
        let later = hears(&server, &other, &room, "all here").await;
        feed.until_event(&id, &later).await;
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn members_are_told_by_who_does_not_know_the_join(server: Server) with (Settings::federating()) {
        let (other, room) = closed().await;
        other.behave();
        let (known, alice) = (room.clone(), server.user("alice").await);
        let joined = alice.id.clone();
        other.on("GET", STATE, move |seen| {
            let join = known.state("m.room.member", &joined).map(|pdu| pdu.id);
            let is_join = seen.query("event_id") == join;
            is_join.then(|| Reply::refused(404, "M_NOT_FOUND"))
        });
        let id = room.id();
        join_by(&alice, &id, &other.name()).await.ok();
        until_whole(&alice, &id, 4).await;
        let mut feed = lazy(&alice).await;
        // Whoever came last is told in no state, but in the event that the join follows.
        let said = room.say(&other.user("dave"), "me too");
        other.deliver(&server.peer(), std::slice::from_ref(&said)).await;
        feed.until_event(&id, &said.id).await;
    }

    async fn others_are_answered_as_far_as_that_goes(server: Server) with (Settings::federating()) {
        let (other, room, alice) = joined(&server).await;
        let id = room.id();
        let (first, last) = (alice.send(&id, "one").await, alice.send(&id, "two").await);
        let peer = server.peer();
        let event = path("/_matrix/federation/v1/event/{}", &[&last]);
        assert_eq!(other.get(&peer, &event).await.ok()["pdus"][0]["content"]["body"], "two");
        let missing = path("/_matrix/federation/v1/get_missing_events/{}", &[&id]);
        let wanted = json!({"latest_events": [last], "earliest_events": [], "limit": 5});
        let answer = other.ask(&peer, "POST", &missing, Some(&wanted)).await;
        let events = answer.ok()["events"].as_array().expect("events").clone();
        assert!(events.iter().any(|event| event["content"]["body"] == "one"), "{answer}");
        let state = path("/_matrix/federation/v1/state_ids/{}?event_id={}", &[&id, &first]);
        other.get(&peer, &state).await.refused(404, "M_UNABLE_DUE_TO_PARTIAL_STATE");
        let make = other.make(&peer, "join", &id, &other.user("erin")).await;
        make.refused(404, "M_UNABLE_DUE_TO_PARTIAL_STATE");
        // A user is told the same, after a longer time.
        let route = path("/rooms/{}/members", &[&id]);
        alice.get(route).unchecked().await.refused(503, "M_UNABLE_DUE_TO_PARTIAL_STATE");
    }

    async fn another_worker_goes_on_for_one_that_is_killed(server: Server)
    in (fleet) with (Settings::federating()) {
        let (other, room, alice) = joined(&server).await;
        let id = room.id();
        let sent = alice.send(&id, "one").await;
        let said = hears(&server, &other, &room, "two").await;
        let given_up = "nobody tells the members of a room";
        let name = eventually("an instance that asks in vain", || {
            let mut instances = server.members().instances().iter();
            let found = instances.find(|process| process.log().contains(given_up));
            let found = found.map(|process| process.name().to_owned()).ok_or("none yet".to_owned());
            async { found }
        })
        .await;
        server.members().instance(&name).kill9().unwrap();
        other.behave();
        until_whole(&alice, &id, 4).await;
        let mut feed = lazy(&alice).await;
        for event in [&sent, &said] {
            let found = alice.get(path("/rooms/{}/event/{}", &[&id, event])).await;
            assert_eq!(found.ok()["event_id"], event.as_str());
        }
        let later = hears(&server, &other, &room, "three").await;
        feed.until_event(&id, &later).await;
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn a_room_of_synapse_is_joined_without_its_members(server: Server) with (Settings::federating()) {
        let synapse = Synapse::shared().await;
        let (bob, alice) = (synapse.user("bob").await, server.user("alice").await);
        let id = bob.create_room().preset("public_chat").await;
        let mut others = Vec::new();
        for number in 0..8 {
            let other = synapse.user(&format!("member{number}")).await;
            other.join(&id).await.ok();
            others.push(other);
        }
        let mut feed = lazy(&alice).await;
        let mut there = bob.feed().await;
        join_by(&alice, &id, synapse.name()).await.ok();
        let text = alice.send(&id, "from here").await;
        there.until_event(&id, &text).await;
        let text = others[3].send(&id, "from there").await;
        feed.until_event(&id, &text).await;
        until_whole(&alice, &id, 10).await;
        let rows = server.database().connect().await.unwrap();
        let row = rows
            .query_one("SELECT count(*) FROM partial_rooms WHERE whole_pos IS NOT NULL", &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, i64>(0), 1, "members were left out");
        bob.change("kick", &id, &others[3]).await.ok();
        until_whole(&alice, &id, 9).await;
        let history = alice.history(&id).await;
        assert!(history.iter().any(|event| event["type"] == "m.room.create"), "{history:#?}");
    }

    async fn a_server_that_is_killed_goes_on(server: Server) with (Settings::federating()) {
        let (other, room, alice) = joined(&server).await;
        let id = room.id();
        alice.send(&id, "one").await;
        let said = hears(&server, &other, &room, "two").await;
        server.kill9().unwrap();
        server.restart().await.unwrap();
        alice.send(&id, "three").await;
        other.until_pdu("a text", |pdu| pdu["content"]["body"] == "three").await;
        other.behave();
        until_whole(&alice, &id, 4).await;
        let mut feed = alice.feed().await;
        let later = hears(&server, &other, &room, "four").await;
        feed.until_event(&id, &later).await;
        let found = alice.get(path("/rooms/{}/event/{}", &[&id, &said])).await;
        assert_eq!(found.ok()["content"]["body"], "two");
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn what_is_no_state_is_asked_for_again(server: Server) with (Settings::federating()) {
        let (other, room) = closed().await;
        let id = room.id();
        let alice = server.user("alice").await;
        for lie in [
            json!({"pdus": [], "auth_chain": []}),
            json!({"pdus": [{"type": "m.room.create"}], "auth_chain": []}),
            json!({"pdus": 1}),
        ] {
            other.always("GET", STATE, Reply::json(&lie));
        }
        join_by(&alice, &id, &other.name()).await.ok();
        other.until("a question", "GET", STATE, |_| Some(())).await;
        alice.send(&id, "still here").await;
        other.behave();
        until_whole(&alice, &id, 4).await;
    }

    async fn a_room_without_its_members_can_be_left(server: Server) with (Settings::federating()) {
        let (other, room, alice) = joined(&server).await;
        let id = room.id();
        alice.leave(&id).await.ok();
        other.until_pdu("a leave", |pdu| pdu["content"]["membership"] == "leave").await;
        other.behave();
        join_by(&alice, &id, &other.name()).await.ok();
        until_whole(&alice, &id, 4).await;
        let mut feed = alice.feed().await;
        let later = hears(&server, &other, &room, "back again").await;
        feed.until_event(&id, &later).await;
        let synced: Value = alice.sync().await.section("join", &id).clone();
        assert!(synced.is_object());
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn a_room_is_replaced_when_its_bans_are_known(server: Server) with (Settings::federating()) {
        let (other, room) = closed().await;
        let (bob, eve, alice) = (other.user("bob"), other.user("eve"), server.user("alice").await);
        let levels = json!({"users": {&bob: 100, &alice.id: 100}});
        room.set(&bob, "m.room.power_levels", "", levels);
        room.set(&bob, "m.room.member", &eve, json!({"membership": "ban"}));
        let id = room.id();
        join_by(&alice, &id, &other.name()).await.ok();
        let replaces = {
            let (alice, id) = (alice.clone(), id.clone());
            spawn(async move {
                loop {
                    let answer = alice.upgrade(&id, "11").await;
                    // The members have not come in time.
                    if answer.status != 503 {
                        return answer.string("replacement_room");
                    }
                }
            })
        };
        other.until("a question", "GET", STATE, |_| Some(())).await;
        other.behave();
        let new = replaces.await;
        let ban = alice.get_state(&new, "m.room.member", &eve).await;
        assert_eq!(ban.ok()["membership"], "ban");
    }

    async fn others_come_while_the_members_are_not_known(server: Server) with (Settings::federating()) {
        let (other, room) = closed().await;
        let id = room.id();
        let (alice, erin) = (server.user("alice").await, server.user("erin").await);
        join_by(&alice, &id, &other.name()).await.ok();
        join_by(&erin, &id, &other.name()).await.ok();
        assert_eq!(room.membership(&erin.id), "join");
        join_by(&alice, &id, &other.name()).await.ok();
        alice.send(&id, "both").await;
        erin.send(&id, "of us").await;
        other.behave();
        until_whole(&alice, &id, 5).await;
        until_whole(&erin, &id, 5).await;
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }
}
