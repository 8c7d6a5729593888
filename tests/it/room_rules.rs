//! What rooms let their users do: relations, memberships, knocks, the rules of the config.

use chatd_kit::{SERVER_NAME, Settings, User, path, scenario};
use serde_json::{Value, json};

fn relation(rel_type: &str, parent: &str, key: &str) -> Value {
    let relates = json!({"rel_type": rel_type, "event_id": parent, "key": key});
    json!({"body": "b", "msgtype": "m.text", "m.relates_to": relates})
}

async fn react(user: &User, room: &str, txn: &str, parent: &str, key: &str) -> chatd_kit::Answer {
    let content = relation("m.annotation", parent, key);
    user.send_event(room, "m.reaction", txn, &content).await
}

async fn membership(viewer: &User, room: &str, who: &User) -> String {
    let answer = viewer.get_state(room, "m.room.member", &who.id).await;
    answer.json()["membership"].as_str().unwrap_or("none").to_owned()
}

scenario! {
    async fn a_reaction_counts_once(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let parent = alice.send(&room, "hello").await;
        let first = react(&bob, &room, "t1", &parent, "+").await.string("event_id");
        react(&bob, &room, "t2", &parent, "+").await.refused(400, "M_DUPLICATE_ANNOTATION");
        assert_eq!(react(&bob, &room, "t1", &parent, "+").await.string("event_id"), first);
        react(&bob, &room, "t3", &parent, "-").await.ok();
        react(&alice, &room, "t4", &parent, "+").await.ok();
        bob.redact(&room, &first).await.ok();
        react(&bob, &room, "t5", &parent, "+").await.ok();
        react(&bob, &room, "t6", &parent, "").await.refused(400, "M_UNKNOWN");
        react(&bob, &room, "t7", &parent, &"x".repeat(501)).await.refused(400, "M_UNKNOWN");
    }

    async fn relations_are_to_known_events_of_the_room(server: Server) {
        let alice = server.user("alice").await;
        let (room, other) = (alice.create_room().await, alice.create_room().await);
        let root = alice.send(&room, "root").await;
        let send = |room: &str, parent: &str, rel_type: &str| {
            let txn = alice.transaction();
            alice.send_event(room, "m.room.message", &txn, &relation(rel_type, parent, "k"))
        };
        for rel_type in ["m.thread", "m.reference", "m.replace", "m.annotation"] {
            send(&room, "$nobody-knows-it", rel_type).await.refused(400, "M_UNKNOWN");
            send(&other, &root, rel_type).await.refused(400, "M_UNKNOWN");
        }
        let reply = send(&room, &root, "m.thread").await.string("event_id");
        send(&room, &root, "m.thread").await.ok();
        send(&room, &reply, "m.thread").await.refused(400, "M_UNKNOWN");
        send(&room, &reply, "m.reference").await.ok();
    }

    async fn redactions_of_both_forms(server: Server) {
        let alice = server.user("alice").await;
        for version in ["10", "11"] {
            let room = alice.create_room().version(version).await;
            let event = alice.send(&room, "oops").await;
            // As an event that is sent, with the target in its content.
            let txn = alice.transaction();
            let content = json!({"redacts": event, "reason": "r"});
            alice.send_event(&room, "m.room.redaction", &txn, &content).await.ok();
            let redacted = alice.event(&room, &event).await;
            assert_eq!(redacted.ok()["content"], json!({}), "version {version}");
        }
    }

    async fn every_change_of_a_membership(server: Server) {
        let alice = server.user("alice").await;
        let dave = server.user("dave").await;
        // What Dave is, what happens, whether that is allowed, and what he is then. He has no
        // power in a room that needs an invitation; Alice has all.
        let act = async |room: &str, action: &str| match action {
            "join" => dave.join(room).await,
            "leave" => dave.leave(room).await,
            "knock" => dave.post(path("/knock/{}", &[room]), &json!({})).await,
            _ => alice.change(action, room, &dave).await,
        };
        let ways: [(&[&str], &str); 5] = [
            (&[], "none"),
            (&["invite"], "invite"),
            (&["invite", "join"], "join"),
            (&["ban"], "ban"),
            (&["invite", "leave"], "leave"),
        ];
        let outcomes: [(&str, [Option<&str>; 5]); 7] = [
            //          none            invite          join            ban             leave
            ("join",   [None,           Some("join"),   Some("join"),   None,           None]),
            ("leave",  [None,           Some("leave"),  Some("leave"),  None,           Some("leave")]),
            ("invite", [Some("invite"), Some("invite"), None,           None,           Some("invite")]),
            ("kick",   [None,           Some("leave"),  Some("leave"),  None,           None]),
            ("ban",    [Some("ban"),    Some("ban"),    Some("ban"),    Some("ban"),    Some("ban")]),
            ("unban",  [None,           None,           None,           Some("leave"),  None]),
            ("knock",  [None,           None,           None,           None,           None]),
        ];
        for (action, by_state) in outcomes {
            for ((way, before), expected) in ways.iter().zip(by_state) {
                let room = alice.create_room().await;
                for step in *way {
                    act(&room, step).await.ok();
                }
                let answer = act(&room, action).await;
                let what = format!("{action} of somebody who is {before}: {answer}");
                assert_eq!(answer.status == 200, expected.is_some(), "{what}");
                let now = membership(&alice, &room, &dave).await;
                assert_eq!(now, expected.unwrap_or(before), "{what}");
            }
        }
    }

    async fn knocks_are_for_rooms_that_allow_them(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for (version, rule, may) in [
            ("6", "knock", false),
            ("7", "knock", true),
            ("9", "knock_restricted", false),
            ("10", "knock_restricted", true),
            ("12", "knock", true),
            ("12", "invite", false),
        ] {
            let rules = json!({"join_rule": rule, "allow": []});
            let room = alice.create_room().version(version).state("m.room.join_rules", rules).await;
            let body = json!({"reason": "please"});
            let answer = bob.post(path("/knock/{}", &[&room]), &body).await;
            assert_eq!(answer.status == 200, may, "version {version}, {rule}: {answer}");
            if may {
                let member = alice.get_state(&room, "m.room.member", &bob.id).await;
                assert_eq!(member.ok()["membership"], "knock");
                assert_eq!(member.ok()["reason"], "please");
                bob.join(&room).await.refused(403, "M_FORBIDDEN");
                alice.invite(&room, &bob).await.ok();
                bob.join(&room).await.ok();
            }
        }
    }

    async fn restricted_joins_say_who_vouches(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for (version, may) in [("7", false), ("8", true), ("10", true), ("12", true)] {
            let club = alice.create_room().member(&bob).await;
            let allow = json!([{"type": "m.room_membership", "room_id": club}]);
            let rules = json!({"join_rule": "restricted", "allow": allow});
            let room = alice.create_room().version(version).state("m.room.join_rules", rules).await;
            let answer = bob.join(&room).await;
            assert_eq!(answer.status == 200, may, "version {version}: {answer}");
            if may {
                let member = alice.get_state(&room, "m.room.member", &bob.id).await;
                assert_eq!(member.ok()["join_authorised_via_users_server"], alice.id);
            }
        }
    }

    async fn rules_of_the_config_for_aliases_and_the_directory(server: Server) with (
        Settings::new()
            .with("alias_creation_rules", json!([
                {"user_id": "@eve:*", "action": "deny"},
                {"alias": "#open-*", "action": "allow"},
            ]))
            .with("room_list_publication_rules", json!([
                {"alias": "#open-*", "action": "allow"},
            ]))
    ) {
        let (alice, eve) = (server.user("alice").await, server.user("eve").await);
        let room = alice.create_room().await;
        let named = |name: &str| path("/directory/room/{}", &[&format!("#{name}:{SERVER_NAME}")]);
        let list = path("/directory/list/room/{}", &[&room]);
        let public = json!({"visibility": "public"});
        let body = json!({"room_id": room});
        alice.put(named("closed"), &body).await.refused(403, "M_FORBIDDEN");
        alice.put(list.as_str(), &public).await.refused(403, "M_FORBIDDEN");
        alice.put(named("open-a"), &body).await.ok();
        alice.put(list.as_str(), &public).await.ok();
        let his = eve.create_room().await;
        eve.put(named("open-b"), &json!({"room_id": his})).await.refused(403, "M_FORBIDDEN");
        let refused = alice.create_room().with("room_alias_name", "closed").request().await;
        refused.refused(403, "M_FORBIDDEN");
        let refused = alice.create_room().with("visibility", "public").request().await;
        refused.refused(403, "M_FORBIDDEN");
        alice.create_room().with("visibility", "public").with("room_alias_name", "open-c").await;
    }

    async fn lanes_with_small_limits_lose_nothing(server: Server) with (
        Settings::new().with("chatd", json!({
            "lane_batch_events": 3, "lane_batch_bytes": 2000, "lane_queue": 2,
        }))
    ) {
        let alice = server.user("alice").await;
        let rooms = futures::future::join_all((0..4).map(|_| alice.create_room().into_future()));
        let rooms = rooms.await;
        let sends = (0..40).map(|number| alice.send(&rooms[number % 4], "x"));
        let sent = futures::future::join_all(sends);
        let name = path("/profile/{}/displayname", &[&alice.id]);
        let renamed = async {
            alice.put(name, &json!({"displayname": "Alice the Second"})).await.ok();
        };
        let (sent, ()) = tokio::join!(sent, renamed);
        assert_eq!(sent.len(), 40);
        for room in &rooms {
            let member = alice.get_state(room, "m.room.member", &alice.id).await;
            assert_eq!(member.ok()["displayname"], "Alice the Second");
            let history = alice.history(room).await;
            let texts = history.iter().filter(|event| event["type"] == "m.room.message").count();
            assert_eq!(texts, 10);
        }
    }

    async fn version_12_rooms_have_creators(server: Server) {
        let (alice, bob, carol) =
            (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let room = alice
            .create_room()
            .preset("trusted_private_chat")
            .with("creation_content", json!({"additional_creators": [carol.id]}))
            .member(&bob)
            .await;
        let create = alice.get_state(&room, "m.room.create", "").await;
        let creators = create.ok()["additional_creators"].clone();
        assert_eq!(creators, json!([carol.id, bob.id]));
        // The id of the room is that of the event that made it.
        let all = alice.get(path("/rooms/{}/state", &[&room])).await;
        let all = all.ok().as_array().cloned().unwrap_or_default();
        let create = all.iter().find(|event| event["type"] == "m.room.create");
        let id = create.and_then(|event| event["event_id"].as_str()).unwrap_or_default();
        assert_eq!(room[1..], id[1..]);
        // Nobody takes power from a creator, and no power level may name one.
        let users = json!({"users": {&bob.id: 50}});
        alice.set_state(&room, "m.room.power_levels", "", &users).await.refused(403, "M_FORBIDDEN");
        bob.change("kick", &room, &alice).await.refused(403, "M_FORBIDDEN");
        let wrong = json!({"additional_creators": ["not a user"]});
        let answer = alice.create_room().with("creation_content", wrong).request().await;
        assert_eq!(answer.status, 400, "{answer}");
    }
}
