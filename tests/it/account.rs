//! What belongs to a user: account data, tags, profile.

use chatd_kit::{path, scenario, sync::events};
use serde_json::{Value, json};

/// The content of the account data with this type.
fn content(events: &[Value], kind: &str) -> Option<Value> {
    events.iter().find(|event| event["type"] == kind).map(|event| event["content"].clone())
}

scenario! {
    async fn account_data_is_kept_and_synced(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        let mut feed = alice.feed().await;
        let global = path("/user/{}/account_data/org.example.x", &[&alice.id]);
        let in_room = path("/user/{}/rooms/{}/account_data/org.example.y", &[&alice.id, &room]);
        alice.get(global.as_str()).await.refused(404, "M_NOT_FOUND");
        alice.put(global.as_str(), &json!({"n": 1})).await.ok();
        alice.put(in_room.as_str(), &json!({"n": 2})).await.ok();
        assert_eq!(alice.get(global.as_str()).await.ok(), &json!({"n": 1}));
        assert_eq!(alice.get(in_room.as_str()).await.ok(), &json!({"n": 2}));
        let (mut one, mut two) = (None, None);
        feed.until("both", |synced| {
            one = one.take().or(content(&synced.account_data(), "org.example.x"));
            let room = events(&synced.room(&room)["account_data"]);
            two = two.take().or(content(&room, "org.example.y"));
            (one.is_some() && two.is_some()).then_some(())
        })
        .await;
        assert_eq!((one, two), (Some(json!({"n": 1})), Some(json!({"n": 2}))));
        let first = alice.sync().await;
        assert!(content(&first.account_data(), "org.example.x").is_some());
        bob.get(global.as_str()).await.refused(403, "M_FORBIDDEN");
        bob.put(global, &json!({})).await.refused(403, "M_FORBIDDEN");
        for owned in ["m.fully_read", "m.push_rules"] {
            let answer = alice.set_account_data(owned, &json!({})).await;
            assert!([400, 405].contains(&answer.status), "{owned}: {answer}");
        }
    }

    async fn tags_are_set_listed_and_removed(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let mut feed = alice.feed().await;
        let tags = path("/user/{}/rooms/{}/tags", &[&alice.id, &room]);
        let one = format!("{tags}/m.favourite");
        alice.put(one.as_str(), &json!({"order": 0.25})).await.ok();
        alice.put(format!("{tags}/u.work"), &json!({})).await.ok();
        let listed = alice.get(tags.as_str()).await;
        let expected = json!({"m.favourite": {"order": 0.25}, "u.work": {}});
        assert_eq!(listed.ok()["tags"], expected, "orders are the one place with fractions");
        feed.until("both tags", |synced| {
            let data = events(&synced.room(&room)["account_data"]);
            content(&data, "m.tag").filter(|content| content["tags"] == expected)
        })
        .await;
        alice.delete(one.as_str()).await.ok();
        assert_eq!(alice.get(tags.as_str()).await.ok()["tags"], json!({"u.work": {}}));
        bob.get(tags).await.refused(403, "M_FORBIDDEN");
        bob.put(one, &json!({})).await.refused(403, "M_FORBIDDEN");
    }

    async fn a_profile_is_public_and_reaches_the_rooms(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        let profile = path("/profile/{}", &[&alice.id]);
        let name = format!("{profile}/displayname");
        let avatar = format!("{profile}/avatar_url");
        alice.put(name.as_str(), &json!({"displayname": "Alice A."})).await.ok();
        feed.until("the new name", |synced| {
            synced
                .timeline(&room)
                .into_iter()
                .find(|e| e["state_key"] == alice.id && e["content"]["displayname"] == "Alice A.")
        })
        .await;
        alice.put(avatar.as_str(), &json!({"avatar_url": "mxc://test.local/face"})).await.ok();
        let member = feed
            .until("the new face", |synced| {
                synced.timeline(&room).into_iter().find(|e| {
                    e["state_key"] == alice.id && !e["content"]["avatar_url"].is_null()
                })
            })
            .await;
        assert_eq!(member["content"]["displayname"], "Alice A.");
        assert_eq!(member["content"]["membership"], "join");
        let asked = server.request("GET", profile).await;
        let expected = json!({"displayname": "Alice A.", "avatar_url": "mxc://test.local/face"});
        assert_eq!(asked.ok(), &expected);
        assert_eq!(server.request("GET", name.as_str()).await.ok()["displayname"], "Alice A.");
        let answer = bob.put(name, &json!({"displayname": "Bob's"})).await;
        assert_eq!(answer.errcode(), "M_FORBIDDEN");
        // Later joins carry it.
        let room = alice.create_room().await;
        let member = alice.get_state(&room, "m.room.member", &alice.id).await;
        assert_eq!(member.ok()["displayname"], "Alice A.");
        let nobody = path("/profile/{}", &["@nobody:test.local"]);
        server.request("GET", nobody).await.refused(404, "M_NOT_FOUND");
    }
}
