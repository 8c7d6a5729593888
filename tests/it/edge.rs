//! Bad input: nothing that a client sends gets anything but a proper error.

use chatd_kit::{Answer, Server, User, path, scenario};
use serde_json::{Value, json};

/// A refusal with an `errcode`, whatever it is, in the 400s.
#[track_caller]
fn proper_refusal(answer: &Answer, what: &str) {
    assert!((400..500).contains(&answer.status), "{what}: {answer}");
    assert!(answer.errcode().starts_with("M_"), "{what}: {answer}");
    assert!(answer.json()["error"].is_string(), "{what}: {answer}");
    let kind = answer.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/json"), "{what}: {kind}");
}

/// The server still works for `user`.
async fn still_works(user: &User) {
    user.get("/account/whoami").await.ok();
}

/// Sends `bytes` as the content of a message.
async fn send_raw(user: &User, room: &str, txn: &str, bytes: &[u8]) -> Answer {
    user.request("PUT", path("/rooms/{}/send/m.room.message/{}", &[room, txn]))
        .header("content-type", "application/json")
        .body(bytes)
        .await
}

fn nested(depth: usize) -> Vec<u8> {
    let mut json = b"{\"a\":".to_vec();
    json.extend(std::iter::repeat_n(b'[', depth));
    json.extend(std::iter::repeat_n(b']', depth));
    json.push(b'}');
    json
}

async fn preflight(server: &Server, path: &str) {
    let answer = server
        .request("OPTIONS", path)
        .header("origin", "https://client.example")
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "authorization,content-type")
        .await;
    assert!([200, 204].contains(&answer.status), "{path}: {answer}");
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{path}");
    let methods = answer.header("access-control-allow-methods").unwrap_or_default();
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS"] {
        assert!(methods.contains(method), "{path}: {methods}");
    }
    let headers = answer.header("access-control-allow-headers").unwrap_or_default();
    let headers = headers.to_ascii_lowercase();
    for header in ["authorization", "content-type", "x-requested-with"] {
        assert!(headers.contains(header), "{path}: {headers}");
    }
}

