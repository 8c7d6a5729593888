//! Accounts and sessions: register, log in, refresh, log out, devices, user-interactive
//! authentication, password change, deactivation.

use chatd_kit::{Answer, SERVER_NAME, Settings, User, path, scenario, user::password_of};
use serde_json::{Value, json};

/// The body of a password login.
fn login_body(name: &str, password: &str) -> Value {
    let identifier = json!({"type": "m.id.user", "user": name});
    json!({"type": "m.login.password", "identifier": identifier, "password": password})
}

/// The password stage of user-interactive authentication.
fn password_stage(user: &User, session: &Value, password: &str) -> Value {
    let identifier = json!({"type": "m.id.user", "user": user.id});
    json!({
        "type": "m.login.password",
        "identifier": identifier,
        "password": password,
        "session": session,
    })
}

/// Runs a request that needs the password stage; returns the answer to the second try.
async fn with_password(user: &User, method: &str, path: &str, mut body: Value) -> Answer {
    let asked = user.request(method, path).json(&body).await;
    assert_eq!(asked.status, 401, "{asked}");
    let session = asked.json()["session"].clone();
    let flows = &asked.json()["flows"];
    assert!(flows.to_string().contains("m.login.password"), "{asked}");
    body["auth"] = password_stage(user, &session, &password_of(&user.name));
    user.request(method, path).json(&body).await
}

