//! What a sync leaves out, and in which form it tells the rest: ignored users, excluded rooms,
//! urls, the federation format.

use chatd_kit::{scenario, sync::ids};
use serde_json::{Value, json};

fn chunk(page: &Value) -> Vec<Value> {
    page["chunk"].as_array().cloned().unwrap_or_default()
}

scenario! {
    async fn ignored_users_are_not_heard(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().member(&bob).member(&eve).await;
        let list = json!({"ignored_users": {&eve.id: {}}});
        alice.set_account_data("m.ignored_user_list", &list).await.ok();
        let before = alice.sync().await;
        let unread = before.room(&room)["unread_notifications"]["notification_count"].clone();

        let invitation = eve.create_room().invite(&alice).await;
        let noise = eve.send(&room, "noise").await;
        eve.set_state(&room, "m.room.member", &eve.id, &json!({
            "membership": "join", "displayname": "still a member",
        })).await.ok();
        let heard = bob.send(&room, "hello").await;

        let synced = alice.sync().since(&before.next_batch()).await;
        let timeline = synced.timeline_ids(&room);
        assert!(timeline.contains(&heard) && !timeline.contains(&noise), "{timeline:?}");
        assert_eq!(timeline.len(), 2, "state of ignored users is told");
        assert!(synced.section("invite", &invitation).is_null());
        let first = alice.sync().await;
        assert!(!first.timeline_ids(&room).contains(&noise));
        assert!(first.section("invite", &invitation).is_null());
        let counts = &first.room(&room)["unread_notifications"]["notification_count"];
        assert_eq!(counts.as_u64(), unread.as_u64().map(|count| count + 1));
        let page = alice.messages(&room, "b").query("limit", 100).await;
        let page = ids(&chunk(page.ok()));
        assert!(page.contains(&heard) && !page.contains(&noise));
        assert!(ids(&bob.history(&room).await).contains(&noise), "others hear them");
    }

    async fn urls_are_found_up_to_the_limit(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let mut pictures = Vec::new();
        for number in 0..4 {
            let picture = json!({"msgtype": "m.image", "body": "p", "url": "mxc://test.local/abc"});
            let sent = alice.send_event(&room, "m.room.message", &format!("p{number}"), &picture);
            pictures.push(sent.await.string("event_id"));
            // Only looks as if it had one.
            let decoy = json!({"msgtype": "m.text", "body": "\"url\"", "x": {"url": "y"}});
            alice.send_event(&room, "m.room.message", &format!("d{number}"), &decoy).await.ok();
        }
        alice.redact(&room, &pictures.remove(3)).await.ok();
        let filter = json!({"room": {"timeline": {"contains_url": true, "limit": 2}}});
        let synced = alice.sync().filter(&filter).await;
        assert_eq!(synced.timeline_ids(&room), &pictures[1..]);
        assert_eq!(synced.room(&room)["timeline"]["limited"], true);
        let filter = json!({"contains_url": true});
        let page = alice.messages(&room, "b").query("filter", &filter).query("limit", 3).await;
        pictures.reverse();
        assert_eq!(ids(&chunk(page.ok())), pictures);
    }

    async fn events_come_in_the_federation_format(server: Server) {
        let alice = server.user("alice").await;
        let filter = json!({"event_format": "federation"});
        for version in ["1", "10", "12"] {
            let room = alice.create_room().version(version).await;
            let sent = alice.send(&room, "hello").await;
            // These are not what the schemas call events.
            let synced = alice.sync().filter(&filter).unchecked().await;
            let all = [synced.state(&room), synced.timeline(&room)].concat();
            for event in &all {
                for member in ["auth_events", "prev_events", "hashes", "signatures", "depth"] {
                    assert!(!event[member].is_null(), "{version}: no {member} in {event}");
                }
                assert_eq!(event["event_id"].is_string(), version == "1", "{event}");
                let is_create = event["type"] == "m.room.create";
                assert_eq!(event["room_id"].is_string(), !(is_create && version == "12"));
            }
            let (last, one_before) = (&all[all.len() - 1], &all[all.len() - 2]);
            assert_eq!(last["content"]["body"], "hello");
            assert_eq!(last["prev_events"].as_array().map_or(0, Vec::len), 1);
            if version == "1" {
                assert_eq!(last["event_id"], sent);
                assert_eq!(last["prev_events"][0][0], one_before["event_id"]);
            }
        }
    }

    async fn excluded_rooms_are_in_no_sync(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (room, other) =
            (alice.create_room().member(&bob).await, alice.create_room().member(&bob).await);
        let invitation = alice.create_room().invite(&bob).await;
        assert!(server.sigterm().await.expect("it ends").success());
        let file = server.folder().join("homeserver.yaml");
        let text = std::fs::read_to_string(&file).expect("the configuration");
        let mut config: Value = serde_json::from_str(&text).expect("it is JSON as well");
        config["exclude_rooms_from_sync"] = json!([room, invitation]);
        std::fs::write(&file, config.to_string()).expect("the configuration is written");
        server.restart().await.expect("it starts again");

        let mut feed = bob.feed().await;
        assert!(feed.first.room(&room).is_null() && feed.first.room(&other).is_object());
        assert!(feed.first.section("invite", &invitation).is_null());
        let sent = alice.send(&room, "hello").await;
        bob.read(&room, &sent).await.ok();
        alice.typing(&room, true).await.ok();
        let seen = alice.send(&other, "hello").await;
        feed.until("the other room", |synced| {
            assert!(synced.room(&room).is_null(), "{synced:?}");
            synced.timeline_ids(&other).contains(&seen).then_some(())
        })
        .await;
        assert!(ids(&bob.history(&room).await).contains(&sent), "it can be read all the same");
    }
}