scenario! {
    async fn bodies_that_are_not_json_are_refused(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let cases: [(&str, &[u8]); 12] = [
            ("cut off", b"{\"body\":"),
            ("no quotes", b"{body:1}"),
            ("trailing comma", b"{\"a\":1,}"),
            ("two values", b"{} {}"),
            ("single quotes", b"{'a':1}"),
            ("a comment", b"{} // hello"),
            ("NaN", b"{\"a\":NaN}"),
            ("bad UTF-8", b"{\"a\":\"\xff\xfe\"}"),
            ("overlong UTF-8", b"{\"a\":\"\xc0\xaf\"}"),
            ("half a surrogate in UTF-8", b"{\"a\":\"\xed\xa0\x80\"}"),
            ("a raw control character", b"{\"a\":\"\x01\"}"),
            ("nothing but a byte", b"\x00"),
        ];
        for (what, body) in cases {
            let answer = send_raw(&alice, &room, "x", body).await;
            proper_refusal(&answer, what);
            assert_eq!((answer.status, answer.errcode()), (400, "M_NOT_JSON"), "{what}: {answer}");
        }
        still_works(&alice).await;
    }

    async fn contents_that_are_not_objects_are_refused(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        for body in ["[]", "\"text\"", "7", "null", "true"] {
            let answer = send_raw(&alice, &room, "x", body.as_bytes()).await;
            proper_refusal(&answer, body);
            assert_eq!(answer.status, 400);
        }
    }

    async fn numbers_have_to_be_canonical(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        for number in [
            "1.5", "1e400", "9007199254740992", "-9007199254740992", "1e3", "-0.1",
            "123456789012345678901234567890",
        ] {
            let body = format!("{{\"n\":{number}}}");
            let answer = send_raw(&alice, &room, number, body.as_bytes()).await;
            proper_refusal(&answer, number);
            assert_eq!(answer.status, 400, "{number}");
        }
        for number in ["9007199254740991", "-9007199254740991", "0"] {
            let body = format!("{{\"n\":{number}}}");
            send_raw(&alice, &room, number, body.as_bytes()).await.ok();
        }
    }

    async fn deep_nesting_is_refused_without_harm(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        send_raw(&alice, &room, "fine", &nested(50)).await.ok();
        for depth in [200, 5_000, 200_000] {
            proper_refusal(&send_raw(&alice, &room, "deep", &nested(depth)).await, "nesting");
        }
        let answer = server
            .request("POST", "/login")
            .header("content-type", "application/json")
            .body(nested(200_000))
            .await;
        proper_refusal(&answer, "nesting without a token");
        still_works(&alice).await;
    }

    async fn large_bodies_are_refused(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let large = json!({"msgtype": "m.text", "body": "x".repeat(66_000)});
        let answer = alice.send_event(&room, "m.room.message", "large", &large).await;
        answer.refused(413, "M_TOO_LARGE");
        let huge = "x".repeat(8 << 20);
        let url = path("/rooms/{}/send/m.room.message/huge", &[&room]);
        let nobody = format!("/_matrix/client/v3{url}");
        for _ in 0..2 {
            let answer = alice.request("PUT", &url).body(huge.clone()).await;
            answer.refused(413, "M_TOO_LARGE");
            // The answer is there before the body, and no proxy takes that for a failure.
            let stranger = server.request("PUT", &nobody).body(huge.clone()).await;
            stranger.refused(401, "M_MISSING_TOKEN");
        }
        let fits = json!({"msgtype": "m.text", "body": "x".repeat(60_000)});
        alice.send_event(&room, "m.room.message", "fits", &fits).await.ok();
        let key = "k".repeat(256);
        let answer = alice.set_state(&room, "org.example.x", &key, &json!({})).await;
        proper_refusal(&answer, "a long state key");
        let answer = alice.send_event(&room, &key, "t", &json!({})).await;
        proper_refusal(&answer, "a long event type");
        still_works(&alice).await;
    }

    async fn wrong_types_are_refused(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let cases = [
            ("POST", "/createRoom".to_owned(), json!({"invite": "everybody"})),
            ("POST", "/createRoom".to_owned(), json!({"initial_state": [{"type": 1}]})),
            ("POST", "/login".to_owned(), json!({"type": 7})),
            ("POST", "/register".to_owned(), json!({"username": ["x"], "password": "long enough"})),
            ("POST", path("/rooms/{}/invite", &[&room]), json!({"user_id": 7})),
            ("POST", path("/rooms/{}/invite", &[&room]), json!({})),
            ("POST", path("/rooms/{}/invite", &[&room]), json!({"user_id": "alice"})),
            ("POST", path("/rooms/{}/kick", &[&room]), json!({"user_id": ""})),
            ("PUT", path("/rooms/{}/typing/{}", &[&room, &alice.id]), json!({"typing": "yes"})),
            ("PUT", path("/profile/{}/displayname", &[&alice.id]), json!({"displayname": 7})),
            ("PUT", "/sendToDevice/x/t".to_owned(), json!({"messages": []})),
            ("POST", "/keys/query".to_owned(), json!({"device_keys": []})),
            ("POST", "/keys/claim".to_owned(), json!({"one_time_keys": "all"})),
            ("POST", "/delete_devices".to_owned(), json!({"devices": "all"})),
            ("POST", "/delete_devices".to_owned(), json!({})),
            ("POST", "/account/password".to_owned(), json!({"new_password": 7})),
            ("POST", "/account/password".to_owned(), json!({"logout_devices": "yes"})),
            ("POST", "/account/deactivate".to_owned(), json!({"erase": "yes"})),
            ("POST", "/keys/device_signing/upload".to_owned(), json!({"master_key": 7})),
            ("PUT", "/directory/room/%23x%3Atest.local".to_owned(), json!({"room_id": 7})),
            ("POST", path("/user/{}/filter", &[&alice.id]), json!({"room": []})),
        ];
        for (method, path, body) in cases {
            let answer = alice.request(method, path.as_str()).json(&body).await;
            proper_refusal(&answer, &format!("{method} {path} {body}"));
            assert_eq!(answer.status, 400, "{answer}");
        }
        for (kind, content) in [
            ("m.room.power_levels", json!({"users": {&alice.id: "100"}})),
            ("m.room.power_levels", json!({"users_default": {}})),
            ("m.room.member", json!({"membership": 7})),
            ("m.room.join_rules", json!({"join_rule": 7})),
        ] {
            let key = if kind == "m.room.member" { alice.id.as_str() } else { "" };
            let answer = alice.set_state(&room, kind, key, &content).await;
            proper_refusal(&answer, &format!("{kind} {content}"));
        }
        still_works(&alice).await;
    }

    async fn odd_ids_and_paths_are_refused(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        for path in [
            "/rooms/nonsense/state",
            "/rooms/%21/state",
            "/rooms/%ff%fe/state",
            "/rooms/!x%2f..%2f..%2fadmin/state",
            "/rooms//state",
            "/rooms/%2e%2e/state",
            "/user/nobody/filter/0",
            "/profile/nobody",
            "/profile/%40",
            "/directory/room/nonsense",
            "/directory/room/%23",
            "/presence/x/status",
        ] {
            proper_refusal(&alice.get(path).await, path);
        }
        let long = format!("!{}:test.local", "x".repeat(5_000));
        proper_refusal(&alice.get(chatd_kit::path("/rooms/{}/state", &[&long])).await, "a long id");
        proper_refusal(&alice.join("nonsense").await, "join");
        proper_refusal(&alice.event(&room, "nonsense").await, "an event id");
        for (name, value) in [("dir", "sideways"), ("limit", "many"), ("from", "nonsense")] {
            let request = alice.get(chatd_kit::path("/rooms/{}/messages", &[&room]));
            let request = if name == "dir" { request } else { request.query("dir", "b") };
            proper_refusal(&request.query(name, value).await, name);
        }
        // An encoded slash is part of a state key, not of the path.
        alice.set_state(&room, "org.example.x", "a/b%2Fc", &json!({"n": 1})).await.ok();
        let found = alice.get_state(&room, "org.example.x", "a/b%2Fc").await;
        assert_eq!(found.ok()["n"], 1);
        still_works(&alice).await;
    }

    async fn content_types_do_not_matter(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        for kind in ["text/plain", "application/x-www-form-urlencoded", "nonsense"] {
            let answer = alice
                .request("PUT", path("/rooms/{}/send/m.room.message/{}", &[&room, kind]))
                .header("content-type", kind)
                .body("{\"msgtype\":\"m.text\",\"body\":\"x\"}")
                .await;
            answer.ok();
        }
        // Clients leave bodies out where nothing is needed.
        alice.request("POST", path("/join/{}", &[&room])).await.ok();
    }

    async fn tokens_are_asked_for(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let whoami = || server.request("GET", "/account/whoami");
        whoami().await.refused(401, "M_MISSING_TOKEN");
        for token in ["nonsense", "syt_YWxpY2U_AAAAAAAAAAAAAAAAAAAA_000000", "é", "'OR'1=1"] {
            let answer = whoami().header("authorization", &format!("Bearer {token}")).await;
            answer.refused(401, "M_UNKNOWN_TOKEN");
        }
        for other in ["Basic YWxpY2U6eA==", "Bearer", "Bearer two words", "nonsense"] {
            let answer = whoami().header("authorization", other).await;
            answer.refused(401, "M_MISSING_TOKEN");
        }
        // The deprecated form, which servers of v1.19 and older keep.
        let answer = whoami().query("access_token", &alice.token).await;
        assert_eq!(answer.string("user_id"), alice.id);
        let both = alice.get("/account/whoami").query("access_token", &alice.token);
        both.await.refused(401, "M_MISSING_TOKEN");
        // Somebody else's token opens nothing of alice's.
        for url in ["/account_data/x", "/filter/0"] {
            let answer = bob.get(path("/user/{}", &[&alice.id]) + url).await;
            answer.refused(403, "M_FORBIDDEN");
        }
        let room = alice.create_room().await;
        for url in ["/state", "/members", "/joined_members", "/messages?dir=b"] {
            let answer = bob.get(path("/rooms/{}", &[&room]) + url).await;
            answer.refused(403, "M_FORBIDDEN");
        }
        bob.send_text(&room, "x").await.refused(403, "M_FORBIDDEN");
        bob.get_state(&room, "m.room.create", "").await.refused(403, "M_FORBIDDEN");
        let nowhere = "!nowhere:test.local";
        bob.send_text(nowhere, "x").await.refused(403, "M_FORBIDDEN");
    }

    async fn unknown_endpoints_and_methods_are_told_apart(server: Server) {
        let alice = server.user("alice").await;
        for path in ["/nonsense", "/_matrix/client/v9/sync", "/_matrix/nonsense", "/rooms/x/nonsense"] {
            alice.get(path).await.refused(404, "M_UNRECOGNIZED");
            server.request("GET", path).await.refused(404, "M_UNRECOGNIZED");
        }
        for (method, path) in [
            ("DELETE", "/sync"), ("GET", "/createRoom"), ("PUT", "/login"),
            ("PATCH", "/account/whoami"), ("POST", "/_matrix/client/versions"),
        ] {
            alice.request(method, path).await.refused(405, "M_UNRECOGNIZED");
        }
    }

    async fn browsers_may_ask_from_anywhere(server: Server) {
        let alice = server.user("alice").await;
        for path in [
            "/sync", "/createRoom", "/rooms/!x:test.local/send/m.room.message/1", "/nonsense",
            "/_matrix/client/versions", "/_matrix/client/r0/login", "/_synapse/admin/v1/register",
        ] {
            preflight(&server, path).await;
        }
        for answer in [
            server.request("GET", "/_matrix/client/versions").await,
            server.request("GET", "/account/whoami").await,
            alice.get("/account/whoami").await,
            alice.get("/nonsense").await,
        ] {
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{answer}");
        }
    }

    async fn an_event_that_is_too_large_harms_no_other(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let large = json!({"body": "x".repeat(66_000)});
        let work = (0..20).map(|number| {
            let (alice, room, large) = (alice.clone(), room.clone(), large.clone());
            async move {
                if number % 5 == 0 {
                    let txn = format!("large{number}");
                    alice.send_event(&room, "m.room.message", &txn, &large).await.status
                } else {
                    alice.send_text(&room, "fine").await.status
                }
            }
        });
        let statuses = futures::future::join_all(work).await;
        let fine: Vec<Value> = statuses.iter().filter(|s| **s == 200).map(|s| json!(s)).collect();
        assert_eq!(fine.len(), 16, "{statuses:?}");
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
        for id in ["nonsense", "!", "@alice:test.local"] {
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

    /// nginx refuses these, or changes them, by itself.
    async fn what_no_proxy_hands_on_is_refused(server: Server) in (monolith) {
        let alice = server.user("alice").await;
        for path in [
            "/rooms/%00/state",
            "/user/%00/filter/0",
            "/rooms/%zz/state",
            "/rooms/../../_synapse/admin/v1/register/state",
        ] {
            proper_refusal(&alice.get(path).await, path);
        }
        still_works(&alice).await;
    }

    async fn what_needs_no_account(server: Server) {
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
