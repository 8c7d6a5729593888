//! Two of our own.

use chatd_kit::{between, path};
use serde_json::json;

use super::{VERSIONS, join_by, until_in};

between! {
    async fn rooms_of_every_version_are_shared(here: Server, there: Server) {
        let (alice, bob) = (here.user("alice").await, there.user("bob").await);
        let (mut at_alice, mut at_bob) = (alice.feed().await, bob.feed().await);
        for version in VERSIONS {
            let room = alice.create_room().version(version).invite(&bob).await;
            until_in(&mut at_bob, "invite", &room).await;
            bob.join(&room).await.ok();
            until_in(&mut at_bob, "join", &room).await;
            let sent = bob.send(&room, "from there").await;
            at_alice.until_event(&room, &sent).await;
            let sent = alice.send(&room, "from here").await;
            at_bob.until_event(&room, &sent).await;
            bob.leave(&room).await.ok();
            at_alice.until("a leave", |synced| {
                let left = |e: &serde_json::Value| e["content"]["membership"] == "leave";
                synced.timeline(&room).into_iter().find(left)
            }).await;
            until_in(&mut at_bob, "leave", &room).await;
            alice.invite(&room, &bob).await.ok();
            until_in(&mut at_bob, "invite", &room).await;
            bob.leave(&room).await.ok();
            at_alice.until("a declined invite", |synced| {
                let left = |e: &serde_json::Value| e["content"]["membership"] == "leave";
                synced.timeline(&room).into_iter().find(left)
            }).await;
        }
    }

    async fn closed_rooms_are_knocked_at_and_opened(here: Server, there: Server) {
        let (alice, bob) = (here.user("alice").await, there.user("bob").await);
        let mut at_alice = alice.feed().await;
        let mut at_bob = bob.feed().await;
        let room = alice.create_room().version("12")
            .state("m.room.join_rules", json!({"join_rule": "knock"})).await;
        join_by(&bob, &room, here.name()).await.refused(403, "M_FORBIDDEN");
        let knock = path("/knock/{}?via={}", &[&room, here.name()]);
        bob.post(knock, &json!({})).await.ok();
        at_alice.until("a knock", |synced| {
            let knock = |e: &serde_json::Value| e["content"]["membership"] == "knock";
            synced.timeline(&room).into_iter().find(knock)
        }).await;
        alice.invite(&room, &bob).await.ok();
        until_in(&mut at_bob, "invite", &room).await;
        bob.join(&room).await.ok();

        // A restricted room, opened by membership of the first.
        let allow = json!([{"type": "m.room_membership", "room_id": room}]);
        let rule = json!({"join_rule": "restricted", "allow": allow});
        let inner = alice.create_room().version("12")
            .state("m.room.join_rules", rule).await;
        join_by(&bob, &inner, here.name()).await.ok();
        let sent = bob.send(&inner, "in").await;
        at_alice.until_event(&inner, &sent).await;
    }
}
