//! What does not stay in a room, and what is not of a room: typing, receipts, presence, device
//! lists, keys, to-device messages, profiles.

use chatd_kit::{Feed, Server, Settings, Synapse, User, between, eventually, path};
use serde_json::{Value, json};

use super::acts::{says, shared_room};

/// Waits for an ephemeral event of a room that `is_it` recognises.
async fn until_ephemeral(feed: &mut Feed, room: &str, kind: &str, is_it: impl Fn(&Value) -> bool) {
    feed.until(kind, |synced| {
        let found = synced.ephemeral_of(room, kind)?;
        is_it(&found["content"]).then_some(())
    })
    .await;
}

async fn typing_is_told(from: &User, to: &User, room: &str) {
    let mut feed = to.feed().await;
    from.typing(room, true).await.ok();
    let types = |content: &Value| content["user_ids"] == json!([from.id]);
    until_ephemeral(&mut feed, room, "m.typing", types).await;
    from.typing(room, false).await.ok();
    until_ephemeral(&mut feed, room, "m.typing", |content| content["user_ids"] == json!([])).await;
}

async fn receipts_are_told(from: &User, to: &User, room: &str) {
    let mut feed = to.feed().await;
    let event = says(to, &[from], room, "have you read this?").await;
    from.read(room, &event).await.ok();
    let has_read = |content: &Value| content[&event]["m.read"][&from.id].is_object();
    until_ephemeral(&mut feed, room, "m.receipt", has_read).await;
}

async fn presence_is_told(from: &User, to: &User) {
    let mut feed = to.feed().await;
    let status = json!({"presence": "unavailable", "status_msg": "far away"});
    from.put(path("/presence/{}/status", &[&from.id]), &status).await.ok();
    until_shown(&mut feed, from, "far away").await;
}

/// Device keys that are not signed by anybody; servers do not look at that.
fn keys_of(user: &User) -> Value {
    json!({"device_keys": {
        "user_id": user.id,
        "device_id": user.device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            format!("curve25519:{}", user.device): "IlREByvc3AXPyzUMG7cPbZGzcGMzlFwSnEDTxtCWE1A",
            format!("ed25519:{}", user.device): "G4F9g1mN3aIGP5vMNmHFwvFCgS3ENbXFfYQ+JPEZKvI",
        },
        "signatures": {&user.id: {format!("ed25519:{}", user.device): "c2lnbmF0dXJl"}},
    }, "one_time_keys": {"signed_curve25519:AAAAAQ": {
        "key": "zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs",
        "signatures": {&user.id: {format!("ed25519:{}", user.device): "c2lnbmF0dXJl"}},
    }}})
}

async fn devices_are_known(from: &User, to: &User) {
    let mut feed = to.feed().await;
    from.post("/keys/upload", &keys_of(from)).await.ok();
    feed.until("changed devices", |synced| {
        let changed = synced.ok()["device_lists"]["changed"].as_array()?;
        changed.contains(&json!(from.id)).then_some(())
    })
    .await;
    let query = json!({"device_keys": {&from.id: []}});
    eventually("the keys of a device", || async {
        let answer = to.post("/keys/query", &query).await;
        let device = &answer.ok()["device_keys"][&from.id][&from.device];
        if device["device_id"] == from.device.as_str() { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    let claim = json!({"one_time_keys": {&from.id: {&from.device: "signed_curve25519"}}});
    let claimed = to.post("/keys/claim", &claim).await;
    let found = &claimed.ok()["one_time_keys"][&from.id][&from.device];
    assert!(found["signed_curve25519:AAAAAQ"].is_object(), "{claimed}");
}

async fn messages_reach_devices(from: &User, to: &User) {
    let mut feed = to.feed().await;
    let transaction = from.transaction();
    for _ in 0..2 {
        // A repeat is one message.
        from.to_device("kit.whisper", &transaction, to, &json!({"text": "psst"})).await.ok();
    }
    from.to_device("kit.whisper", &from.transaction(), to, &json!({"text": "end"})).await.ok();
    let mut heard = Vec::new();
    feed.until("a whisper", |synced| {
        heard.extend(synced.to_device().into_iter().map(|event| event["content"]["text"].clone()));
        heard.contains(&json!("end")).then_some(())
    })
    .await;
    assert_eq!(heard, ["psst", "end"]);
}

async fn profiles_are_asked_for(from: &User, to: &User) {
    let name = json!({"displayname": "Somebody Else"});
    from.put(path("/profile/{}/displayname", &[&from.id]), &name).await.ok();
    let seen = to.get(path("/profile/{}", &[&from.id])).await;
    assert_eq!(seen.ok()["displayname"], "Somebody Else", "{seen}");
}

/// All of it, from one to the other.
async fn reaches(from: &User, to: &User, room: &str) {
    typing_is_told(from, to, room).await;
    receipts_are_told(from, to, room).await;
    presence_is_told(from, to).await;
    devices_are_known(from, to).await;
    messages_reach_devices(from, to).await;
    profiles_are_asked_for(from, to).await;
}

between! {
    async fn what_does_not_stay_goes_over(here: Server, there: Server) {
        let (alice, bob) = (here.user("alice").await, there.user("bob").await);
        let room = shared_room(&alice, &bob, "11").await;
        reaches(&alice, &bob, &room).await;
        reaches(&bob, &alice, &room).await;
    }
}

/// Waits until somebody is shown with that status.
async fn until_shown(feed: &mut Feed, user: &User, status: &str) {
    feed.until(status, |synced| {
        let all = synced.presence();
        let is_it = |event: &&Value| {
            event["sender"] == user.id.as_str() && event["content"]["status_msg"] == status
        };
        all.iter().find(is_it).map(drop)
    })
    .await;
}

/// Nobody does anything but come into a room.
async fn whoever_comes_sees_who_is_there(first: &User, second: &User) {
    let (mut of_first, mut of_second) = (first.feed().await, second.feed().await);
    for (user, status) in [(first, "was here"), (second, "have come")] {
        let status = json!({"presence": "online", "status_msg": status});
        user.put(path("/presence/{}/status", &[&user.id]), &status).await.ok();
    }
    shared_room(first, second, "11").await;
    until_shown(&mut of_second, first, "was here").await;
    until_shown(&mut of_first, second, "have come").await;
}

between! {
    async fn presence_comes_with_a_join(here: Server, there: Server) {
        let (alice, bob) = (here.user("alice").await, there.user("bob").await);
        whoever_comes_sees_who_is_there(&alice, &bob).await;
    }
}

#[tokio::test]
async fn presence_comes_with_a_join_of_synapse_and_at_synapse() {
    let synapse = Synapse::shared().await;
    let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
    let (alice, bob) = (server.user("alice").await, synapse.user("bob").await);
    whoever_comes_sees_who_is_there(&alice, &bob).await;
    let (carol, dan) = (server.user("carol").await, synapse.user("dan").await);
    whoever_comes_sees_who_is_there(&dan, &carol).await;
}

#[tokio::test]
async fn what_does_not_stay_goes_to_synapse_and_back() {
    let synapse = Synapse::shared().await;
    let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
    let (alice, bob) = (server.user("alice").await, synapse.user("bob").await);
    let room = shared_room(&alice, &bob, "11").await;
    reaches(&alice, &bob, &room).await;
    reaches(&bob, &alice, &room).await;
}
