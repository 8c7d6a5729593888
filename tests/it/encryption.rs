//! What end-to-end encryption needs of a server: to-device messages, device keys, one-time and
//! fallback keys, cross-signing, device lists, key backups. Of the signatures here
//! those of cross-signing are real, since the server checks them; the others are for clients.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use chatd_kit::{Answer, Other, Settings, User, other::Reply, path, scenario, user::password_of};
use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};

/// Device keys of `user`, as a client uploads them.
fn device_keys(user: &User) -> Value {
    let (curve, ed) = (format!("curve25519:{}", user.device), format!("ed25519:{}", user.device));
    json!({
        "user_id": user.id,
        "device_id": user.device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {curve: "Y3VydmU", &ed: "ZWQ"},
        "signatures": {&user.id: {ed: "c2ln"}},
    })
}

fn signed_key(user: &User, key: &str) -> Value {
    json!({"key": key, "signatures": {&user.id: {format!("ed25519:{}", user.device): "c2ln"}}})
}

/// Uploads device keys and as many one-time keys; returns the counts that the server tells.
async fn upload(user: &User, one_time: usize) -> Value {
    let keys: serde_json::Map<_, _> = (0..one_time)
        .map(|n| (format!("signed_curve25519:K{n}"), signed_key(user, &format!("a2V5{n}"))))
        .collect();
    let body = json!({"device_keys": device_keys(user), "one_time_keys": keys});
    user.post("/keys/upload", &body).await.ok()["one_time_key_counts"].clone()
}

async fn claim(user: &User, of: &User) -> Value {
    let body = json!({"one_time_keys": {&of.id: {&of.device: "signed_curve25519"}}});
    let answer = user.post("/keys/claim", &body).await;
    answer.ok()["one_time_keys"][&of.id][&of.device].clone()
}

/// Private parts of the cross-signing keys of a test: master, self-signing, user-signing.
fn secrets() -> [SigningKey; 3] {
    [1, 2, 3].map(|number| SigningKey::from_bytes(&[number; 32]))
}

fn public(key: &SigningKey) -> String {
    STANDARD_NO_PAD.encode(key.verifying_key())
}

/// A cross-signing key of `user`.
fn signing_key(user: &User, usage: &str, key: &SigningKey) -> Value {
    let key = public(key);
    json!({
        "user_id": user.id,
        "usage": [usage],
        "keys": {format!("ed25519:{key}"): key},
    })
}

/// Adds the signature of `user`'s `key` to `object`, which has numbers and ASCII only, so that
/// its text is canonical.
fn sign(object: &mut Value, user: &User, key: &SigningKey) {
    let mut bare = object.clone();
    let members = bare.as_object_mut().expect("an object is signed");
    members.remove("signatures");
    members.remove("unsigned");
    let signature = STANDARD_NO_PAD.encode(key.sign(bare.to_string().as_bytes()).to_bytes());
    object["signatures"][&user.id][format!("ed25519:{}", public(key))] = json!(signature);
}

/// The body that uploads all three cross-signing keys.
fn cross_signing_body(user: &User) -> Value {
    let [master, of_self, of_users] = secrets();
    let mut body = json!({
        "master_key": signing_key(user, "master", &master),
        "self_signing_key": signing_key(user, "self_signing", &of_self),
        "user_signing_key": signing_key(user, "user_signing", &of_users),
    });
    sign(&mut body["self_signing_key"], user, &master);
    sign(&mut body["user_signing_key"], user, &master);
    body
}

/// How `user` confirms an operation that the server has asked back about.
fn confirmation(user: &User, asked: &Answer) -> Value {
    assert_eq!(asked.status, 401, "{asked}");
    json!({
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user.id},
        "password": password_of(&user.name),
        "session": asked.json()["session"],
    })
}

