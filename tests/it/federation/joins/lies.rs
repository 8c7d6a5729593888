//! Answers to a join that are not what they should be: they are refused, the client is told so, and
//! nothing of the room can be seen.

use chatd_kit::{
    Other, Settings,
    other::{Pdu, Reply, Room},
    path, scenario,
};
use serde_json::{Value, json};

use super::join_by;

/// What a resident server tells of a room, changed.
type Lie = fn(&mut Value, &Room, &Other);

fn states(answer: &mut Value) -> &mut Vec<Value> {
    answer["state"].as_array_mut().expect("a list")
}

fn is(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |event| event["type"] == kind
}

const LIES: &[(&str, Lie)] = &[
    ("no state", |answer, _, _| states(answer).clear()),
    ("no create event", |answer, _, _| {
        states(answer).retain(|event| !is("m.room.create")(event));
        answer["auth_chain"] = json!([]);
    }),
    ("the create event of another room", |answer, _, other| {
        let room = other.create_room("11", &other.user("bob"));
        let create = room.state("m.room.create", "").expect("a create event");
        states(answer).retain(|event| !is("m.room.create")(event));
        states(answer).push(create.json);
        answer["auth_chain"] = json!([]);
    }),
    ("a create event with another signature", |answer, room, other| {
        let create = states(answer).iter_mut().find(|event| event["type"] == "m.room.create");
        let create = create.expect("a create event");
        create["content"]["m.federate"] = false.into();
        create["origin_server_ts"] = 1.into();
        let _ = (room, other);
    }),
    ("no join rules", |answer, _, _| {
        states(answer).retain(|event| !is("m.room.join_rules")(event));
        let chain = answer["auth_chain"].as_array_mut().expect("a list");
        chain.retain(|event| !is("m.room.join_rules")(event));
    }),
    ("another event", |answer, room, other| {
        let bob = other.user("bob");
        answer["event"] = room.draft(&bob, "m.room.message", json!({})).make().json;
    }),
    ("one entry twice", |answer, room, other| {
        let bob = other.user("bob");
        let rule = json!({"join_rule": "public", "x": 1});
        let twice: Pdu = room.draft(&bob, "m.room.join_rules", rule).state("").make();
        states(answer).push(twice.json);
    }),
    ("members left out", |answer, _, _| answer["members_omitted"] = true.into()),
    ("no list", |answer, _, _| answer["state"] = json!({})),
];

scenario! {
    async fn what_is_no_room_is_refused(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        for (name, lie) in LIES {
            let room = other.create_room("11", &bob);
            let (liar, told, lie) = (other.clone(), room.clone(), *lie);
            other.on("PUT", "/_matrix/federation/v2/send_join/", move |_| {
                let memory = told.current();
                let events: Vec<Value> = memory
                    .values()
                    .filter_map(|id| Some(told.event(id)?.json))
                    .collect();
                let mut answer = json!({
                    "origin": liar.name(),
                    "state": events,
                    "auth_chain": events,
                    "members_omitted": false,
                });
                lie(&mut answer, &told, &liar);
                Some(Reply::json(&answer))
            });
            let refused = join_by(&alice, &room.id(), &other.name()).await;
            assert_eq!(refused.status, 502, "{name}: {refused}");
            assert_eq!(refused.errcode(), "M_UNKNOWN", "{name}: {refused}");
            let state = alice.get(path("/rooms/{}/state", &[&room.id()])).await;
            state.refused(403, "M_FORBIDDEN");
            assert!(alice.sync().await.room(&room.id()).is_null(), "{name}");
            other.behave();
            // The truth is believed after all.
            join_by(&alice, &room.id(), &other.name()).await.ok();
        }
    }

    async fn an_answer_without_an_end_is_given_up(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let endless = [
            ("a list of events", "{\"auth_chain\":[", "{\"type\":\"m.room.member\"},".repeat(2_000)),
            ("an event", "{\"state\":[{\"type\":\"", "x".repeat(65_536)),
            ("brackets", "[200,{\"x\":", "[".repeat(512)),
            ("a name", "{\"", "x".repeat(512)),
            ("servers", "{\"servers_in_room\":[\"", "x".repeat(65_536)),
        ];
        for (name, start, more) in endless {
            other.always("PUT", "/_matrix/federation/v2/send_join/", Reply::endless(start, more));
            let refused = join_by(&alice, &room.id(), &other.name()).await;
            assert_eq!(refused.status, 502, "{name}: {refused}");
            assert!(alice.sync().await.room(&room.id()).is_null(), "{name}");
        }
        other.always("PUT", "/_matrix/federation/v2/send_join/",
            Reply::bytes("{\"state\":[{}],\"auth_chain\":["));
        join_by(&alice, &room.id(), &other.name()).await.refused(502, "M_UNKNOWN");
        other.behave();
        join_by(&alice, &room.id(), &other.name()).await.ok();
    }

    async fn what_is_begun_wrongly_is_not_signed(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let cases = [
            json!({"room_version": "99", "event": {}}),
            json!({"room_version": "11"}),
            json!({"room_version": "11", "event": {"type": "m.room.member"}}),
            json!([]),
        ];
        for case in cases {
            other.always("GET", "/_matrix/federation/v1/make_join/", Reply::json(&case));
            let refused = join_by(&alice, &room.id(), &other.name()).await;
            assert_eq!(refused.status, 502, "{case}: {refused}");
        }
        assert!(other.seen("PUT", "/_matrix/federation/v2/send_join/").is_empty());
    }
}
