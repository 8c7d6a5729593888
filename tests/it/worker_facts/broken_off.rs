//! Clients who go away in the middle of their requests leave nothing behind that stands still.

use std::time::Duration;

use chatd_kit::{Feed, Request, User, path, scenario};
use rand::Rng;
use serde_json::json;

use crate::faults::plan;

/// How often each request is broken off.
const ROUNDS: u64 = 60;

/// One request of each kind that writes something.
fn requests(alice: &User, bob: &User, room: &str, event: &str, round: u64) -> Vec<Request> {
    let content = json!({"round": round});
    let status = if round.is_multiple_of(2) { "unavailable" } else { "online" };
    let presence = json!({"presence": status, "status_msg": format!("round {round}")});
    let rule = path("/pushrules/global/room/{}", &[room]);
    vec![
        alice.put(path("/presence/{}/status", &[&alice.id]), &presence),
        alice.typing(room, round.is_multiple_of(2)),
        alice.read(room, event),
        alice.to_device("m.test", &format!("broken{round}"), bob, &content),
        alice.set_account_data("m.test", &content),
        alice.send_event(room, "m.test", &format!("broken{round}"), &content),
        alice.set_state(room, "m.room.topic", "", &json!({"topic": format!("round {round}")})),
        alice.put(rule, &json!({"actions": ["notify"]})),
        alice.put(path("/devices/{}", &[&alice.device]), &json!({"display_name": "a"})),
        alice.put(path("/profile/{}/displayname", &[&alice.id]), &json!({"displayname": "A"})),
        alice.create_room().request(),
        alice.sync().timeout_ms(1_000).request(),
    ]
}

/// Everything goes on: what alice does now is seen by bob and by herself.
async fn goes_on(alice: &User, bob: &mut Feed, own: &mut Feed, receiver: &User, room: &str) {
    let event = alice.send(room, "and now").await;
    bob.until_event(room, &event).await;
    alice.read(room, &event).await.ok();
    bob.until("the receipt", |synced| {
        let receipts = synced.ephemeral_of(room, "m.receipt")?;
        receipts["content"][&event]["m.read"].get(&alice.id).cloned()
    })
    .await;
    for is_typing in [false, true] {
        alice.typing(room, is_typing).await.ok();
    }
    bob.until("typing", |synced| {
        let typing = synced.ephemeral_of(room, "m.typing")?;
        typing["content"]["user_ids"].as_array()?.contains(&json!(alice.id)).then_some(())
    })
    .await;
    let status = json!({"presence": "online", "status_msg": "and now"});
    alice.put(path("/presence/{}/status", &[&alice.id]), &status).await.ok();
    bob.until("presence", |synced| {
        synced.presence().into_iter().find(|event| event["content"]["status_msg"] == "and now")
    })
    .await;
    alice.to_device("m.test", "now", receiver, &json!({"now": true})).await.ok();
    bob.until("the message", |synced| {
        synced.to_device().into_iter().find(|event| event["content"]["now"] == true)
    })
    .await;
    alice.set_account_data("m.test", &json!({"now": true})).await.ok();
    own.until("account data", |synced| {
        synced.account_data().into_iter().find(|event| event["content"]["now"] == true)
    })
    .await;
    let rule = json!({"actions": [], "pattern": "now"});
    alice.put("/pushrules/global/content/now", &rule).await.ok();
    own.until("push rules", |synced| {
        let rules = synced.account_data().into_iter().find(|one| one["type"] == "m.push_rules")?;
        rules.to_string().contains("\"now\"").then_some(())
    })
    .await;
}

scenario! {
    async fn streams_go_on(server: Server) in (monolith, fleet, random) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let event = alice.send(&room, "hello").await;
        let whole = json!({"room": {"timeline": {"limit": 500}}});
        let mut feed = bob.feed().await.filtered(whole);
        let mut own = alice.feed().await;
        let (_, mut random) = plan();
        for round in 0..ROUNDS {
            let broken = requests(&alice, &bob, &room, &event, round).into_iter().map(|request| {
                let patience = Duration::from_micros(random.random_range(50..12_000));
                tokio::time::timeout(patience, request.unchecked().send())
            });
            futures::future::join_all(broken.collect::<Vec<_>>()).await;
        }
        goes_on(&alice, &mut feed, &mut own, &bob, &room).await;
    }
}
