//! Rooms: every preset and field of createRoom, ways in and out, aliases and the directory, every
//! room version.

use chatd_kit::{SERVER_NAME, User, path, scenario};
use serde_json::{Value, json};

/// The membership of `who`, as `viewer` sees it.
async fn membership(viewer: &User, room: &str, who: &User) -> String {
    viewer.get_state(room, "m.room.member", &who.id).await.string("membership")
}

/// The content of a piece of state without a key.
async fn state(viewer: &User, room: &str, kind: &str) -> Value {
    viewer.get_state(room, kind, "").await.ok().clone()
}

scenario! {
    async fn presets_set_who_may_join_and_read(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for (preset, join_rule, visibility, guests, bobs_power) in [
            ("private_chat", "invite", "shared", "can_join", None),
            ("trusted_private_chat", "invite", "shared", "can_join", Some(100)),
            ("public_chat", "public", "shared", "forbidden", None),
        ] {
            let room = alice.create_room().preset(preset).version("11").invite(&bob).await;
            assert_eq!(state(&alice, &room, "m.room.join_rules").await["join_rule"], join_rule);
            let history = state(&alice, &room, "m.room.history_visibility").await;
            assert_eq!(history["history_visibility"], visibility);
            let found = alice.get_state(&room, "m.room.guest_access", "").await;
            let found = found.json()["guest_access"].as_str().unwrap_or("forbidden");
            assert_eq!(found, guests);
            let power = state(&alice, &room, "m.room.power_levels").await;
            assert_eq!(power["users"][&alice.id], 100);
            assert_eq!(power["users"][&bob.id].as_i64(), bobs_power, "{preset}");
            assert_eq!(membership(&alice, &room, &bob).await, "invite");
        }
    }

    async fn every_field_of_create_room_is_used(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice
            .create_room()
            .with("name", "the name")
            .with("topic", "the topic")
            .with("room_alias_name", "kitchen")
            .with("visibility", "public")
            .with("is_direct", true)
            .with("creation_content", json!({"m.federate": false, "type": "m.space"}))
            .with("power_level_content_override", json!({"events_default": 7, "kick": 33}))
            .state("m.room.guest_access", json!({"guest_access": "can_join"}))
            .state("org.example.flag", json!({"flag": 1}))
            .version("11")
            .invite(&bob)
            .await;
        let create = state(&alice, &room, "m.room.create").await;
        assert_eq!(create["m.federate"], false);
        assert_eq!(create["type"], "m.space");
        assert_eq!(create["room_version"], "11");
        assert_eq!(state(&alice, &room, "m.room.name").await["name"], "the name");
        assert_eq!(state(&alice, &room, "m.room.topic").await["topic"], "the topic");
        let alias = format!("#kitchen:{SERVER_NAME}");
        let canonical = state(&alice, &room, "m.room.canonical_alias").await;
        assert_eq!(canonical["alias"], alias);
        let power = state(&alice, &room, "m.room.power_levels").await;
        assert_eq!((&power["events_default"], &power["kick"]), (&json!(7), &json!(33)));
        assert_eq!(power["users"][&alice.id], 100, "the override leaves the rest alone");
        let guests = state(&alice, &room, "m.room.guest_access").await;
        assert_eq!(guests["guest_access"], "can_join");
        assert_eq!(state(&alice, &room, "org.example.flag").await["flag"], 1);
        let invited = alice.get_state(&room, "m.room.member", &bob.id).await;
        assert_eq!(invited.ok()["is_direct"], true);
        // Visibility "public" without a preset is a public chat.
        assert_eq!(state(&alice, &room, "m.room.join_rules").await["join_rule"], "public");
        let found = bob.get(path("/directory/room/{}", &[&alias])).await;
        assert_eq!(found.string("room_id"), room);
    }

    async fn create_room_refuses_what_cannot_be(server: Server) {
        let alice = server.user("alice").await;
        let refused = |field: &str, value: Value| alice.create_room().with(field, value).request();
        refused("room_version", json!("no such")).await.refused(400, "M_UNSUPPORTED_ROOM_VERSION");
        assert_eq!(refused("invite", json!(["not a user"])).await.status, 400);
        assert_eq!(refused("preset", json!("chaos")).await.status, 400);
        assert_eq!(refused("room_alias_name", json!("with:colon")).await.status, 400);
        assert_eq!(refused("name", json!(7)).await.status, 400);
        alice.create_room().with("room_alias_name", "taken").await;
        refused("room_alias_name", json!("taken")).await.refused(400, "M_ROOM_IN_USE");
        let power = json!({"users": {&alice.id: "not a number"}});
        assert_eq!(refused("power_level_content_override", power).await.status, 400);
    }

    async fn every_room_version_works(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for version in 1..=12 {
            let version = version.to_string();
            let room = alice.create_room().version(&version).member(&bob).await;
            let create = state(&alice, &room, "m.room.create").await;
            assert_eq!(create["room_version"].as_str().unwrap_or("1"), version);
            let has_server_part = version != "12";
            assert_eq!(room.contains(':'), has_server_part, "{room} of version {version}");
            let sent = bob.send(&room, "hello").await;
            assert_eq!(alice.event(&room, &sent).await.ok()["content"]["body"], "hello");
            alice.set_state(&room, "m.room.topic", "", &json!({"topic": "t"})).await.ok();
            let redaction = bob.redact(&room, &sent).await.string("event_id");
            let redacted = alice.event(&room, &sent).await;
            assert_eq!(redacted.ok()["content"], json!({}), "version {version}");
            assert_eq!(redacted.ok()["unsigned"]["redacted_because"]["event_id"], redaction);
            alice.change("kick", &room, &bob).await.ok();
            assert_eq!(membership(&alice, &room, &bob).await, "leave");
            bob.join(&room).await.refused(403, "M_FORBIDDEN");
        }
    }

    async fn the_default_room_version_is_12(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let create = state(&alice, &room, "m.room.create").await;
        assert_eq!(create["room_version"], "12");
        // Creators stand above every power level and are not listed.
        let power = state(&alice, &room, "m.room.power_levels").await;
        assert!(power["users"][&alice.id].is_null(), "{power}");
        alice.set_state(&room, "m.room.topic", "", &json!({"topic": "t"})).await.ok();
    }

    async fn people_come_and_go(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        bob.join(&room).await.refused(403, "M_FORBIDDEN");
        alice.invite(&room, &bob).await.ok();
        assert_eq!(bob.join(&room).await.string("room_id"), room);
        assert_eq!(bob.join(&room).await.string("room_id"), room, "joining again changes nothing");
        alice.invite(&room, &bob).await.refused(403, "M_FORBIDDEN");
        bob.leave(&room).await.ok();
        bob.send_text(&room, "I am gone").await.refused(403, "M_FORBIDDEN");
        assert_eq!(membership(&alice, &room, &bob).await, "leave");
        bob.join(&room).await.refused(403, "M_FORBIDDEN");

        alice.invite(&room, &bob).await.ok();
        bob.leave(&room).await.ok();
        assert_eq!(membership(&alice, &room, &bob).await, "leave", "an invitation is rejected");
    }

    async fn kicks_and_bans_need_power(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.public_room().await;
        for user in [&bob, &eve] {
            user.join(&room).await.ok();
        }
        for action in ["kick", "ban"] {
            bob.change(action, &room, &eve).await.refused(403, "M_FORBIDDEN");
        }
        alice.change("kick", &room, &eve).await.ok();
        eve.join(&room).await.ok();
        alice.change("ban", &room, &eve).await.ok();
        assert_eq!(membership(&alice, &room, &eve).await, "ban");
        assert_eq!(eve.join(&room).await.status, 403);
        assert_eq!(alice.invite(&room, &eve).await.status, 403);
        bob.change("unban", &room, &eve).await.refused(403, "M_FORBIDDEN");
        alice.change("unban", &room, &eve).await.ok();
        assert_eq!(membership(&alice, &room, &eve).await, "leave");
        eve.join(&room).await.ok();
    }

    async fn reasons_travel_with_memberships(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.public_room().await;
        let url = path("/join/{}", &[&room]);
        bob.post(url, &json!({"reason": "curious"})).await.ok();
        let member = alice.get_state(&room, "m.room.member", &bob.id).await;
        assert_eq!(member.ok()["reason"], "curious");
        let url = path("/rooms/{}/kick", &[&room]);
        alice.post(url, &json!({"user_id": bob.id, "reason": "noise"})).await.ok();
        let member = alice.get_state(&room, "m.room.member", &bob.id).await;
        assert_eq!(member.ok()["reason"], "noise");
    }

    async fn a_forgotten_room_is_gone_from_view(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        bob.forget(&room).await.refused(400, "M_UNKNOWN");
        bob.leave(&room).await.ok();
        bob.messages(&room, "b").await.ok();
        bob.forget(&room).await.ok();
        bob.messages(&room, "b").await.refused(403, "M_FORBIDDEN");
        let filter = json!({"room": {"include_leave": true}});
        let synced = bob.sync().filter(&filter).await;
        assert!(synced.section("leave", &room).is_null());
        alice.invite(&room, &bob).await.ok();
        bob.join(&room).await.ok();
        bob.messages(&room, "b").await.ok();
    }

    async fn state_is_set_read_and_guarded(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let first = alice.set_state(&room, "org.example.x", "key", &json!({"n": 1})).await;
        let again = alice.set_state(&room, "org.example.x", "key", &json!({"n": 1})).await;
        assert_eq!(first.string("event_id"), again.string("event_id"), "nothing has changed");
        assert_eq!(bob.get_state(&room, "org.example.x", "key").await.ok()["n"], 1);
        bob.get_state(&room, "org.example.x", "other").await.refused(404, "M_NOT_FOUND");
        bob.set_state(&room, "org.example.x", "key", &json!({})).await.refused(403, "M_FORBIDDEN");
        alice.set_state(&room, "org.example.x", &bob.id, &json!({})).await.refused(403, "M_FORBIDDEN");
        // Both spellings of an empty state key.
        alice.put(path("/rooms/{}/state/org.example.y", &[&room]), &json!({"n": 2})).await.ok();
        let with_slash = alice.get(path("/rooms/{}/state/org.example.y/", &[&room])).await;
        assert_eq!(with_slash.ok()["n"], 2);
        let whole = alice
            .get(path("/rooms/{}/state/org.example.x/key", &[&room]))
            .query("format", "event")
            // The schema is a `oneOf` whose first branch takes any object.
            .unchecked()
            .await;
        assert_eq!(whole.ok()["event_id"], first.string("event_id"));
        let all = bob.get(path("/rooms/{}/state", &[&room])).await;
        let all = all.ok().as_array().cloned().unwrap_or_default();
        for kind in ["m.room.create", "m.room.power_levels", "org.example.x", "org.example.y"] {
            assert!(chatd_kit::sync::has_type(&all, kind), "{kind}");
        }
    }

    async fn a_redaction_takes_the_content_only(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let event = bob.send(&room, "oops").await;
        let others = alice.send(&room, "mine").await;
        bob.redact(&room, &others).await.refused(403, "M_FORBIDDEN");
        let txn = alice.transaction();
        let url = path("/rooms/{}/redact/{}/{}", &[&room, &event, &txn]);
        let first = alice.put(url.as_str(), &json!({"reason": "rude"})).await;
        let again = alice.put(url, &json!({"reason": "rude"})).await;
        assert_eq!(first.string("event_id"), again.string("event_id"));
        let redacted = bob.event(&room, &event).await;
        assert_eq!(redacted.ok()["content"], json!({}));
        assert_eq!(redacted.ok()["sender"], bob.id);
        let because = &redacted.ok()["unsigned"]["redacted_because"];
        assert_eq!(because["content"]["reason"], "rude");
        let in_history = bob.history(&room).await;
        let found = in_history.iter().find(|found| found["event_id"] == event);
        assert_eq!(found.expect("the event stays")["content"], json!({}));
    }

    async fn aliases_point_to_rooms(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.public_room().await;
        let alias = format!("#pantry:{SERVER_NAME}");
        let url = path("/directory/room/{}", &[&alias]);
        bob.get(url.as_str()).await.refused(404, "M_NOT_FOUND");
        bob.put(url.as_str(), &json!({"room_id": room})).await.refused(403, "M_FORBIDDEN");
        alice.put(url.as_str(), &json!({"room_id": room})).await.ok();
        alice.put(url.as_str(), &json!({"room_id": room})).await.refused(409, "M_UNKNOWN");
        let found = server.request("GET", url.as_str()).await;
        assert_eq!(found.string("room_id"), room, "no token is needed");
        assert_eq!(found.ok()["servers"], json!([SERVER_NAME]));
        assert_eq!(bob.join(&alias).await.string("room_id"), room);
        let listed = bob.get(path("/rooms/{}/aliases", &[&room])).await;
        assert_eq!(listed.ok()["aliases"], json!([alias]));
        alice.set_state(&room, "m.room.canonical_alias", "", &json!({"alias": alias})).await.ok();
        let absent = json!({"alias": format!("#absent:{SERVER_NAME}")});
        let answer = alice.set_state(&room, "m.room.canonical_alias", "", &absent).await;
        answer.refused(400, "M_BAD_ALIAS");
        bob.delete(url.as_str()).await.refused(403, "M_FORBIDDEN");
        alice.delete(url.as_str()).await.ok();
        alice.get(url).await.refused(404, "M_NOT_FOUND");
        let canonical = state(&alice, &room, "m.room.canonical_alias").await;
        assert!(canonical["alias"].is_null(), "a deleted alias is no longer canonical");
        bob.join(&alias).await.refused(404, "M_NOT_FOUND");
    }

    async fn the_directory_lists_public_rooms(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let hidden = alice.public_room().await;
        let mut shown = Vec::new();
        for name in ["apples", "pears", "plums"] {
            let room = alice
                .create_room()
                .preset("public_chat")
                .with("visibility", "public")
                .with("name", name)
                .with("topic", format!("all about {name}"))
                .await;
            shown.push(room);
        }
        bob.join(&shown[1]).await.ok();
        let all = bob.get("/publicRooms").await;
        assert_eq!(all.ok()["total_room_count_estimate"], 3);
        let chunk = all.ok()["chunk"].as_array().cloned().unwrap_or_default();
        assert_eq!(chunk[0]["room_id"], shown[1], "the largest comes first");
        assert_eq!((&chunk[0]["num_joined_members"], &chunk[0]["name"]), (&json!(2), &json!("pears")));
        assert!(!chunk.iter().any(|room| room["room_id"] == hidden));

        let search = json!({"filter": {"generic_search_term": "PLUMS"}});
        let found = bob.post("/publicRooms", &search).await;
        assert_eq!(found.ok()["chunk"][0]["room_id"], shown[2]);
        assert_eq!(found.ok()["chunk"].as_array().map(Vec::len), Some(1));

        let (mut seen, mut since) = (Vec::new(), None::<String>);
        loop {
            let mut request = bob.get("/publicRooms").query("limit", 1);
            if let Some(since) = &since {
                request = request.query("since", since);
            }
            let page = request.await;
            let chunk = page.ok()["chunk"].as_array().cloned().unwrap_or_default();
            seen.extend(chunk.into_iter().map(|room| room["room_id"].clone()));
            since = page.ok()["next_batch"].as_str().map(str::to_owned);
            if since.is_none() {
                break;
            }
        }
        let mut seen: Vec<_> = seen.iter().filter_map(Value::as_str).collect();
        seen.sort_unstable();
        shown.sort_unstable();
        assert_eq!(seen, shown);
    }

    async fn visibility_in_the_directory_can_be_changed(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.public_room().await;
        let url = path("/directory/list/room/{}", &[&room]);
        assert_eq!(server.request("GET", url.as_str()).await.ok()["visibility"], "private");
        bob.put(url.as_str(), &json!({"visibility": "public"})).await.refused(403, "M_FORBIDDEN");
        alice.put(url.as_str(), &json!({"visibility": "public"})).await.ok();
        assert_eq!(server.request("GET", url.as_str()).await.ok()["visibility"], "public");
        let absent = format!("!absent:{SERVER_NAME}");
        let answer = alice.get(path("/directory/list/room/{}", &[&absent])).await;
        answer.refused(404, "M_NOT_FOUND");
    }

    async fn restricted_rooms_let_members_of_another_room_in(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let club = alice.create_room().member(&bob).await;
        let rules = json!({
            "join_rule": "restricted",
            "allow": [{"type": "m.room_membership", "room_id": club}],
        });
        let room = alice.create_room().state("m.room.join_rules", rules).await;
        bob.join(&room).await.ok();
        eve.join(&room).await.refused(403, "M_FORBIDDEN");
    }

    async fn joined_rooms_lists_what_is_joined(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        alice.create_room().invite(&bob).await;
        assert_eq!(bob.get("/joined_rooms").await.ok()["joined_rooms"], json!([room]));
        bob.leave(&room).await.ok();
        assert_eq!(bob.get("/joined_rooms").await.ok()["joined_rooms"], json!([]));
    }
}
