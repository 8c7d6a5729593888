//! Tokens by which users show third parties who they are.

use chatd_kit::{Answer, Server, Settings, User, path, scenario};
use serde_json::json;

async fn token(user: &User) -> String {
    let url = path("/user/{}/openid/request_token", &[&user.id]);
    user.post(url, &json!({})).await.string("access_token")
}

/// What somebody learns who has been given a token; they have no account and no keys.
async fn holder(server: &Server, token: &str) -> Answer {
    let url = "/_matrix/federation/v1/openid/userinfo";
    server.request("GET", url).query("access_token", token).await
}

scenario! {
    async fn a_token_says_whose_it_is_and_does_nothing_else(server: Server)
    with (Settings::federating())
    {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let url = path("/user/{}/openid/request_token", &[&alice.id]);
        let given = alice.post(&url, &json!({})).await;
        assert_eq!((given.string("token_type"), given.ok()["expires_in"].as_u64()),
            ("Bearer".to_owned(), Some(3_600)));
        assert_eq!(given.string("matrix_server_name"), server.name());
        let first = given.string("access_token");
        let second = token(&alice).await;
        assert_ne!(first, second);
        for token in [&first, &first, &second] {
            assert_eq!(*holder(&server, token).await.ok(), json!({"sub": alice.id}));
        }
        bob.post(&url, &json!({})).await.refused(403, "M_FORBIDDEN");
        server.request("POST", &url).json(&json!({})).await.refused(401, "M_MISSING_TOKEN");

        let whoami = alice.with_token(&first).get("/account/whoami").await;
        whoami.refused(401, "M_UNKNOWN_TOKEN");
        for wrong in [alice.token.as_str(), "", "x", &first[1..], &first.to_uppercase()] {
            holder(&server, wrong).await.refused(401, "M_UNKNOWN_TOKEN");
        }
        let nothing = server.request("GET", "/_matrix/federation/v1/openid/userinfo").await;
        nothing.refused(401, "M_MISSING_TOKEN");
    }

    async fn a_token_ends_with_its_hour_or_its_account(server: Server) with (Settings::federating())
    {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (hers, his) = (token(&alice).await, token(&bob).await);
        let auth = json!({
            "type": "m.login.password", "password": chatd_kit::user::password_of("bob"),
            "identifier": {"type": "m.id.user", "user": "bob"},
        });
        bob.post("/account/deactivate", &json!({"auth": auth})).await.ok();
        holder(&server, &his).await.refused(401, "M_UNKNOWN_TOKEN");
        holder(&server, &hers).await.ok();
        let database = server.database().connect().await.expect("a connection");
        let past = "UPDATE openid_tokens SET expires_ts = expires_ts - 3600000";
        database.execute(past, &[]).await.expect("the tokens are old");
        holder(&server, &hers).await.refused(401, "M_UNKNOWN_TOKEN");
    }
}