scenario! {
    async fn a_registration_asks_for_a_stage_and_then_logs_in(server: Server) {
        let body = json!({"username": "alice", "password": "a long password"});
        let asked = server.request("POST", "/register").json(&body).await;
        assert_eq!(asked.status, 401, "{asked}");
        let session = asked.json()["session"].clone();
        assert!(session.is_string());
        assert_eq!(asked.json()["flows"], json!([{"stages": ["m.login.dummy"]}]));

        let mut body = body;
        body["auth"] = json!({"type": "m.login.dummy", "session": session});
        let made = server.request("POST", "/register").json(&body).await;
        assert_eq!(made.string("user_id"), format!("@alice:{SERVER_NAME}"));
        assert!(made.string("access_token").starts_with("syt_YWxpY2U_"), "proxies balance on it");
        let whoami = server
            .request("GET", "/account/whoami")
            .token(&made.string("access_token"))
            .await;
        assert_eq!(whoami.string("device_id"), made.string("device_id"));
    }

    async fn a_registration_can_leave_out_the_login(server: Server) {
        let body = json!({
            "username": "alice", "password": "a long password", "inhibit_login": true,
            "auth": {"type": "m.login.dummy"},
        });
        let made = server.request("POST", "/register").json(&body).await;
        assert!(made.ok()["access_token"].is_null(), "{made}");
        let login = login_body("alice", "a long password");
        server.request("POST", "/login").json(&login).await.ok();
    }

    async fn names_are_checked_before_they_are_taken(server: Server) {
        server.user("alice").await;
        for (name, errcode) in [
            ("alice", "M_USER_IN_USE"),
            ("with space", "M_INVALID_USERNAME"),
            ("slash\\", "M_INVALID_USERNAME"),
            ("_underscore", "M_INVALID_USERNAME"),
        ] {
            let asked = server
                .request("GET", "/register/available")
                .query("username", name)
                .await;
            asked.refused(400, errcode);
            let body = json!({
                "username": name, "password": "a long password",
                "auth": {"type": "m.login.dummy"},
            });
            server.request("POST", "/register").json(&body).await.refused(400, errcode);
        }
        let free = server.request("GET", "/register/available").query("username", "free").await;
        assert_eq!(free.ok()["available"], true);
    }

    async fn upper_case_names_are_lowered(server: Server) {
        let body = json!({
            "username": "Alice", "password": "a long password",
            "auth": {"type": "m.login.dummy"},
        });
        let made = server.request("POST", "/register").json(&body).await;
        assert_eq!(made.string("user_id"), format!("@alice:{SERVER_NAME}"));
    }

    async fn the_login_flows_name_the_password(server: Server) {
        let flows = server.request("GET", "/login").await;
        let flows = flows.ok()["flows"].as_array().cloned().unwrap_or_default();
        assert!(flows.iter().any(|flow| flow["type"] == "m.login.password"));
    }

    async fn a_login_takes_the_device_that_it_names(server: Server) {
        let alice = server.user("alice").await;
        let mut body = login_body("alice", &password_of("alice"));
        body["device_id"] = json!("KITCHEN");
        body["initial_device_display_name"] = json!("kitchen radio");
        let first = server.request("POST", "/login").json(&body).await;
        assert_eq!(first.string("device_id"), "KITCHEN");
        let second = server.request("POST", "/login").json(&body).await;
        assert_ne!(first.string("access_token"), second.string("access_token"));
        // A login on the same device ends its earlier session.
        let old = alice.with_token(&first.string("access_token"));
        old.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        let devices = alice.get("/devices").await;
        let devices = devices.ok()["devices"].as_array().cloned().unwrap_or_default();
        assert_eq!(devices.len(), 2);
        let kitchen = devices.iter().find(|device| device["device_id"] == "KITCHEN");
        assert_eq!(kitchen.expect("the named device")["display_name"], "kitchen radio");
    }

    async fn wrong_logins_are_all_refused_alike(server: Server) {
        server.user("alice").await;
        for (name, password) in [("alice", "wrong"), ("nobody", "wrong"), ("@alice:other.host", "x")] {
            let body = login_body(name, password);
            server.request("POST", "/login").json(&body).await.refused(403, "M_FORBIDDEN");
        }
        let unknown = json!({"type": "m.login.nonsense"});
        let answer = server.request("POST", "/login").json(&unknown).await;
        assert_eq!(answer.status, 400, "{answer}");
    }

    async fn a_login_takes_the_full_user_id(server: Server) {
        let alice = server.user("alice").await;
        let body = login_body(&alice.id, &password_of("alice"));
        assert_eq!(server.request("POST", "/login").json(&body).await.string("user_id"), alice.id);
        // The form before r0.4.
        let body = json!({
            "type": "m.login.password", "user": "alice", "password": password_of("alice"),
        });
        server.request("POST", "/login").json(&body).await.ok();
    }

    async fn a_refresh_token_renews_the_session(server: Server) {
        server.user("alice").await;
        let mut body = login_body("alice", &password_of("alice"));
        body["refresh_token"] = json!(true);
        let made = server.request("POST", "/login").json(&body).await;
        assert!(made.ok()["expires_in_ms"].as_u64().is_some_and(|ms| ms > 0), "{made}");
        let refresh = json!({"refresh_token": made.string("refresh_token")});
        let renewed = server.request("POST", "/refresh").json(&refresh).await;
        let token = renewed.string("access_token");
        assert_ne!(token, made.string("access_token"));
        let whoami = server.request("GET", "/account/whoami").token(&token).await;
        assert_eq!(whoami.string("device_id"), made.string("device_id"));
        let unknown = json!({"refresh_token": "syr_nonsense"});
        let answer = server.request("POST", "/refresh").json(&unknown).await;
        answer.refused(401, "M_UNKNOWN_TOKEN");
    }

    async fn a_refresh_token_is_used_up_once_its_successor_is_used(server: Server) {
        server.user("alice").await;
        let mut body = login_body("alice", &password_of("alice"));
        body["refresh_token"] = json!(true);
        let made = server.request("POST", "/login").json(&body).await;
        let refresh = json!({"refresh_token": made.string("refresh_token")});
        let renewed = server.request("POST", "/refresh").json(&refresh).await;
        let token = renewed.string("access_token");
        server.request("GET", "/account/whoami").token(&token).await.ok();
        let again = server.request("POST", "/refresh").json(&refresh).await;
        assert!([401, 403].contains(&again.status), "{again}");
    }

    async fn a_logout_ends_one_session_or_all(server: Server) {
        let alice = server.user("alice").await;
        let (second, third) = (alice.another_device().await, alice.another_device().await);
        second.post("/logout", &json!({})).await.ok();
        second.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        third.get("/account/whoami").await.ok();
        alice.post("/logout/all", &json!({})).await.ok();
        for device in [&alice, &third] {
            device.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        }
        let back = server.login("alice").await;
        let devices = back.get("/devices").await;
        assert_eq!(devices.ok()["devices"].as_array().map(Vec::len), Some(1), "{devices}");
    }

    async fn devices_are_renamed_and_deleted_with_the_password(server: Server) {
        let alice = server.user("alice").await;
        let (second, third) = (alice.another_device().await, alice.another_device().await);
        let url = path("/devices/{}", &[&second.device]);
        alice.put(url.as_str(), &json!({"display_name": "phone"})).await.ok();
        assert_eq!(alice.get(url.as_str()).await.ok()["display_name"], "phone");
        alice.get("/devices/NOBODY").await.refused(404, "M_NOT_FOUND");
        alice.put("/devices/NOBODY", &json!({})).await.refused(404, "M_NOT_FOUND");

        with_password(&alice, "DELETE", &url, json!({})).await.ok();
        alice.get(url).await.refused(404, "M_NOT_FOUND");
        second.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        let body = json!({"devices": [third.device]});
        with_password(&alice, "POST", "/delete_devices", body).await.ok();
        third.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    }

    async fn another_users_password_opens_nothing(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let second = alice.another_device().await;
        let url = path("/devices/{}", &[&second.device]);
        let asked = alice.delete(url.as_str()).json(&json!({})).await;
        assert_eq!(asked.status, 401);
        let session = asked.json()["session"].clone();
        for stage in [
            password_stage(&alice, &session, "wrong"),
            password_stage(&bob, &session, &password_of("bob")),
        ] {
            let answer = alice.delete(url.as_str()).json(&json!({"auth": stage})).await;
            assert!([401, 403].contains(&answer.status), "{answer}");
            assert_eq!(answer.errcode(), "M_FORBIDDEN", "{answer}");
        }
        second.get("/account/whoami").await.ok();
    }

    async fn a_password_change_ends_the_other_sessions(server: Server) {
        let alice = server.user("alice").await;
        let second = alice.another_device().await;
        let body = json!({"new_password": "an even longer one"});
        with_password(&alice, "POST", "/account/password", body).await.ok();
        alice.get("/account/whoami").await.ok();
        second.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        let old = login_body("alice", &password_of("alice"));
        server.request("POST", "/login").json(&old).await.refused(403, "M_FORBIDDEN");
        let new = login_body("alice", "an even longer one");
        server.request("POST", "/login").json(&new).await.ok();
    }

    async fn a_password_change_can_keep_the_other_sessions(server: Server) {
        let alice = server.user("alice").await;
        let second = alice.another_device().await;
        let body = json!({"new_password": "an even longer one", "logout_devices": false});
        with_password(&alice, "POST", "/account/password", body).await.ok();
        second.get("/account/whoami").await.ok();
    }

    async fn a_deactivated_account_is_gone_for_good(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = bob.create_room().member(&alice).await;
        with_password(&alice, "POST", "/account/deactivate", json!({})).await.ok();
        alice.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        let body = login_body("alice", &password_of("alice"));
        let answer = server.request("POST", "/login").json(&body).await;
        assert_eq!(answer.status, 403, "{answer}");
        let body = json!({
            "username": "alice", "password": "a long password",
            "auth": {"type": "m.login.dummy"},
        });
        server.request("POST", "/register").json(&body).await.refused(400, "M_USER_IN_USE");
        bob.feed().await;
        let mut feed = bob.feed().await;
        let gone = |state: &Value| state["membership"] == "leave";
        while !gone(bob.get_state(&room, "m.room.member", &alice.id).await.ok()) {
            feed.next(1_000).await;
        }
    }

    async fn the_registration_can_be_closed(server: Server)
        with (Settings::new().with("enable_registration", false))
    {
        let body = json!({
            "username": "alice", "password": "a long password",
            "auth": {"type": "m.login.dummy"},
        });
        server.request("POST", "/register").json(&body).await.refused(403, "M_FORBIDDEN");
    }
}
