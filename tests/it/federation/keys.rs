//! Signing keys: this server's, those of others, and who may ask.

use chatd_kit::{
    Other, Settings,
    http::Http,
    other::{Key, authorization, is_signed, keys_of},
    path, scenario,
};
use serde_json::json;

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=";

/// A signed question for Alice's profile.
fn question(user: &str) -> String {
    format!("{PROFILE}{}", path("{}", &[user]))
}

scenario! {
    async fn the_servers_own_keys_are_told_and_sign_what_they_say(server: Server)
    with (Settings::federating())
    {
        for end in ["", "/", "/ed25519%3Awhatever"] {
            let told = server.request("GET", format!("/_matrix/key/v2/server{end}")).await;
            let document = told.ok().clone();
            assert_eq!(document["server_name"], server.name());
            let keys = keys_of(&document);
            assert_eq!(keys[server.name()].len(), 1);
            assert!(is_signed(&document, &keys), "{document}");
        }
    }

    async fn other_servers_are_known_by_their_signatures(server: Server)
    with (Settings::federating())
    {
        let (other, alice) = (Other::start().await, server.user("alice").await);
        let (peer, uri) = (server.peer(), question(&alice.id));
        let told = other.get(&peer, &uri).await;
        assert_eq!(told.ok()["displayname"], "alice");
        assert_eq!(other.seen("GET", "/_matrix/key/v2/server").len(), 1, "asked once");

        let http = Http::new(server.url()).unchecked();
        let ask = |header: String| http.request("GET", &uri).header("authorization", &header);
        let good = |key: &Key, to: &str| authorization((&other.name(), key), to, "GET", &uri, None);
        let header = good(&other.key(), server.name());
        for form in [
            header.replace('"', ""),
            header.replace("X-Matrix ", "x-matrix  ").replace(',', " , "),
            header.replace("origin=", "ORIGIN=").replace("key=", "Key="),
            header.replace(&format!("destination=\"{}\",", server.name()), ""),
        ] {
            ask(form.clone()).await.ok();
        }
        let refused = [
            good(&other.key(), "elsewhere.example"),
            good(&Key::generate("a_none"), server.name()),
            header.replace("sig=\"", "sig=\"AA"),
            header.replace(&other.name(), server.name()),
            "X-Matrix".to_owned(),
            "Bearer abc".to_owned(),
        ];
        for form in refused {
            ask(form.clone()).await.refused(401, "M_UNAUTHORIZED");
        }
        http.request("GET", &uri).await.refused(401, "M_UNAUTHORIZED");
        let wrong_body = http.request("POST", "/_matrix/federation/v1/user/keys/query");
        wrong_body.header("authorization", &header).json(&json!({})).await
            .refused(401, "M_UNAUTHORIZED");
    }

    async fn keys_of_others_are_told_with_both_signatures(server: Server) with (Settings::federating())
    {
        let other = Other::start().await;
        let name = other.name();
        let one = server.request("GET", path("/_matrix/key/v2/query/{}", &[&name])).await;
        let body = json!({"server_keys": {&name: {other.key().id(): {}}}});
        let many = server.request("POST", "/_matrix/key/v2/query").json(&body).await;
        assert_eq!(one.ok(), many.ok());
        let document = &one.ok()["server_keys"][0];
        let own = server.request("GET", "/_matrix/key/v2/server").await.ok().clone();
        let mut keys = keys_of(&own);
        keys.extend(keys_of(document));
        assert_eq!(document["signatures"].as_object().map(|all| all.len()), Some(2));
        assert!(is_signed(document, &keys), "{document}");
        assert_eq!(other.seen("GET", "/_matrix/key/v2/server").len(), 1, "asked once");
        let nobody = json!({"server_keys": {"127.0.0.1:1": {}}});
        let none = server.request("POST", "/_matrix/key/v2/query").json(&nobody).await;
        assert_eq!(none.ok()["server_keys"], json!([]));
    }

    async fn a_server_that_is_not_on_the_list_is_refused(server: Server) with (Settings::federating().with("federation_domain_whitelist", json!(["a"])))
    {
        let (other, alice) = (Other::start().await, server.user("alice").await);
        let answer = other.get(&server.peer(), &question(&alice.id)).await;
        answer.refused(403, "M_FORBIDDEN");
        assert!(other.seen("GET", "/_matrix/key/v2/server").is_empty(), "nobody is asked");
    }
}
