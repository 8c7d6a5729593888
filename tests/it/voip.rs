//! Credentials for a TURN server.

use base64::{Engine, engine::general_purpose::STANDARD};
use chatd_kit::{Settings, scenario};
use serde_json::json;

const URIS: [&str; 2] = ["turn:turn.test.local?transport=udp", "turns:turn.test.local"];

scenario! {
    async fn without_a_turn_server_there_are_no_credentials(server: Server) {
        let alice = server.user("alice").await;
        // The specification has no answer for this; clients know an empty one from Synapse.
        assert_eq!(*alice.get("/voip/turnServer").unchecked().await.ok(), json!({}));
        server.request("GET", "/voip/turnServer").await.refused(401, "M_MISSING_TOKEN");
    }

    async fn a_shared_secret_makes_credentials_of_each_user(server: Server) with (Settings::new()
        .with("turn_uris", json!(URIS))
        .with("turn_shared_secret", "north")
        .with("turn_user_lifetime", "1h"))
    {
        let alice = server.user("alice").await;
        let answer = alice.get("/voip/turnServer").await;
        let told = answer.ok();
        assert_eq!((&told["ttl"], &told["uris"]), (&json!(3600), &json!(URIS)));
        let (expires, user) = told["username"].as_str().unwrap().split_once(':').unwrap();
        assert_eq!(user, alice.id);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!((now + 3500..=now + 3600).contains(&expires.parse().unwrap()), "{expires}");
        // The HMAC itself has a vector beside the code.
        assert_eq!(STANDARD.decode(told["password"].as_str().unwrap()).unwrap().len(), 20);
    }

    async fn a_fixed_name_is_passed_on(server: Server) with (Settings::new()
        .with("turn_uris", json!(URIS))
        .with("turn_username", "caller")
        .with("turn_password", "secret"))
    {
        let alice = server.user("alice").await;
        let answer = alice.get("/voip/turnServer").await;
        let told = answer.ok();
        assert_eq!((&told["username"], &told["password"]), (&json!("caller"), &json!("secret")));
    }
}
