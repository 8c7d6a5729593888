//! Rooms that are replaced by one of another version.

use chatd_kit::{User, path, scenario};
use serde_json::{Value, json};

async fn state(user: &User, room: &str, kind: &str) -> Value {
    user.get_state(room, kind, "").await.ok().clone()
}

scenario! {
    async fn a_room_takes_the_place_of_another(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let carol = server.user("carol").await;
        let old = alice
            .create_room()
            .version("10")
            .with("name", "the name")
            .with("topic", "the topic")
            .with("room_alias_name", "parlour")
            .with("visibility", "public")
            .with("creation_content", json!({"type": "org.example.kind", "m.federate": false}))
            .state("m.room.encryption", json!({"algorithm": "m.megolm.v1.aes-sha2"}))
            .member(&bob)
            .await;
        alice.change("ban", &old, &carol).await.ok();
        let mut levels = state(&alice, &old, "m.room.power_levels").await;
        levels["users"][&bob.id] = 50.into();
        alice.set_state(&old, "m.room.power_levels", "", &levels).await.ok();
        let alias = state(&alice, &old, "m.room.canonical_alias").await;

        let new = alice.upgrade(&old, "11").await.string("replacement_room");
        let create = state(&alice, &new, "m.room.create").await;
        assert_eq!(create["room_version"], "11");
        assert_eq!(create["type"], "org.example.kind");
        assert_eq!(create["m.federate"], false);
        assert_eq!(create["predecessor"]["room_id"], old);
        assert!(create["predecessor"]["event_id"].is_string(), "{create}");
        assert_eq!(state(&alice, &new, "m.room.name").await["name"], "the name");
        assert_eq!(state(&alice, &new, "m.room.topic").await["topic"], "the topic");
        let encryption = state(&alice, &new, "m.room.encryption").await;
        assert_eq!(encryption["algorithm"], "m.megolm.v1.aes-sha2");
        assert_eq!(state(&alice, &new, "m.room.power_levels").await, levels);
        assert_eq!(state(&alice, &new, "m.room.canonical_alias").await, alias);
        let carols = alice.get_state(&new, "m.room.member", &carol.id).await;
        assert_eq!(carols.ok()["membership"], "ban");
        let name = alias["alias"].as_str().unwrap();
        let found = alice.get(path("/directory/room/{}", &[name])).await;
        assert_eq!(found.ok()["room_id"], new);
        let listed = alice.get(path("/directory/list/room/{}", &[&new])).await;
        assert_eq!(listed.ok()["visibility"], "public");
        let listed = alice.get(path("/directory/list/room/{}", &[&old])).await;
        assert_eq!(listed.ok()["visibility"], "private", "one of the two is enough");

        let tombstone = state(&bob, &old, "m.room.tombstone").await;
        assert_eq!(tombstone["replacement_room"], new);
        assert_eq!(state(&bob, &old, "m.room.canonical_alias").await, json!({}));
        let quiet = state(&bob, &old, "m.room.power_levels").await;
        assert_eq!((&quiet["events_default"], &quiet["invite"]), (&json!(50), &json!(50)));

        let again = alice.upgrade(&old, "11").await.string("replacement_room");
        assert_eq!(again, new, "a repeat makes no second room");
        assert_eq!(state(&bob, &old, "m.room.power_levels").await, quiet);
        assert_eq!(state(&alice, &new, "m.room.power_levels").await, levels);
    }

    async fn tags_and_push_rules_and_direct_chats_go_with_the_room(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let old = alice.create_room().version("10").preset("public_chat").member(&bob).await;
        let data = |user: &User, rest: &str| path("/user/{}/", &[&user.id]) + rest;
        let tags = |room: &str| path("rooms/{}/tags", &[room]);
        for user in [&alice, &bob] {
            let favourite = data(user, &(tags(&old) + "/m.favourite"));
            user.put(favourite, &json!({"order": 0.5})).await.ok();
            let direct = json!({"@somebody:else": [old], "@other:else": ["!other:else"]});
            user.put(data(user, "account_data/m.direct"), &direct).await.ok();
            let url = path("/pushrules/global/room/{}", &[&old]);
            user.put(url, &json!({"actions": []})).await.ok();
            let muted = json!({"actions": [], "conditions": [
                {"kind": "event_match", "key": "room_id", "pattern": old}]});
            user.put(path("/pushrules/global/override/{}", &[&old]), &muted).await.ok();
        }
        let new = alice.upgrade(&old, "11").await.string("replacement_room");
        bob.join(&new).await.ok();
        for user in [&alice, &bob] {
            let found = user.get(data(user, &tags(&new))).await;
            assert_eq!(found.ok()["tags"], json!({"m.favourite": {"order": 0.5}}));
            let direct = user.get(data(user, "account_data/m.direct")).await;
            assert_eq!(*direct.ok(),
                json!({"@somebody:else": [old, new], "@other:else": ["!other:else"]}));
            user.get(path("/pushrules/global/room/{}", &[&new])).await.ok();
            let muted = user.get(path("/pushrules/global/override/{}", &[&new])).await;
            assert_eq!(muted.ok()["conditions"][0]["pattern"], new);
        }
        // What somebody takes away stays away.
        bob.delete(data(&bob, &(tags(&new) + "/m.favourite"))).await.ok();
        bob.join(&new).await.ok();
        assert_eq!(bob.get(data(&bob, &tags(&new))).await.ok()["tags"], json!({}));
    }

    async fn levels_that_are_texts_become_numbers(server: Server) {
        let alice = server.user("alice").await;
        let old = alice.create_room().version("9").await;
        let mut levels = state(&alice, &old, "m.room.power_levels").await;
        let expected = levels.clone();
        for field in ["users_default", "state_default", "ban"] {
            levels[field] = levels[field].to_string().into();
        }
        levels["users"][&alice.id] = "100".into();
        levels["events"]["m.room.name"] = levels["events"]["m.room.name"].to_string().into();
        alice.set_state(&old, "m.room.power_levels", "", &levels).await.ok();
        let same = alice.upgrade(&old, "9").await.string("replacement_room");
        assert_eq!(state(&alice, &same, "m.room.power_levels").await, levels);
        let new = alice.upgrade(&same, "11").await.string("replacement_room");
        assert_eq!(state(&alice, &new, "m.room.power_levels").await, expected);
    }

    async fn a_moderator_replaces_a_room_and_stays_one(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let old = alice.create_room().version("10").member(&bob).await;
        let mut levels = state(&alice, &old, "m.room.power_levels").await;
        levels["users"][&bob.id] = 50.into();
        levels["events"]["m.room.tombstone"] = 50.into();
        alice.set_state(&old, "m.room.power_levels", "", &levels).await.ok();
        let new = bob.upgrade(&old, "11").await.string("replacement_room");
        assert_eq!(state(&bob, &new, "m.room.power_levels").await, levels);
        assert_eq!(state(&alice, &old, "m.room.tombstone").await["replacement_room"], new);
    }

    async fn creators_come_and_go_with_the_version(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().version("11").member(&bob).await;
        let body = json!({"new_version": "12", "additional_creators": [&bob.id]});
        let url = path("/rooms/{}/upgrade", &[&room]);
        let newer = alice.post(url, &body).await.string("replacement_room");
        let create = state(&alice, &newer, "m.room.create").await;
        assert_eq!(create["additional_creators"], json!([bob.id]));
        let levels = state(&alice, &newer, "m.room.power_levels").await;
        assert_eq!(levels["users"], json!({}), "creators are above all levels");
        let older = alice.upgrade(&newer, "10").await.string("replacement_room");
        let levels = state(&alice, &older, "m.room.power_levels").await;
        assert!(levels["users"][&alice.id].as_i64() >= Some(100), "{levels}");
        let create = state(&alice, &older, "m.room.create").await;
        assert!(create["additional_creators"].is_null(), "{create}");
        assert_eq!(create["predecessor"]["room_id"], newer);
    }

    async fn not_everybody_replaces_rooms(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().version("10").member(&bob).await;
        bob.upgrade(&room, "11").await.refused(403, "M_FORBIDDEN");
        let carol = server.user("carol").await;
        carol.upgrade(&room, "11").await.refused(403, "M_FORBIDDEN");
        alice.upgrade(&room, "13").await.refused(400, "M_UNSUPPORTED_ROOM_VERSION");
        alice.post(path("/rooms/{}/upgrade", &[&room]), &json!({})).await.refused(400, "M_MISSING_PARAM");
        alice.get_state(&room, "m.room.tombstone", "").await.refused(404, "M_NOT_FOUND");
        bob.leave(&room).await.ok();
        bob.upgrade(&room, "11").await.refused(403, "M_FORBIDDEN");
    }
}
