//! Sending, and reading back: transaction ids, single events, context, pages of history, members.

use chatd_kit::{User, path, scenario, sync::ids};
use serde_json::{Value, json};

fn chunk(page: &Value) -> Vec<Value> {
    page["chunk"].as_array().cloned().unwrap_or_default()
}

/// Sends `count` numbered texts; returns the event ids.
async fn send_many(user: &User, room: &str, count: usize) -> Vec<String> {
    let mut sent = Vec::new();
    for number in 0..count {
        sent.push(user.send(room, &format!("text {number}")).await);
    }
    sent
}

scenario! {
    async fn a_repeated_transaction_is_the_same_event(server: Server) {
        let alice = server.user("alice").await;
        let other_device = alice.another_device().await;
        let (room, other) = (alice.create_room().await, alice.create_room().await);
        let (one, two) = (json!({"body": "one", "msgtype": "m.text"}), json!({"body": "two"}));
        let send = |user: &User, room: &str| {
            user.send_event(room, "m.room.message", "the-id", &one)
        };
        let first = send(&alice, &room).await.string("event_id");
        let again = alice.send_event(&room, "m.room.message", "the-id", &two).await;
        assert_eq!(again.string("event_id"), first);
        assert_ne!(send(&other_device, &room).await.string("event_id"), first);
        assert_ne!(send(&alice, &other).await.string("event_id"), first);
        let events = alice.history(&room).await;
        let messages: Vec<_> = events.iter().filter(|e| e["type"] == "m.room.message").collect();
        assert_eq!(messages.len(), 2);
    }

    async fn the_transaction_id_is_told_to_its_device_only(server: Server) {
        let alice = server.user("alice").await;
        let other_device = alice.another_device().await;
        let room = alice.create_room().await;
        let content = json!({"body": "x", "msgtype": "m.text"});
        let sent = alice.send_event(&room, "m.room.message", "mine", &content).await;
        let sent = sent.string("event_id");
        let seen = alice.event(&room, &sent).await;
        assert_eq!(seen.ok()["unsigned"]["transaction_id"], "mine");
        let seen = other_device.event(&room, &sent).await;
        assert!(seen.ok()["unsigned"]["transaction_id"].is_null());
        let synced = alice.sync().await;
        let last = synced.timeline(&room).pop().expect("the message");
        assert_eq!(last["unsigned"]["transaction_id"], "mine");
        let synced = other_device.sync().await;
        let last = synced.timeline(&room).pop().expect("the message");
        assert!(last["unsigned"]["transaction_id"].is_null());
    }

    async fn events_are_seen_by_those_in_the_room(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().member(&bob).await;
        let sent = alice.send(&room, "hello").await;
        let seen = bob.event(&room, &sent).await;
        assert_eq!(seen.ok()["sender"], alice.id);
        assert_eq!(seen.ok()["room_id"], room);
        assert!(seen.ok()["origin_server_ts"].as_u64().is_some());
        assert!(seen.ok()["unsigned"]["age"].as_i64().is_some(), "{seen}");
        assert_eq!(eve.event(&room, &sent).await.errcode(), "M_NOT_FOUND");
        bob.event(&room, "$nothing").await.refused(404, "M_NOT_FOUND");
        let other = alice.create_room().await;
        alice.event(&other, &sent).await.refused(404, "M_NOT_FOUND");
    }

    async fn pages_of_history_go_both_ways(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let sent = send_many(&alice, &room, 25).await;

        let newest = alice.messages(&room, "b").query("limit", 10).await;
        let mut expected: Vec<_> = sent[15..].to_vec();
        expected.reverse();
        assert_eq!(ids(&chunk(newest.ok())), expected);
        let end = newest.string("end");
        let older = alice.messages(&room, "b").query("limit", 10).query("from", &end).await;
        let mut expected: Vec<_> = sent[5..15].to_vec();
        expected.reverse();
        assert_eq!(ids(&chunk(older.ok())), expected);

        // Forwards from the same place brings back what is newer.
        let newer = alice.messages(&room, "f").query("limit", 10).query("from", &end).await;
        assert_eq!(ids(&chunk(newer.ok())), &sent[15..]);
        let newest_end = newer.ok()["end"].as_str().map(str::to_owned);
        if let Some(end) = newest_end {
            let nothing = alice.messages(&room, "f").query("from", end).await;
            assert!(chunk(nothing.ok()).is_empty());
        }
        let all = alice.history(&room).await;
        assert_eq!(all[0]["type"], "m.room.create", "the first page ends at the beginning");
        assert_eq!(ids(&all[all.len() - 25..]), sent);
        let first = alice.messages(&room, "f").query("limit", 1).await;
        assert_eq!(chunk(first.ok())[0]["type"], "m.room.create");
    }

    async fn history_goes_on_from_where_a_sync_began(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let sent = send_many(&alice, &room, 30).await;
        let filter = json!({"room": {"timeline": {"limit": 5}}});
        let synced = alice.sync().filter(&filter).await;
        assert_eq!(synced.timeline_ids(&room), &sent[25..]);
        assert_eq!(synced.room(&room)["timeline"]["limited"], true);
        let from = synced.room(&room)["timeline"]["prev_batch"].as_str().expect("prev_batch");
        let page = alice.messages(&room, "b").query("from", from).query("limit", 5).await;
        let mut expected: Vec<_> = sent[20..25].to_vec();
        expected.reverse();
        assert_eq!(ids(&chunk(page.ok())), expected);
        // `to` ends a page.
        let next = synced.next_batch();
        let last = alice.send(&room, "after").await;
        let page = alice.messages(&room, "f").query("from", from).query("to", &next).await;
        assert_eq!(ids(&chunk(page.ok())), &sent[25..]);
        let page = alice.messages(&room, "f").query("from", &next).await;
        assert_eq!(ids(&chunk(page.ok())), [last]);
    }

    async fn history_can_be_filtered(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let one = alice.send(&room, "one").await;
        let two = bob.send(&room, "two").await;
        let picture = json!({"msgtype": "m.image", "body": "p", "url": "mxc://test.local/abc"});
        let image = alice.send_event(&room, "m.room.message", "i", &picture).await;
        let image = image.string("event_id");
        let cases = [
            (json!({"types": ["m.room.message"]}), vec![&image, &two, &one]),
            (json!({"types": ["m.room.mess*"], "senders": [bob.id]}), vec![&two]),
            (json!({"types": ["m.room.message"], "not_senders": [bob.id]}), vec![&image, &one]),
            (json!({"types": ["m.room.message"], "contains_url": true}), vec![&image]),
            (json!({"types": ["m.room.message"], "contains_url": false}), vec![&two, &one]),
            (json!({"types": []}), vec![]),
            (json!({"rooms": []}), vec![]),
        ];
        for (filter, expected) in cases {
            let page = alice.messages(&room, "b").query("filter", &filter).await;
            let found = ids(&chunk(page.ok()));
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter}");
        }
        let limited = json!({"types": ["m.room.message"]});
        let page = alice.messages(&room, "b").query("filter", &limited).query("limit", 2).await;
        assert_eq!(ids(&chunk(page.ok())), [image, two]);
    }

    async fn lazy_history_brings_the_senders(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        bob.send(&room, "one").await;
        let filter = json!({"lazy_load_members": true, "types": ["m.room.message"]});
        let page = alice.messages(&room, "b").query("filter", &filter).await;
        let state = page.ok()["state"].as_array().cloned().unwrap_or_default();
        assert_eq!(state.len(), 1);
        assert_eq!(state[0]["state_key"], bob.id);
    }

    async fn context_shows_both_sides(server: Server) {
        let (alice, eve) = (server.user("alice").await, server.user("eve").await);
        let room = alice.create_room().await;
        let sent = send_many(&alice, &room, 11).await;
        let url = path("/rooms/{}/context/{}", &[&room, &sent[5]]);
        let seen = alice.get(url.as_str()).query("limit", 6).await;
        let seen = seen.ok();
        assert_eq!(seen["event"]["event_id"], sent[5]);
        let before: Vec<_> = seen["events_before"].as_array().cloned().unwrap_or_default();
        let after: Vec<_> = seen["events_after"].as_array().cloned().unwrap_or_default();
        let mut expected: Vec<_> = sent[2..5].to_vec();
        expected.reverse();
        assert_eq!(ids(&before), expected);
        assert_eq!(ids(&after), &sent[6..9]);
        assert!(chatd_kit::sync::has_type(seen["state"].as_array().expect("state"), "m.room.create"));
        let (start, end) = (seen["start"].as_str(), seen["end"].as_str());
        let older = alice.messages(&room, "b").query("from", start.expect("start")).query("limit", 1);
        assert_eq!(ids(&chunk(older.await.ok())), &sent[1..2]);
        let newer = alice.messages(&room, "f").query("from", end.expect("end")).query("limit", 1);
        assert_eq!(ids(&chunk(newer.await.ok())), &sent[9..10]);
        let alone = alice.get(url.as_str()).query("limit", 0).await;
        assert_eq!(alone.ok()["events_before"].as_array().map_or(0, Vec::len), 0);
        assert!([403, 404].contains(&eve.get(url).await.status));
    }

    async fn members_can_be_listed_and_filtered(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().member(&bob).member(&eve).await;
        let before = alice.sync().await.next_batch();
        eve.leave(&room).await.ok();
        let url = path("/rooms/{}/members", &[&room]);
        let who = |page: &Value| {
            let mut who: Vec<_> =
                chunk(page).iter().map(|e| e["state_key"].as_str().unwrap_or("").to_owned()).collect();
            who.sort_unstable();
            who
        };
        let all = alice.get(url.as_str()).await;
        assert_eq!(who(all.ok()), [&alice.id, &bob.id, &eve.id].map(String::as_str));
        let joined = alice.get(url.as_str()).query("membership", "join").await;
        assert_eq!(who(joined.ok()), [&alice.id, &bob.id].map(String::as_str));
        let others = alice.get(url.as_str()).query("not_membership", "join").await;
        assert_eq!(who(others.ok()), [&eve.id].map(String::as_str));
        let then = alice.get(url.as_str()).query("at", before).query("membership", "join").await;
        assert_eq!(who(then.ok()).len(), 3, "at an earlier position");
        let names = bob.get(path("/rooms/{}/joined_members", &[&room])).await;
        let joined = names.ok()["joined"].as_object().cloned().unwrap_or_default();
        assert_eq!(joined.len(), 2);
        assert!(joined.contains_key(&alice.id));
        let outsider = server.user("mallory").await;
        outsider.get(url).await.refused(403, "M_FORBIDDEN");
        let answer = outsider.get(path("/rooms/{}/joined_members", &[&room])).await;
        answer.refused(403, "M_FORBIDDEN");
    }

    async fn relations_are_kept_as_sent(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let root = alice.send(&room, "root").await;
        let thread = json!({
            "msgtype": "m.text", "body": "in the thread",
            "m.relates_to": {"rel_type": "m.thread", "event_id": root},
        });
        let reply = bob.send_event(&room, "m.room.message", "r", &thread).await;
        let seen = alice.event(&room, &reply.string("event_id")).await;
        assert_eq!(seen.ok()["content"], thread);
    }
}
