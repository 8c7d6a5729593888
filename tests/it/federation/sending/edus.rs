//! What is no event: messages to devices, device lists, receipts, typing, presence.

use chatd_kit::{Other, Server, Settings, User, eventually, other::Reply, scenario};
use serde_json::{Value, json};

use super::{SEND, shared_room, until_text};

/// The user id of `user` here.
fn is_of(edu: &Value, kind: &str) -> bool {
    edu["edu_type"] == kind
}

/// A fleet whose instances do not hear each other.
fn without_bus() -> Settings {
    Settings::federating().with("redis", json!({"enabled": true, "path": "/nobody/listens/here"}))
}

/// Receipts, devices and presence of a user in a room that is shared with one of two servers.
async fn is_told(server: &mut Server) -> (Other, User, String) {
    let (here, nowhere) = (Other::start().await, Other::start().await);
    let alice = server.user("alice").await;
    let room = shared_room(server, &alice, &[&here]).await;
    let event = alice.send(&room, "read me").await;
    until_text(&here, "read me").await;
    alice.read(&room, &event).send().await.unwrap().ok();
    let receipt = here.until_edu("a receipt", |edu| is_of(edu, "m.receipt")).await;
    let read = &receipt["content"][&room]["m.read"][&alice.id];
    assert_eq!(read["event_ids"], json!([event]));
    let keys = json!({ "device_keys": {
        "user_id": alice.id,
        "device_id": alice.device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("curve25519:{}", alice.device): "c", format!("ed25519:{}", alice.device): "e" },
        "signatures": {},
    } });
    alice.post("/_matrix/client/v3/keys/upload", &keys).send().await.unwrap().ok();
    let of_alice =
        |edu: &Value| is_of(edu, "m.device_list_update") && edu["content"]["keys"].is_object();
    let list = here.until_edu("her device", of_alice).await;
    assert_eq!(list["content"]["user_id"], json!(alice.id));
    assert_eq!(list["content"]["keys"], keys["device_keys"]);
    let presence = json!({ "presence": "unavailable", "status_msg": "away" });
    let path = chatd_kit::path("/_matrix/client/v3/presence/{}/status", &[&alice.id]);
    alice.put(path, &presence).send().await.unwrap().ok();
    let is_away = |edu: &Value| {
        let push = edu["content"]["push"].as_array().cloned().unwrap_or_default();
        push.iter().any(|one| one["status_msg"] == "away")
    };
    here.until_edu("her presence", is_away).await;
    assert!(nowhere.seen("", "").is_empty());
    assert!(here.problems().is_empty(), "{:?}", here.problems());
    (here, alice, room)
}

scenario! {
    /// A message to another server's device comes once, also after it was refused at first.
    async fn messages_to_devices_come_once(server: Server)
    with (Settings::federating().with(
        "federation",
        json!({
            "destination_min_retry_interval": "200ms",
            "destination_max_retry_interval": "200ms",
        }),
    )) {
        let here = Other::start().await;
        let alice = server.user("alice").await;
        here.always("PUT", SEND, Reply::refused(503, "M_UNKNOWN"));
        let bob = here.user("bob");
        for number in 0..3 {
            let body = json!({ "messages": { &bob: { "DEVICE": { "number": number } } } });
            let path = format!("/_matrix/client/v3/sendToDevice/m.test/{number}");
            alice.put(path.clone(), &body).send().await.unwrap().ok();
            // A repeat has no effect.
            alice.put(path, &body).send().await.unwrap().ok();
        }
        here.until_edu("the first", |edu| is_of(edu, "m.direct_to_device")).await;
        here.behave();
        let before = here.seen("PUT", SEND).len();
        let number_of = |edu: &Value| {
            edu["content"]["messages"][&bob]["DEVICE"]["number"].as_i64()
        };
        here.until("all three", "PUT", SEND, |seen| {
            let edus = seen.body["edus"].as_array()?;
            edus.iter().any(|edu| number_of(edu) == Some(2)).then_some(())
        })
        .await;
        let client = server.database().connect().await.unwrap();
        eventually("all have been taken", || async {
            let left = client.query_one("SELECT count(*) FROM sending_to_device", &[]).await;
            let left: i64 = left.unwrap().get(0);
            if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
        })
        .await;
        let taken = here.seen("PUT", SEND).split_off(before);
        let mut ids: Vec<(String, i64)> = Vec::new();
        for edu in taken.iter().flat_map(|seen| seen.body["edus"].as_array().cloned()).flatten() {
            let id = edu["content"]["message_id"].as_str().unwrap().to_owned();
            ids.push((id, number_of(&edu).unwrap()));
        }
        ids.dedup();
        assert_eq!(ids.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(here.problems().is_empty(), "{:?}", here.problems());
    }

    /// Receipts, typing and new devices are told to the servers with which a room is shared.
    async fn what_is_no_event_is_told(server: Server) with (Settings::federating()) {
        let (here, alice, room) = is_told(&mut server).await;
        alice.typing(&room, true).send().await.unwrap().ok();
        let typing = here.until_edu("typing", |edu| is_of(edu, "m.typing")).await;
        let expected = json!({ "room_id": room, "user_id": alice.id, "typing": true });
        assert_eq!(typing["content"], expected);
        alice.typing(&room, false).send().await.unwrap().ok();
        let ends = |edu: &Value| is_of(edu, "m.typing") && edu["content"]["typing"] == false;
        here.until_edu("the end of it", ends).await;
        assert!(here.problems().is_empty(), "{:?}", here.problems());
    }

    /// What is in the tables is told also if no row reaches the sender.
    async fn what_the_sender_was_not_told_is_told(server: Server) in (fleet, random)
    with (without_bus()) {
        is_told(&mut server).await;
    }
}