scenario! {
    async fn a_to_device_message_arrives_once(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut feed = bob.feed().await;
        let content = json!({"n": 1});
        for _ in 0..2 {
            alice.to_device("org.example.ping", "t1", &bob, &content).await.ok();
        }
        let seen = feed
            .until("the message", |synced| {
                let messages = synced.to_device();
                (!messages.is_empty()).then_some(messages)
            })
            .await;
        let expected = json!({"type": "org.example.ping", "sender": alice.id, "content": content});
        assert_eq!(seen, [expected], "a repeated transaction is one message");
        assert!(feed.now().await.to_device().is_empty());
        assert!(feed.now().await.to_device().is_empty());
    }

    async fn a_to_device_message_is_kept_until_it_is_acknowledged(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let since = bob.sync().await.next_batch();
        alice.to_device("org.example.ping", "t1", &bob, &json!({})).await.ok();
        // An answer that got lost is asked for again.
        for _ in 0..3 {
            assert_eq!(bob.sync().since(&since).await.to_device().len(), 1);
        }
        let next = bob.sync().since(&since).await.next_batch();
        assert!(bob.sync().since(&next).await.to_device().is_empty());
        assert!(bob.sync().since(&since).await.to_device().is_empty(), "now it is deleted");
    }

    async fn a_star_reaches_every_device(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let second = bob.another_device().await;
        let (mut one, mut two) = (bob.feed().await, second.feed().await);
        let body = json!({"messages": {&bob.id: {"*": {"n": 1}}}});
        alice.put("/sendToDevice/org.example.ping/x", &body).await.ok();
        for feed in [&mut one, &mut two] {
            feed.until("the message", |synced| (synced.to_device().len() == 1).then_some(())).await;
        }
    }

    async fn many_to_device_messages_come_in_order(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut feed = bob.feed().await;
        for number in 0..150 {
            let txn = format!("t{number}");
            alice.to_device("org.example.n", &txn, &bob, &json!({"n": number})).await.ok();
        }
        let mut seen = Vec::new();
        while seen.len() < 150 {
            let synced = feed.next(2_000).await;
            let page = synced.to_device();
            assert!(!page.is_empty(), "{} arrived", seen.len());
            seen.extend(page.iter().filter_map(|m| m["content"]["n"].as_u64()));
        }
        assert_eq!(seen, (0..150).collect::<Vec<u64>>());
    }

    async fn keys_are_uploaded_counted_and_queried(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        assert_eq!(upload(&alice, 3).await["signed_curve25519"], 3);
        assert_eq!(alice.sync().await.ok()["device_one_time_keys_count"]["signed_curve25519"], 3);
        let url = path("/devices/{}", &[&alice.device]);
        alice.put(url, &json!({"display_name": "phone"})).await.ok();
        let body = json!({"device_keys": {&alice.id: []}});
        let found = bob.post("/keys/query", &body).await;
        let found = &found.ok()["device_keys"][&alice.id][&alice.device];
        assert_eq!(found["keys"], device_keys(&alice)["keys"]);
        assert_eq!(found["unsigned"]["device_display_name"], "phone");
        let body = json!({"device_keys": {&alice.id: ["OTHER"]}});
        let found = bob.post("/keys/query", &body).await;
        assert!(found.ok()["device_keys"][&alice.id][&alice.device].is_null());
        // Another's keys cannot be uploaded.
        let wrong = json!({"device_keys": device_keys(&alice)});
        assert_eq!(bob.post("/keys/upload", &wrong).await.status, 400);
    }

    async fn one_time_keys_are_given_out_once(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        upload(&alice, 2).await;
        let (first, second) = (claim(&bob, &alice).await, claim(&bob, &alice).await);
        assert!(first.is_object() && second.is_object());
        assert_ne!(first, second);
        assert!(claim(&bob, &alice).await.is_null());
        let counts = alice.sync().await.ok()["device_one_time_keys_count"].clone();
        assert_eq!(counts["signed_curve25519"].as_u64().unwrap_or(0), 0);
        // The same key again is fine; another under its name is not.
        upload(&alice, 1).await;
        upload(&alice, 1).await;
        let other = json!({"one_time_keys": {"signed_curve25519:K0": signed_key(&alice, "b3RoZXI")}});
        assert_eq!(alice.post("/keys/upload", &other).await.status, 400);
    }

    async fn concurrent_claims_never_share_a_key(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        upload(&alice, 20).await;
        let claims = futures::future::join_all((0..25).map(|_| claim(&bob, &alice))).await;
        let mut keys: Vec<_> =
            claims.iter().filter(|key| key.is_object()).map(ToString::to_string).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 20);
    }

    async fn a_fallback_key_is_used_when_the_others_are(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        upload(&alice, 1).await;
        let mut fallback = signed_key(&alice, "ZmFsbA");
        fallback["fallback"] = json!(true);
        let body = json!({"fallback_keys": {"signed_curve25519:F": fallback}});
        alice.post("/keys/upload", &body).await.ok();
        let unused = alice.sync().await.ok()["device_unused_fallback_key_types"].clone();
        assert_eq!(unused, json!(["signed_curve25519"]));
        assert!(claim(&bob, &alice).await["signed_curve25519:K0"].is_object());
        for _ in 0..2 {
            assert!(claim(&bob, &alice).await["signed_curve25519:F"].is_object());
        }
        let unused = alice.sync().await.ok()["device_unused_fallback_key_types"].clone();
        assert_eq!(unused, json!([]));
    }

    async fn device_lists_tell_who_has_changed(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        let from = feed.since.clone();
        upload(&alice, 0).await;
        upload(&eve, 0).await;
        let changed = feed
            .until("alice's new keys", |synced| {
                let changed = synced.ok()["device_lists"]["changed"].as_array()?.clone();
                changed.contains(&json!(alice.id)).then_some(changed)
            })
            .await;
        assert!(!changed.contains(&json!(eve.id)), "eve shares no room");
        let asked = bob.get("/keys/changes").query("from", &from).query("to", &feed.since).await;
        assert!(asked.ok()["changed"].as_array().is_some_and(|c| c.contains(&json!(alice.id))));
        alice.leave(&room).await.ok();
        feed.until("alice is gone", |synced| {
            let left = synced.ok()["device_lists"]["left"].as_array()?;
            left.contains(&json!(alice.id)).then_some(())
        })
        .await;
        alice.invite(&room, &bob).await.refused(403, "M_FORBIDDEN");
        let other = alice.create_room().await;
        alice.invite(&other, &bob).await.ok();
        bob.join(&other).await.ok();
        feed.until("alice is back", |synced| {
            let changed = synced.ok()["device_lists"]["changed"].as_array()?;
            changed.contains(&json!(alice.id)).then_some(())
        })
        .await;
    }

    async fn cross_signing_keys_are_kept_and_shown(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        upload(&alice, 0).await;
        let keys = cross_signing_body(&alice);
        alice.post("/keys/device_signing/upload", &keys).await.ok();
        let body = json!({"device_keys": {&alice.id: []}});
        let mine = alice.post("/keys/query", &body).await;
        assert_eq!(mine.ok()["master_keys"][&alice.id]["usage"], json!(["master"]));
        assert_eq!(mine.ok()["self_signing_keys"][&alice.id]["usage"], json!(["self_signing"]));
        assert_eq!(mine.ok()["user_signing_keys"][&alice.id]["usage"], json!(["user_signing"]));
        let his = bob.post("/keys/query", &body).await;
        assert!(his.ok()["master_keys"][&alice.id].is_object());
        assert!(his.ok()["user_signing_keys"][&alice.id].is_null(), "only its owner sees it");

        // Her self-signing key vouches for her device, and everybody sees it.
        let [master, of_self, _] = secrets();
        let mut device = device_keys(&alice);
        sign(&mut device, &alice, &of_self);
        let body = json!({&alice.id: {&alice.device: device}});
        let answer = alice.post("/keys/signatures/upload", &body).await;
        assert_eq!(answer.ok()["failures"], json!({}));
        let his = bob.post("/keys/query", &json!({"device_keys": {&alice.id: []}})).await;
        let signatures = &his.ok()["device_keys"][&alice.id][&alice.device]["signatures"];
        let key_id = format!("ed25519:{}", public(&of_self));
        assert_eq!(signatures[&alice.id][&key_id], device["signatures"][&alice.id][&key_id]);
        // A signature of nothing, or by a key that may not vouch for devices, is not taken.
        let mut forged = device_keys(&alice);
        forged["signatures"][&alice.id][&key_id] = json!("c2ln");
        let mut by_master = device_keys(&alice);
        sign(&mut by_master, &alice, &master);
        for wrong in [forged, by_master] {
            let body = json!({&alice.id: {&alice.device: wrong}});
            let answer = alice.post("/keys/signatures/upload", &body).await;
            assert!(answer.ok()["failures"][&alice.id][&alice.device].is_object(), "{answer}");
        }
    }

    async fn users_vouch_for_each_other(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for user in [&alice, &bob] {
            let body = cross_signing_body(user);
            user.post("/keys/device_signing/upload", &body).await.ok();
        }
        let [master, _, of_users] = secrets();
        let mut his = signing_key(&bob, "master", &master);
        sign(&mut his, &alice, &of_users);
        let body = json!({&bob.id: {public(&master): his}});
        let answer = alice.post("/keys/signatures/upload", &body).await;
        assert_eq!(answer.ok()["failures"], json!({}));
        let body = json!({"device_keys": {&bob.id: []}});
        let hers = alice.post("/keys/query", &body).await;
        assert!(hers.ok()["master_keys"][&bob.id]["signatures"][&alice.id].is_object());
        let seen = bob.post("/keys/query", &body).await;
        let seen = &seen.ok()["master_keys"][&bob.id]["signatures"][&alice.id];
        assert!(seen.is_null(), "whom she trusts is hers to know");
    }

    async fn users_of_other_servers_are_vouched_for(server: Server) with (Settings::federating()) {
        let (other, alice) = (Other::start().await, server.user("alice").await);
        alice.post("/keys/device_signing/upload", &cross_signing_body(&alice)).await.ok();
        let bob = other.user("bob");
        let [master, _, of_users] = secrets();
        let mut his = signing_key(&alice, "master", &master);
        his["user_id"] = json!(bob);
        let keys = Reply::json(&json!({"master_keys": {&bob: his}}));
        other.always("POST", "/_matrix/federation/v1/user/keys/query", keys);
        sign(&mut his, &alice, &of_users);
        let body = json!({&bob: {public(&master): his}});
        let answer = alice.post("/keys/signatures/upload", &body).await;
        assert_eq!(answer.ok()["failures"], json!({}));
        let hers = alice.post("/keys/query", &json!({"device_keys": {&bob: []}})).await;
        assert_eq!(hers.ok()["master_keys"][&bob], his);
        other.behave();
        other.always("POST", "/_matrix/federation", Reply::json(&json!({"master_keys": {}})));
        let answer = alice.post("/keys/signatures/upload", &body).await;
        let failure = &answer.ok()["failures"][&bob][public(&master)];
        assert_eq!(failure["errcode"], "M_NOT_FOUND", "his server knows no such key now");
    }

    async fn cross_signing_keys_are_replaced_with_the_password_only(server: Server) {
        let alice = server.user("alice").await;
        const UPLOAD: &str = "/keys/device_signing/upload";
        let mut keys = cross_signing_body(&alice);
        for part in ["self_signing_key", "user_signing_key"] {
            let mut unsigned = keys.clone();
            unsigned[part]["signatures"] = json!({});
            alice.post(UPLOAD, &unsigned).await.refused(400, "M_INVALID_SIGNATURE");
        }
        for wrong in [json!({"master_key": 7}), json!({"master_key": {"user_id": alice.id}})] {
            assert_eq!(alice.post(UPLOAD, &wrong).await.status, 400);
        }
        alice.post(UPLOAD, &keys).await.ok();
        // The same again changes nothing, and nothing is asked.
        alice.post(UPLOAD, &keys).await.ok();
        let new_master = SigningKey::from_bytes(&[9; 32]);
        keys["master_key"] = signing_key(&alice, "master", &new_master);
        for part in ["self_signing_key", "user_signing_key"] {
            keys[part]["signatures"] = json!({});
            sign(&mut keys[part], &alice, &new_master);
        }
        let asked = alice.post(UPLOAD, &keys).await;
        let mut wrong = confirmation(&alice, &asked);
        wrong["password"] = json!("guessed");
        alice.post(UPLOAD, &json!({"auth": wrong})).await.refused(401, "M_FORBIDDEN");
        // The session has kept the keys.
        alice.post(UPLOAD, &json!({"auth": confirmation(&alice, &asked)})).await.ok();
        let seen = alice.post("/keys/query", &json!({"device_keys": {&alice.id: []}})).await;
        let master = &seen.ok()["master_keys"][&alice.id]["keys"];
        assert_eq!(master, &keys["master_key"]["keys"]);
    }

    async fn key_backups_have_versions_and_counts(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        alice.get("/room_keys/version").await.refused(404, "M_NOT_FOUND");
        let algorithm = "m.megolm_backup.v1.curve25519-aes-sha2";
        let auth = json!({"public_key": "cHVi", "signatures": {}});
        let body = json!({"algorithm": algorithm, "auth_data": auth});
        let version = alice.post("/room_keys/version", &body).await.string("version");
        let info = alice.get("/room_keys/version").await;
        assert_eq!((info.string("version"), &info.ok()["count"]), (version.clone(), &json!(0)));
        let first_etag = info.string("etag");

        let session = |index: u64| json!({
            "first_message_index": index, "forwarded_count": 0, "is_verified": true,
            "session_data": {"ciphertext": "eA", "ephemeral": "eQ", "mac": "eg"},
        });
        let url = path("/room_keys/keys/{}/{}", &["!a:test.local", "session+/1"]);
        let put = |index: u64, version: &str| {
            alice.put(url.as_str(), &session(index)).query("version", version)
        };
        let answer = put(5, &version).await;
        assert_eq!(answer.ok()["count"], 1);
        assert_ne!(answer.string("etag"), first_etag);
        put(9, &version).await.ok();
        let get = || alice.get(url.as_str()).query("version", &version);
        assert_eq!(get().await.ok()["first_message_index"], 5, "the better key stays");
        put(2, &version).await.ok();
        assert_eq!(get().await.ok()["first_message_index"], 2, "a better one replaces it");
        let many = json!({"rooms": {
            "!a:test.local": {"sessions": {"two": session(0)}},
            "!b:test.local": {"sessions": {"three": session(0)}},
        }});
        let answer = alice.put("/room_keys/keys", &many).query("version", &version).await;
        assert_eq!(answer.ok()["count"], 3);
        let all = alice.get("/room_keys/keys").query("version", &version).await;
        assert_eq!(all.ok()["rooms"].as_object().map(serde_json::Map::len), Some(2));
        let room = path("/room_keys/keys/{}", &["!b:test.local"]);
        let one = alice.get(room.as_str()).query("version", &version).await;
        assert!(one.ok()["sessions"]["three"].is_object());
        alice.delete(room).query("version", &version).await.ok();
        assert_eq!(alice.get("/room_keys/version").await.ok()["count"], 2);
        bob.get(url.as_str()).query("version", &version).await.refused(404, "M_NOT_FOUND");

        let newer = alice.post("/room_keys/version", &body).await.string("version");
        assert_ne!(newer, version);
        let answer = put(0, &version).await;
        answer.refused(403, "M_WRONG_ROOM_KEYS_VERSION");
        assert_eq!(answer.json()["current_version"], newer);
        let mut changed = body.clone();
        changed["auth_data"]["signatures"] = json!({&alice.id: {"ed25519:X": "cw"}});
        changed["version"] = json!(newer);
        let url = format!("/room_keys/version/{newer}");
        alice.put(url.as_str(), &changed).await.ok();
        let info = alice.get(url.as_str()).await;
        assert_eq!(info.ok()["auth_data"], changed["auth_data"]);
        alice.delete(url.as_str()).await.ok();
        alice.get(url).await.refused(404, "M_NOT_FOUND");
        assert_eq!(alice.get("/room_keys/version").await.string("version"), version);
    }
}
