//! What is here now and gone later: typing, receipts, read markers, presence; and unread counts.

use chatd_kit::{Cost, Feed, Settings, User, path, scenario, sync::has_type};
use serde_json::{Value, json};

/// Who is typing, once the feed says so.
async fn typing(feed: &mut Feed, room: &str) -> Vec<String> {
    feed.until("typing", |synced| {
        let event = synced.ephemeral_of(room, "m.typing")?;
        let users = event["content"]["user_ids"].as_array()?;
        Some(users.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    })
    .await
}

/// The receipts of one kind for `event`, once the feed has some.
async fn receipts(feed: &mut Feed, room: &str, event: &str, kind: &str) -> Value {
    feed.until("a receipt", |synced| {
        let receipt = synced.ephemeral_of(room, "m.receipt")?;
        let found = receipt["content"][event][kind].clone();
        found.is_object().then_some(found)
    })
    .await
}

async fn send_receipt(user: &User, room: &str, kind: &str, event: &str, body: &Value) {
    user.post(path("/rooms/{}/receipt/{}/{}", &[room, kind, event]), body).await.ok();
}

/// Unread counts of a room in a first sync.
async fn unread(user: &User, room: &str) -> (u64, u64) {
    let synced = user.sync().await;
    let counts = &synced.room(room)["unread_notifications"];
    let count = |name: &str| counts[name].as_u64().unwrap_or_default();
    (count("notification_count"), count("highlight_count"))
}

scenario! {
    async fn typing_is_seen_and_ends(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        alice.typing(&room, true).await.ok();
        assert_eq!(typing(&mut feed, &room).await, [alice.id.as_str()]);
        alice.typing(&room, false).await.ok();
        assert!(typing(&mut feed, &room).await.is_empty());
        // It ends by itself.
        let url = path("/rooms/{}/typing/{}", &[&room, &alice.id]);
        alice.put(url.as_str(), &json!({"typing": true, "timeout": 300})).await.ok();
        assert_eq!(typing(&mut feed, &room).await, [alice.id.as_str()]);
        assert!(typing(&mut feed, &room).await.is_empty());
        // So it does when what was typed is sent, and when the user leaves.
        alice.typing(&room, true).await.ok();
        assert_eq!(typing(&mut feed, &room).await, [alice.id.as_str()]);
        alice.send(&room, "here it is").await;
        assert!(typing(&mut feed, &room).await.is_empty());
        let again = alice.typing(&room, true).await;
        again.ok();
        assert_eq!(again.cost(), Cost::ZERO, "who has been in the room needs no query");
        assert_eq!(typing(&mut feed, &room).await, [alice.id.as_str()]);
        alice.leave(&room).await.ok();
        assert!(typing(&mut feed, &room).await.is_empty());
        alice.typing(&room, true).await.refused(403, "M_FORBIDDEN");
        assert_eq!(bob.put(url, &json!({"typing": true})).await.errcode(), "M_FORBIDDEN");
        eve.typing(&room, true).await.refused(403, "M_FORBIDDEN");
    }

    async fn a_public_receipt_is_seen_by_all(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let sent = alice.send(&room, "hello").await;
        let mut feed = alice.feed().await;
        bob.read(&room, &sent).await.ok();
        let found = receipts(&mut feed, &room, &sent, "m.read").await;
        assert!(found[&bob.id]["ts"].as_u64().is_some(), "{found}");
        // A first sync has it as well.
        let first = alice.sync().await;
        let receipt = first.ephemeral_of(&room, "m.receipt").expect("the receipt");
        assert!(receipt["content"][&sent]["m.read"][&bob.id].is_object());
    }

    async fn a_private_receipt_is_seen_by_its_owner(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let sent = alice.send(&room, "hello").await;
        let (mut hers, mut his) = (alice.feed().await, bob.feed().await);
        send_receipt(&bob, &room, "m.read.private", &sent, &json!({})).await;
        let found = receipts(&mut his, &room, &sent, "m.read.private").await;
        assert!(found[&bob.id].is_object());
        let marker = alice.send(&room, "later").await;
        bob.read(&room, &marker).await.ok();
        let mut seen = Vec::new();
        hers.until("the public receipt", |synced| {
            seen.extend(synced.ephemeral(&room));
            synced.ephemeral_of(&room, "m.receipt")
        })
        .await;
        assert!(!json!(seen).to_string().contains("m.read.private"), "{seen:?}");
    }

    async fn receipts_are_kept_for_each_thread(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let root = alice.send(&room, "root").await;
        let relation = json!({"rel_type": "m.thread", "event_id": root});
        let content = json!({"msgtype": "m.text", "body": "t", "m.relates_to": relation});
        let reply = alice.send_event(&room, "m.room.message", "r", &content).await;
        let reply = reply.string("event_id");
        let mut feed = alice.feed().await;
        send_receipt(&bob, &room, "m.read", &root, &json!({"thread_id": "main"})).await;
        let found = receipts(&mut feed, &room, &root, "m.read").await;
        assert_eq!(found[&bob.id]["thread_id"], "main");
        send_receipt(&bob, &room, "m.read", &reply, &json!({"thread_id": root})).await;
        let found = receipts(&mut feed, &room, &reply, "m.read").await;
        assert_eq!(found[&bob.id]["thread_id"], root);
        let first = alice.sync().await;
        let both = first.ephemeral_of(&room, "m.receipt").expect("both receipts");
        assert!(both["content"][&root].is_object() && both["content"][&reply].is_object());
        let url = path("/rooms/{}/receipt/m.read/{}", &[&room, &root]);
        for wrong in [json!({"thread_id": ""}), json!({"thread_id": 7})] {
            assert_eq!(bob.post(url.as_str(), &wrong).await.status, 400, "{wrong}");
        }
        // An event has its receipts in its own thread; what relates to it is there too.
        let reaction = json!({
            "m.relates_to": {"rel_type": "m.annotation", "event_id": reply, "key": "+"},
        });
        let reaction = alice.send_event(&room, "m.reaction", "r", &reaction).await.string("event_id");
        send_receipt(&bob, &room, "m.read", &reaction, &json!({"thread_id": root})).await;
        for (event, thread) in [(&reply, "main"), (&reaction, "main"), (&reply, "$other")] {
            let url = path("/rooms/{}/receipt/m.read/{}", &[&room, event]);
            let answer = bob.post(url, &json!({"thread_id": thread})).await;
            answer.refused(400, "M_INVALID_PARAM");
        }
        let url = path("/rooms/{}/receipt/m.nonsense/{}", &[&room, &root]);
        assert_eq!(bob.post(url, &json!({})).await.status, 400);
    }

    async fn read_markers_set_all_three(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let first = alice.send(&room, "one").await;
        let second = alice.send(&room, "two").await;
        let mut feed = bob.feed().await;
        let body = json!({"m.fully_read": first, "m.read": second, "m.read.private": second});
        bob.post(path("/rooms/{}/read_markers", &[&room]), &body).await.ok();
        let url = path("/user/{}/rooms/{}/account_data/m.fully_read", &[&bob.id, &room]);
        assert_eq!(bob.get(url).await.ok()["event_id"], first);
        feed.until("the marker", |synced| {
            let data = chatd_kit::sync::events(&synced.room(&room)["account_data"]);
            has_type(&data, "m.fully_read").then_some(())
        })
        .await;
        let first = bob.sync().await;
        let receipt = first.ephemeral_of(&room, "m.receipt").expect("receipts");
        for kind in ["m.read", "m.read.private"] {
            assert!(receipt["content"][&second][kind][&bob.id].is_object(), "{kind}: {receipt}");
        }
    }

    async fn unread_counts_rise_and_are_reset(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().with("name", "k").member(&bob).await;
        let third = server.user("third").await;
        alice.invite(&room, &third).await.ok();
        third.join(&room).await.ok();
        let before = unread(&bob, &room).await;
        assert_eq!(before.1, 0);
        alice.send(&room, "one").await;
        let mention = json!({
            "msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": [bob.id]},
        });
        let last = alice.send_event(&room, "m.room.message", "m", &mention).await;
        let last = last.string("event_id");
        assert_eq!(unread(&bob, &room).await, (before.0 + 2, 1));
        assert_eq!(unread(&alice, &room).await, (0, 0), "her own messages do not count");
        let mut feed = bob.feed().await;
        bob.read(&room, &last).await.ok();
        feed.until("the reset", |synced| {
            let counts = &synced.room(&room)["unread_notifications"];
            (counts["notification_count"] == 0 && counts["highlight_count"] == 0).then_some(())
        })
        .await;
        alice.send(&room, "three").await;
        assert_eq!(unread(&bob, &room).await, (1, 0));
    }

    async fn unread_counts_of_threads_are_apart_when_asked_for(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let root = bob.send(&room, "root").await;
        let relation = json!({"rel_type": "m.thread", "event_id": root});
        let content = json!({"msgtype": "m.text", "body": "t", "m.relates_to": relation});
        alice.send_event(&room, "m.room.message", "r", &content).await.ok();
        alice.send(&room, "in the room").await;
        let filter = json!({"room": {"timeline": {"unread_thread_notifications": true}}});
        let synced = bob.sync().filter(&filter).await;
        let counts = synced.room(&room);
        assert_eq!(counts["unread_notifications"]["notification_count"], 1);
        assert_eq!(counts["unread_thread_notifications"][&root]["notification_count"], 1);
        let synced = bob.sync().await;
        let counts = synced.room(&room);
        assert_eq!(counts["unread_notifications"]["notification_count"], 2);
    }

    async fn presence_is_seen_by_those_who_share_a_room(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        let url = path("/presence/{}/status", &[&alice.id]);
        let body = json!({"presence": "unavailable", "status_msg": "at lunch"});
        alice.put(url.as_str(), &body).await.ok();
        let seen = feed
            .until("presence", |synced| {
                synced.presence().into_iter().find(|event| {
                    event["sender"] == alice.id && event["content"]["status_msg"] == "at lunch"
                })
            })
            .await;
        assert_eq!(seen["content"]["presence"], "unavailable");
        let asked = bob.get(url.as_str()).await;
        assert_eq!(asked.ok()["status_msg"], "at lunch");
        eve.get(url.as_str()).await.refused(403, "M_FORBIDDEN");
        bob.put(url.as_str(), &json!({"presence": "online"})).await.refused(403, "M_FORBIDDEN");
        assert_eq!(alice.put(url, &json!({"presence": "sleepy"})).await.status, 400);
    }

    async fn a_sync_sets_presence(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        alice.sync().with("set_presence", "online").await;
        feed.until("alice online", |synced| {
            synced
                .presence()
                .into_iter()
                .find(|e| e["sender"] == alice.id && e["content"]["presence"] == "online")
        })
        .await;
        let url = path("/presence/{}/status", &[&alice.id]);
        assert_eq!(bob.get(url).await.ok()["presence"], "online");
    }

    async fn presence_that_is_off_is_asked_for_in_vain(server: Server)
    with (Settings::new().with("presence", json!({"enabled": false}))) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let url = || path("/presence/{}/status", &[&alice.id]);
        // Clients ask for it all the time, and are not to show an error for it.
        alice.put(url(), &json!({"presence": "online", "status_msg": "here"})).await.ok();
        assert_eq!(*bob.get(url()).await.ok(), json!({"presence": "offline"}));
        let event = alice.send(&room, "here").await;
        let mut feed = bob.feed().await;
        let synced = bob.sync().with("set_presence", "online").await;
        assert_eq!(synced.presence(), Vec::<Value>::new());
        assert!(synced.timeline_ids(&room).contains(&event));
        let next = alice.send(&room, "still here").await;
        feed.until_event(&room, &next).await;
    }
}
