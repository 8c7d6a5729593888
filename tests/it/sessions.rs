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

    async fn a_closed_account_leaves_nothing_of_its_own(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = bob.create_room().await;
        bob.invite(&room, &alice).await.ok();
        alice.set_account_data("org.example.x", &json!({"a": 1})).await.ok();
        alice.put("/pushrules/global/room/!x:y", &json!({"actions": []})).await.ok();
        alice.post(path("/user/{}/filter", &[&alice.id]), &json!({})).await.ok();
        let backup = json!({"algorithm": "m.megolm_backup.v1", "auth_data": {"a": "b"}});
        alice.post("/room_keys/version", &backup).await.ok();
        let profile = path("/profile/{}/displayname", &[&alice.id]);
        alice.put(profile.as_str(), &json!({"displayname": "Alice A."})).await.ok();
        let body = json!({"erase": true});
        with_password(&alice, "POST", "/account/deactivate", body).await.ok();

        let database = server.database().connect().await.expect("the database");
        for table in [
            "account_data", "push_rules", "filters", "room_key_versions", "room_keys", "devices",
            "access_tokens", "refresh_tokens", "profile_fields", "cross_signing_keys", "presence",
        ] {
            let count = format!(
                "SELECT count(*) FROM {table} t JOIN users u USING (user_nid) WHERE u.deactivated"
            );
            let count: i64 = database.query_one(&count, &[]).await.expect(table).get(0);
            assert_eq!(count, 0, "{table}");
        }
        let asked = server.request("GET", profile).await;
        assert_ne!(asked.json()["displayname"], "Alice A.");
        // The invite has been rejected.
        let member = bob.get_state(&room, "m.room.member", &alice.id).await;
        assert_eq!(member.ok()["membership"], "leave");
    }

    async fn a_closed_account_leaves_its_rooms_after_a_crash_too(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = bob.create_room().member(&alice).await;
        // As a crash between the two steps leaves it.
        let database = server.database().connect().await.expect("the database");
        let close = "UPDATE users SET deactivated = true WHERE localpart = 'alice'";
        database.execute(close, &[]).await.expect("closed");
        server.kill9().expect("killed");
        server.restart().await.expect("restarted");
        let mut feed = bob.feed().await;
        let gone = |state: &Value| state["membership"] == "leave";
        while !gone(bob.get_state(&room, "m.room.member", &alice.id).await.ok()) {
            feed.next(1_000).await;
        }
    }

    async fn an_expired_token_logs_out_softly(server: Server) with (Settings::new()
        .with("refreshable_access_token_lifetime", "1m")
        .with("nonrefreshable_access_token_lifetime", "200ms"))
    {
        server.user("alice").await;
        let mut body = login_body("alice", &password_of("alice"));
        let made = server.request("POST", "/login").json(&body).await;
        assert!(made.ok()["expires_in_ms"].as_u64().is_some_and(|ms| ms <= 200));
        let whoami = |token: String| server.request("GET", "/account/whoami").token(&token);
        let old = made.string("access_token");
        while whoami(old.clone()).await.status == 200 {}
        let refused = whoami(old).await;
        assert_eq!(refused.refused(401, "M_UNKNOWN_TOKEN")["soft_logout"], true);

        body["refresh_token"] = json!(true);
        let made = server.request("POST", "/login").json(&body).await;
        assert!(made.ok()["expires_in_ms"].as_u64().is_some_and(|ms| ms <= 60_000));
        let refresh = json!({"refresh_token": made.string("refresh_token")});
        // Until what it was exchanged for is used, it can be exchanged again.
        server.request("POST", "/refresh").json(&refresh).await.ok();
        let renewed = server.request("POST", "/refresh").json(&refresh).await;
        assert_ne!(renewed.string("refresh_token"), made.string("refresh_token"));
        whoami(renewed.string("access_token")).await.ok();
        server.request("POST", "/refresh").json(&refresh).await.refused(403, "M_FORBIDDEN");
        let next = json!({"refresh_token": renewed.string("refresh_token")});
        server.request("POST", "/refresh").json(&next).await.ok();
        let unknown = whoami("syt_YWxpY2U_nonsense_000000".to_owned()).await;
        assert_eq!(unknown.refused(401, "M_UNKNOWN_TOKEN")["soft_logout"], false);
    }

    async fn an_existing_session_logs_another_device_in(server: Server) with (Settings::new()
        .with("login_via_existing_session", json!({"enabled": true, "token_timeout": "1m"})))
    {
        let alice = server.user("alice").await;
        let flows = server.request("GET", "/login").await;
        let flow = json!({"type": "m.login.token", "get_login_token": true});
        assert!(flows.ok()["flows"].as_array().is_some_and(|flows| flows.contains(&flow)));
        let url = "/_matrix/client/v1/login/get_token";
        let given = with_password(&alice, "POST", url, json!({})).await;
        assert_eq!(given.ok()["expires_in_ms"], 60_000);
        let body = json!({"type": "m.login.token", "token": given.string("login_token")});
        let login = || server.request("POST", "/login").json(&body);
        let answers = futures::future::join_all((0..3).map(|_| login().into_future())).await;
        let made: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        assert_eq!(made.len(), 1, "it logs in once");
        assert_eq!(made[0].string("user_id"), alice.id);
        login().await.refused(403, "M_FORBIDDEN");
        let guess = json!({"type": "m.login.token", "token": "guess"});
        server.request("POST", "/login").json(&guess).await.refused(403, "M_FORBIDDEN");
    }

    async fn a_password_may_be_good_for_confirming_only(server: Server) with (Settings::new()
        .with("password_config", json!({"enabled": "only_for_reauth"})))
    {
        let alice = server.user("alice").await;
        let body = login_body("alice", &password_of("alice"));
        assert_eq!(server.request("POST", "/login").json(&body).await.status, 400);
        with_password(&alice, "POST", "/delete_devices", json!({"devices": []})).await.ok();
    }

    async fn a_confirmation_can_stand_for_a_while(server: Server) with (Settings::new()
        .with("ui_auth", json!({"session_timeout": "1m"})))
    {
        let alice = server.user("alice").await;
        let none = json!({"devices": []});
        with_password(&alice, "POST", "/delete_devices", none.clone()).await.ok();
        alice.post("/delete_devices", &none).await.ok();
        // What cannot be undone asks all the same.
        assert_eq!(alice.post("/account/deactivate", &json!({})).await.status, 401);
        assert_eq!(alice.another_device().await.post("/delete_devices", &none).await.status, 401);
    }

    async fn a_session_of_one_operation_confirms_no_other(server: Server) {
        let alice = server.user("alice").await;
        let (second, third) = (alice.another_device().await, alice.another_device().await);
        let asked = alice.delete(path("/devices/{}", &[&second.device])).json(&json!({})).await;
        let auth = password_stage(&alice, &asked.json()["session"], &password_of("alice"));
        let other = alice.delete(path("/devices/{}", &[&third.device]));
        other.json(&json!({"auth": auth})).await.refused(403, "M_FORBIDDEN");
        let bob = server.user("bob").await;
        let stolen = bob.delete(path("/devices/{}", &[&second.device]));
        stolen.json(&json!({"auth": auth})).await.refused(403, "M_FORBIDDEN");
        third.get("/account/whoami").await.ok();
        // Nor can another user's devices be deleted.
        with_password(&bob, "POST", "/delete_devices", json!({"devices": [second.device]})).await.ok();
        second.get("/account/whoami").await.ok();
    }

    async fn no_secret_is_in_the_log(server: Server)
        with (Settings::new().with("chatd", json!({"expose_request_cost": true})))
    {
        let alice = server.user("alice").await;
        let url = format!("/account/whoami?access_token={}", alice.token);
        server.request("GET", url).await.ok();
        alice.post("/account/password", &json!({"new_password": 7})).await.refused(400, "M_BAD_JSON");
        server.request("POST", "/login").json(&login_body("alice", "a wrong secret")).await;
        let log = server.log();
        for secret in [alice.token.as_str(), &password_of("alice"), "a wrong secret"] {
            assert!(!log.contains(secret), "{secret}");
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
