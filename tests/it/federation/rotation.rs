//! Signing keys that change while others know the earlier ones.

use std::fs;

use chatd_kit::{
    Command, Other, Server, Settings,
    other::{Key, Pdu, authorization, now_ms},
    path, scenario,
};
use serde_json::{Value, json};

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=";

/// Gives a server another signing key, as an admin does; it has to be started again.
fn rotate(server: &Server) {
    let folder = server.folder();
    let file = folder.join("homeserver.yaml");
    let line = "generate-keys -c homeserver.yaml -o new.signing.key";
    let made = Command::new(env!("CARGO_BIN_EXE_chatd"), folder, line).end();
    made.ok();
    let entry = made.err.lines().find(|line| line.contains("expired_ts:")).expect("an entry");
    let entry = entry.replace("key:", "\"key\":").replace("expired_ts:", "\"expired_ts\":");
    let old: Value = serde_json::from_str(&format!("{{{entry}}}")).expect("one entry");
    let text = fs::read_to_string(&file).expect("its configuration");
    let mut config: Value = serde_json::from_str(&text).expect("JSON, which is YAML too");
    config["old_signing_keys"] = old;
    config["signing_key_path"] = json!(folder.join("new.signing.key"));
    fs::write(&file, config.to_string()).expect("its configuration");
}

fn key_ids(document: &Value, which: &str) -> Vec<String> {
    document[which].as_object().map(|keys| keys.keys().cloned().collect()).unwrap_or_default()
}

scenario! {
    async fn keys_change_on_both_sides(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = alice.create_room().preset("public_chat").version("11").await;
        let old_room = alice.create_room().preset("public_chat").version("4").await;
        let peer = server.peer();
        let (far, far_old) =
            (other.join(&peer, &room, &bob).await, other.join(&peer, &old_room, &bob).await);
        alice.send(&room, "with the first key").await;
        other.until_pdu("a text", |pdu| pdu["content"]["body"] == "with the first key").await;
        let before = server.request("GET", "/_matrix/key/v2/server").await.ok().clone();
        let (first, theirs) = (key_ids(&before, "verify_keys"), other.key());
        let early = far.draft(&bob, "m.room.message", json!({"body": "early"}))
            .with("origin_server_ts", now_ms() - 1_000).make();

        server.sigterm().await.expect("it ends");
        rotate(&server);
        other.rotate();
        server.restart().await.expect("it starts");

        // Its own: the new one signs, the earlier one is told as such.
        let after = server.request("GET", "/_matrix/key/v2/server").await.ok().clone();
        assert_eq!(key_ids(&after, "old_verify_keys"), first);
        assert_ne!(key_ids(&after, "verify_keys"), first);
        assert_eq!(after["old_verify_keys"][&first[0]]["key"], before["verify_keys"][&first[0]]["key"]);
        alice.send(&room, "with the second key").await;
        other.until_pdu("a text", |pdu| pdu["content"]["body"] == "with the second key").await;
        // Whoever comes now believes what either key has signed.
        let late = Other::start().await;
        let carol = late.user("carol");
        let seen = late.join(&server.peer(), &room, &carol).await;
        assert_eq!(seen.membership(&alice.id), "join", "signed with the first key");
        let wanted = json!({
            "earliest_events": [], "latest_events": seen.heads(), "limit": 10, "min_depth": 0,
        });
        let route = format!("/_matrix/federation/v1/get_missing_events/{}", path("{}", &[&room]));
        let missed = late.ask(&server.peer(), "POST", &route, Some(&wanted)).await;
        let missed = missed.ok()["events"].as_array().cloned().unwrap_or_default();
        for body in ["with the first key", "with the second key"] {
            let pdu = missed.iter().find(|pdu| pdu["content"]["body"] == body);
            let pdu = Pdu::of(pdu.expect("it is told").clone(), &seen.rules());
            late.check_pdu(&pdu, &seen.rules()).await.unwrap();
        }

        // The other server's: requests are signed with the new key, and no more with the old one.
        let uri = format!("{PROFILE}{}", path("{}", &[&alice.id]));
        let by = |key: &Key| authorization((&other.name(), key), server.name(), "GET", &uri, None);
        let ask = |header: String| server.request("GET", &uri).header("authorization", &header);
        ask(by(&other.key())).await.ok();
        ask(by(&theirs)).await.refused(401, "M_UNAUTHORIZED");

        // Events that the old one has signed in its time are good, later ones are not.
        let peer = server.peer();
        let mut feed = alice.feed().await;
        let answer = other.send(&peer, std::slice::from_ref(&early), &[]).await;
        assert_eq!(answer.ok()["pdus"][&early.id], json!({}), "{answer}");
        feed.until_event(&room, &early.id).await;
        let forged = far.draft(&bob, "m.room.message", json!({"body": "late"}))
            .with("origin_server_ts", now_ms() + 1_000).make();
        let answer = other.send(&peer, std::slice::from_ref(&forged), &[]).await;
        assert!(answer.ok()["pdus"][&forged.id]["error"].is_string(), "{answer}");
        let good = far.draft(&bob, "m.room.message", json!({"body": "with their second key"}))
            .signed_as(&other.name(), &other.key()).make();
        let answer = other.send(&peer, std::slice::from_ref(&good), &[]).await;
        assert_eq!(answer.ok()["pdus"][&good.id], json!({}), "{answer}");
        feed.until_event(&room, &good.id).await;
        // Old room versions do not ask when a key was good.
        let old = far_old.draft(&bob, "m.room.message", json!({"body": "late"}))
            .with("origin_server_ts", now_ms() + 1_000).make();
        let answer = other.send(&peer, std::slice::from_ref(&old), &[]).await;
        assert_eq!(answer.ok()["pdus"][&old.id], json!({}), "{answer}");
    }

    async fn keys_that_have_run_out_sign_nothing(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let alice = server.user("alice").await;
        other.publish(|published| published.valid_until_ms = now_ms() - 1_000);
        let uri = format!("{PROFILE}{}", path("{}", &[&alice.id]));
        other.get(&server.peer(), &uri).await.refused(401, "M_UNAUTHORIZED");
        // It is not asked again at once, however often it comes: each instance asks once.
        for _ in 0..20 {
            other.get(&server.peer(), &uri).await.refused(401, "M_UNAUTHORIZED");
        }
        let asked = other.seen("GET", "/_matrix/key/v2/server").len();
        assert!(asked <= server.instances(), "it was asked {asked} times");
        other.publish(|published| published.valid_until_ms = now_ms() + 3_600_000);
        server.kill9().expect("it ends");
        server.restart().await.expect("it starts");
        other.get(&server.peer(), &uri).await.ok();
    }
}
