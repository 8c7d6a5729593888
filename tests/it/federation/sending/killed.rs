//! Senders that are killed under load.

use std::collections::BTreeMap;

use chatd_kit::{Other, Settings, other::Reply, scenario};
use serde_json::{Value, json};

use super::{SEND, shared_room, text_of, texts_of, until_text};

/// Short patience with servers that do not answer.
fn impatient() -> Settings {
    Settings::federating().with(
        "federation",
        json!({
            "destination_min_retry_interval": "200ms",
            "destination_max_retry_interval": "200ms",
        }),
    )
}

/// Event ids by text: what `other` has got, each text with the ids under which it came.
fn ids_by_text(other: &Other) -> BTreeMap<String, Vec<Value>> {
    let mut ids: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for seen in other.seen("PUT", SEND) {
        for pdu in seen.body["pdus"].as_array().into_iter().flatten() {
            if let Some(text) = text_of(pdu) {
                let of_text = ids.entry(text).or_default();
                if !of_text.contains(&pdu["hashes"]) {
                    of_text.push(pdu["hashes"].clone());
                }
            }
        }
    }
    ids
}

/// Every acknowledged text has come to `other`, once, and in order.
async fn has_all(other: &Other, acknowledged: &[String]) {
    until_text(other, "the end").await;
    for text in acknowledged {
        until_text(other, text).await;
    }
    let ids = ids_by_text(other);
    assert!(ids.values().all(|ids| ids.len() == 1), "one event each");
    assert_eq!(ids.len(), acknowledged.len() + 1);
    let mut first = Vec::new();
    for text in other.seen("PUT", SEND).iter().flat_map(texts_of) {
        if !first.contains(&text) {
            first.push(text);
        }
    }
    assert_eq!(first[..acknowledged.len()], *acknowledged, "in order");
    assert!(other.problems().is_empty(), "{:?}", other.problems());
}

/// A fleet in which two instances send to other servers.
fn senders_apart() -> Settings {
    impatient().with("federation_sender_instances", json!(["sync1", "sync2"]))
}

fn is_receipt(edu: &Value) -> bool {
    edu["edu_type"] == "m.receipt"
}

/// Waits for the receipt in a transaction that comes after the first `before`.
async fn until_receipt_after(other: &Other, before: usize, room: &str, user: &str, event: &str) {
    chatd_kit::eventually("a receipt", || async {
        let seen = other.seen("PUT", SEND).split_off(before);
        let edus = seen.iter().flat_map(|seen| seen.body["edus"].as_array().cloned()).flatten();
        let receipts: Vec<Value> = edus.filter(is_receipt).collect();
        let is_it = |edu: &Value| edu["content"][room]["m.read"][user]["event_ids"][0] == event;
        receipts.iter().any(is_it).then_some(()).ok_or(format!("{receipts:?}"))
    })
    .await;
}

scenario! {
    /// The server is killed again and again while it sends to one that is slow and to one that
    /// comes and goes: every acknowledged event arrives at both, and a room's events keep their
    /// order.
    async fn nothing_is_lost_when_a_sender_is_killed(server: Server)
    with (impatient()) {
        let (slow, fickle) = (Other::start().await, Other::start().await);
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&slow, &fickle]).await;
        slow.always("PUT", SEND, Reply::json(&json!({"pdus": {}})).after(
            std::time::Duration::from_millis(80),
        ));
        let mut acknowledged = Vec::new();
        for round in 0..6 {
            for number in 0..40 {
                let text = format!("m{round:02}-{number:02}");
                alice.send(&room, &text).await;
                acknowledged.push(text);
            }
            match round % 3 {
                0 => fickle.go_away(),
                1 => fickle.come_back().await,
                _ => {}
            }
            server.kill9().unwrap();
            server.restart().await.unwrap();
        }
        alice.send(&room, "the end").await;
        for other in [&slow, &fickle] {
            has_all(other, &acknowledged).await;
        }
    }

    /// A receipt whose sender is killed before it has arrived is told by the next one.
    async fn a_receipt_outlives_its_sender(server: Server) with (impatient()) {
        let here = Other::start().await;
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&here]).await;
        let event = alice.send(&room, "read me").await;
        until_text(&here, "read me").await;
        let minute = std::time::Duration::from_secs(60);
        here.always("PUT", SEND, Reply::json(&json!({"pdus": {}})).after(minute));
        alice.read(&room, &event).await.ok();
        server.kill9().unwrap();
        here.behave();
        server.restart().await.unwrap();
        until_receipt_after(&here, 0, &room, &alice.id, &event).await;
    }

    /// Nobody sends when a receipt is set.
    async fn a_receipt_waits_for_a_sender(server: Server) in (fleet) with (senders_apart()) {
        let here = Other::start().await;
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&here]).await;
        let event = alice.send(&room, "read me").await;
        until_text(&here, "read me").await;
        for name in ["sync1", "sync2"] {
            server.members().instance(name).kill9().unwrap();
        }
        alice.read(&room, &event).await.ok();
        server.members().launch().await.unwrap();
        until_receipt_after(&here, 0, &room, &alice.id, &event).await;
    }

    /// A server that was away gets the receipts of that time, after the events.
    async fn a_receipt_waits_for_the_server(server: Server) with (impatient()) {
        let here = Other::start().await;
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&here]).await;
        here.always("PUT", SEND, Reply::refused(503, "M_UNKNOWN"));
        alice.send(&room, "one").await;
        until_text(&here, "one").await;
        let event = alice.send(&room, "two").await;
        alice.read(&room, &event).await.ok();
        alice.send(&room, "three").await;
        let before = here.seen("PUT", SEND).len();
        here.behave();
        until_receipt_after(&here, before, &room, &alice.id, &event).await;
        let seen = here.seen("PUT", SEND).split_off(before);
        let at = |has: &dyn Fn(&Value) -> bool| seen.iter().position(|seen| has(&seen.body));
        let text = at(&|body| body.to_string().contains("\"two\""));
        let receipt = at(&|body| body.to_string().contains("m.receipt"));
        assert!(text.is_some() && text <= receipt, "{text:?} {receipt:?}");
    }

    /// Each of the senders of a fleet is killed while it sends, and stays away for a while; the other
    /// one stands in for it.
    async fn nothing_is_lost_when_senders_of_a_fleet_are_killed(server: Server) in (random)
    with (senders_apart()) {
        let others = [Other::start().await, Other::start().await, Other::start().await];
        let alice = server.user("alice").await;
        let all: Vec<&Other> = others.iter().collect();
        let room = shared_room(&mut server, &alice, &all).await;
        for other in &others {
            other.always("PUT", SEND, Reply::json(&json!({"pdus": {}})).after(
                std::time::Duration::from_millis(40),
            ));
        }
        let mut acknowledged = Vec::new();
        for round in 0..4 {
            let say = async |acknowledged: &mut Vec<String>, count: usize| {
                for _ in 0..count {
                    let text = format!("m{:03}", acknowledged.len());
                    alice.send(&room, &text).await;
                    acknowledged.push(text);
                }
            };
            say(&mut acknowledged, 20).await;
            let name = ["sync1", "sync2"][round % 2];
            server.members().instance(name).kill9().unwrap();
            say(&mut acknowledged, 20).await;
            // Whoever stands in sends to all.
            let last = acknowledged.last().unwrap();
            for other in &others {
                until_text(other, last).await;
            }
            server.members().launch().await.unwrap();
        }
        alice.send(&room, "the end").await;
        for other in &others {
            has_all(other, &acknowledged).await;
        }
    }
}
