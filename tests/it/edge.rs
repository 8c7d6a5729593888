//! Bad input at the HTTP edge: whatever a client sends, it gets an error with a code, and the
//! server goes on.

use chatd_kit::{Server, Settings, path, scenario};
use serde_json::{Value, json};

/// A body that is fine but for being far too deep.
fn deep() -> Vec<u8> {
    format!("{{\"body\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000)).into_bytes()
}

scenario! {
    async fn unknown_endpoints_and_methods_are_told(server: Server) {
        for url in ["/nothing", "/_matrix/client/v9/sync", "/_matrix", "/_synapse/admin/v1/nothing"] {
            let answer = server.request("GET", url).unchecked().await;
            answer.refused(404, "M_UNRECOGNIZED");
        }
        for (method, url) in [("DELETE", "/login"), ("PATCH", "/sync"), ("POST", "/sync")] {
            let answer = server.request(method, url).unchecked().await;
            answer.refused(405, "M_UNRECOGNIZED");
        }
    }

    async fn every_answer_lets_browsers_in(server: Server) {
        for (method, url) in [
            ("OPTIONS", "/sync"),
            ("OPTIONS", "/nothing"),
            ("GET", "/sync"),
            ("GET", "/nothing"),
            ("GET", "/_matrix/client/versions"),
        ] {
            let answer = server.request(method, url).unchecked().await;
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{answer}");
            let headers = answer.header("access-control-allow-headers").unwrap_or_default();
            assert!(headers.contains("Authorization"), "{answer}");
            if method == "OPTIONS" {
                assert_eq!(answer.status, 200, "{answer}");
            }
        }
    }

    async fn a_token_must_be_there_and_good(server: Server) {
        let alice = server.user("alice").await;
        server.request("GET", "/account/whoami").await.refused(401, "M_MISSING_TOKEN");
        for bad in ["nonsense", "syt_YWxpY2U_nonsense_000000", ""] {
            let answer = server.request("GET", "/account/whoami").token(bad).unchecked().await;
            let code = if bad.is_empty() { "M_MISSING_TOKEN" } else { "M_UNKNOWN_TOKEN" };
            answer.refused(401, code);
        }
        let both = alice.get("/account/whoami").query("access_token", &alice.token);
        both.await.refused(401, "M_MISSING_TOKEN");
        let in_query = server.request("GET", "/account/whoami").query("access_token", &alice.token);
        assert_eq!(in_query.await.string("user_id"), alice.id);
        alice.post("/logout", &json!({})).await.ok();
        alice.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    }

    async fn bodies_that_are_not_what_they_should_be(server: Server) {
        let alice = server.user("alice").await;
        let table: Vec<(Vec<u8>, u16, &str)> = vec![
            (b"".to_vec(), 400, "M_NOT_JSON"),
            (b"{".to_vec(), 400, "M_NOT_JSON"),
            (b"{\"topic\": \"\xff\xfe\"}".to_vec(), 400, "M_NOT_JSON"),
            (b"{\"topic\": NaN}".to_vec(), 400, "M_NOT_JSON"),
            (b"{\"topic\": \"\\ud800\"}".to_vec(), 400, "M_NOT_JSON"),
            (b"[]".to_vec(), 400, "M_BAD_JSON"),
            (b"\"text\"".to_vec(), 400, "M_BAD_JSON"),
            (b"null".to_vec(), 400, "M_BAD_JSON"),
            (deep(), 400, "M_BAD_JSON"),
            (vec![b' '; 3 << 20], 413, "M_TOO_LARGE"),
        ];
        for (body, status, errcode) in table {
            let start: String = String::from_utf8_lossy(&body).chars().take(30).collect();
            let sent = alice.request("PUT", path("/user/{}/account_data/x", &[&alice.id])).body(body);
            let answer = sent.unchecked().await;
            assert_eq!((answer.status, answer.errcode()), (status, errcode), "{start}: {answer}");
        }
        alice.get("/account/whoami").await.ok();
    }

    async fn the_content_type_does_not_matter(server: Server) {
        let alice = server.user("alice").await;
        for kind in ["text/plain", "application/x-www-form-urlencoded", "nonsense"] {
            let url = path("/user/{}/account_data/x", &[&alice.id]);
            let request = alice.request("PUT", url).header("content-type", kind).body("{\"a\": 1}");
            request.await.ok();
        }
    }

    async fn percent_encoding_is_taken_literally(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let key = "../a/b?c=d#e%20 ü";
        alice.set_state(&room, "org.example/type", key, &json!({"a": 1})).await.ok();
        assert_eq!(alice.get_state(&room, "org.example/type", key).await.ok()["a"], 1);
        let rooms = "/_matrix/client/v3/rooms";
        for bad in ["%ff", "%C3%28"] {
            let answer = alice.get(format!("{rooms}/{bad}/state")).unchecked().await;
            answer.refused(400, "M_INVALID_PARAM");
        }
        for id in ["nonsense", "!", "%00", "@alice:test.local"] {
            let answer = alice.get(format!("{rooms}/{id}/state")).unchecked().await;
            assert!((400..500).contains(&answer.status) && !answer.errcode().is_empty(), "{answer}");
        }
    }

    async fn queries_of_the_wrong_type(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let messages = path("/rooms/{}/messages", &[&room]);
        for (url, errcode) in [
            (format!("{messages}?dir=b&limit=many"), "M_INVALID_PARAM"),
            (format!("{messages}?dir=sideways"), "M_INVALID_PARAM"),
            (format!("{messages}?dir=b&from=nonsense"), "M_INVALID_PARAM"),
            ("/sync?since=nonsense".to_owned(), "M_INVALID_PARAM"),
            ("/sync?timeout=soon".to_owned(), "M_INVALID_PARAM"),
            ("/sync?full_state=perhaps".to_owned(), "M_INVALID_PARAM"),
        ] {
            let answer = alice.get(url).unchecked().await;
            assert_eq!(answer.status, 400, "{answer}");
            assert!([errcode, "M_UNKNOWN", "M_BAD_JSON"].contains(&answer.errcode()), "{answer}");
        }
    }

    async fn limits_are_told(server: Server) with (
        Settings::new().with("rc_message", json!({"per_second": 0.5, "burst_count": 2}))
    ) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let mut refused = None;
        for _ in 0..4 {
            let answer = alice.send_text(&room, "hello").await;
            if answer.status == 429 {
                refused = Some(answer);
                break;
            }
        }
        let answer = refused.expect("the limit is below four messages");
        let error = answer.refused(429, "M_LIMIT_EXCEEDED");
        let wait_ms = error["retry_after_ms"].as_u64().unwrap_or_default();
        assert!((1..=2_000).contains(&wait_ms), "{answer}");
        let seconds = answer.header("retry-after").and_then(|text| text.parse::<u64>().ok());
        assert!(seconds.is_some_and(|seconds| (1..=2).contains(&seconds)), "{answer}");
    }

    async fn what_needs_no_account(server: Server) {
        assert_eq!(server.request("GET", "/health").await.text, "OK");
        let versions = server.request("GET", "/_matrix/client/versions").await;
        assert!(versions.ok()["versions"].as_array().is_some_and(|v| v.contains(&json!("v1.11"))));
        let flows = server.request("GET", "/login").await;
        let kinds: Vec<&Value> =
            flows.ok()["flows"].as_array().into_iter().flatten().map(|f| &f["type"]).collect();
        assert!(kinds.contains(&&json!("m.login.password")), "{flows}");
        server.request("GET", "/.well-known/matrix/client").unchecked().await
            .refused(404, "M_NOT_FOUND");
    }
}
