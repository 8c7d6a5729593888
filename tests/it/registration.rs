//! Who may make an account: registration tokens, the password policy, guests, and what is said of
//! names that are taken.

use chatd_kit::{Answer, Server, Settings, path, scenario};
use serde_json::{Value, json};

const VALIDITY: &str = "/_matrix/client/v1/register/m.login.registration_token/validity";

fn body(name: &str) -> Value {
    json!({"username": name, "password": "a long password"})
}

async fn register(server: &Server, body: &Value) -> Answer {
    server.request("POST", "/register").json(body).await
}

/// Tries one stage of the session that `asked` began.
async fn stage(server: &Server, name: &str, asked: &Answer, mut auth: Value) -> Answer {
    let mut body = body(name);
    auth["session"] = asked.json()["session"].clone();
    body["auth"] = auth;
    register(server, &body).await
}

async fn is_good(server: &Server, token: &str) -> Value {
    server.request("GET", VALIDITY).query("token", token).await.ok()["valid"].clone()
}

async fn make_token(server: &Server, token: &str, uses: Option<i32>, expires_ts: Option<i64>) {
    let database = server.database().connect().await.expect("the database");
    let insert = "INSERT INTO registration_tokens (token, uses_allowed, expires_ts)
                  VALUES ($1, $2, $3)";
    database.execute(insert, &[&token, &uses, &expires_ts]).await.expect("a token");
}

fn with_tokens() -> Settings {
    let rate = json!({"per_second": 1_000, "burst_count": 1_000});
    Settings::new()
        .with("registration_requires_token", true)
        .with("rc_registration_token_validity", rate)
}

scenario! {
    async fn a_registration_token_is_asked_for_and_used_up(server: Server) with (with_tokens()) {
        make_token(&server, "twice", Some(2), None).await;
        make_token(&server, "over", None, Some(1_000)).await;
        assert_eq!(is_good(&server, "twice").await, true);
        for bad in ["over", "guess", ""] {
            assert_eq!(is_good(&server, bad).await, false, "{bad}");
        }
        let asked = register(&server, &body("one")).await;
        let stages = json!([{"stages": ["m.login.registration_token", "m.login.dummy"]}]);
        assert_eq!((asked.status, &asked.json()["flows"]), (401, &stages));
        // The dummy stage alone is not enough, and wrong tokens are told.
        let dummy = || json!({"type": "m.login.dummy"});
        let token = |token: &str| json!({"type": "m.login.registration_token", "token": token});
        assert_eq!(stage(&server, "one", &asked, dummy()).await.status, 401);
        for bad in ["over", "guess"] {
            let answer = stage(&server, "one", &asked, token(bad)).await;
            answer.refused(401, "M_UNAUTHORIZED");
        }
        let missing = json!({"type": "m.login.registration_token"});
        stage(&server, "one", &asked, missing).await.refused(401, "M_MISSING_PARAM");
        stage(&server, "one", &asked, token("twice")).await.string("access_token");

        // A use is reserved while its session goes on, so that nobody is refused at the end.
        let second = register(&server, &body("two")).await;
        let reserved = stage(&server, "two", &second, token("twice")).await;
        assert_eq!(reserved.json()["completed"], json!(["m.login.registration_token"]));
        assert_eq!(is_good(&server, "twice").await, false);
        let third = register(&server, &body("three")).await;
        let answer = stage(&server, "three", &third, token("twice")).await;
        answer.refused(401, "M_UNAUTHORIZED");
        stage(&server, "two", &second, dummy()).await.string("access_token");
        assert_eq!(is_good(&server, "twice").await, false);
    }

    async fn sessions_are_bound_to_what_they_were_begun_for(server: Server) with (with_tokens()) {
        make_token(&server, "token", None, None).await;
        let (alice_asked, unknown) =
            (register(&server, &body("alice")).await, json!({"session": "made up"}));
        let dummy = json!({"type": "m.login.dummy"});
        let mut stranger = body("alice");
        stranger["auth"] = json!({"type": "m.login.dummy", "session": unknown["session"]});
        assert_eq!(register(&server, &stranger).await.status, 400);
        // The same session for another endpoint.
        let mut auth = dummy.clone();
        auth["session"] = alice_asked.json()["session"].clone();
        let url = "/_matrix/client/r0/register";
        let answer = server.request("POST", url).json(&json!({"auth": auth})).await;
        assert!((400..500).contains(&answer.status) && answer.status != 401, "{answer}");
        let odd = json!({"type": "m.login.sso"});
        assert_eq!(stage(&server, "alice", &alice_asked, odd).await.status, 400);
    }

    async fn a_policy_says_what_a_password_needs(server: Server) with (Settings::new().with(
        "password_config", json!({"policy": {
            "enabled": true, "minimum_length": 8, "require_digit": true, "require_symbol": true,
            "require_lowercase": true, "require_uppercase": true,
        }})))
    {
        let told = server.request("GET", "/password_policy").unchecked().await;
        assert_eq!(told.ok()["m.minimum_length"], 8);
        assert_eq!(told.ok()["m.require_symbol"], true);
        for (password, errcode) in [
            ("aB1!", "M_PASSWORD_TOO_SHORT"),
            ("aBcdefgh!", "M_PASSWORD_NO_DIGIT"),
            ("aBcdefgh1", "M_PASSWORD_NO_SYMBOL"),
            ("abcdefgh1!", "M_PASSWORD_NO_UPPERCASE"),
            ("ABCDEFGH1!", "M_PASSWORD_NO_LOWERCASE"),
        ] {
            let body = json!({
                "username": "alice", "password": password, "auth": {"type": "m.login.dummy"},
            });
            register(&server, &body).await.refused(400, errcode);
        }
        let body = json!({
            "username": "alice", "password": "aBcdefgh1!", "auth": {"type": "m.login.dummy"},
        });
        let made = register(&server, &body).await;
        // It holds for a change, too, before the old password is asked for.
        let change = server.request("POST", "/account/password").token(&made.string("access_token"));
        let answer = change.json(&json!({"new_password": "short"})).await;
        answer.refused(400, "M_PASSWORD_TOO_SHORT");
    }

    async fn names_that_are_taken_can_be_kept_quiet(server: Server)
        with (Settings::new().with("inhibit_user_in_use_error", true))
    {
        server.user("alice").await;
        let asked = server.request("GET", "/register/available").query("username", "alice").await;
        assert_eq!(asked.ok()["available"], true);
        assert_eq!(register(&server, &body("alice")).await.status, 401);
        let mut again = body("alice");
        again["auth"] = json!({"type": "m.login.dummy"});
        register(&server, &again).await.refused(400, "M_USER_IN_USE");
    }

    async fn guests_are_let_in_where_they_may(server: Server)
        with (Settings::new().with("allow_guest_access", true))
    {
        let alice = server.user("alice").await;
        let made = server.request("POST", "/register?kind=guest").json(&json!({})).await;
        let token = made.string("access_token");
        let guest = |method: &str, path: &str| server.request(method, path).token(&token);
        let whoami = guest("GET", "/account/whoami").await;
        assert_eq!(whoami.ok()["is_guest"], true);
        let room = alice.public_room().await;
        for (method, url) in [
            ("POST", "/createRoom".to_owned()),
            ("POST", path("/join/{}", &[&room])),
            ("PUT", path("/rooms/{}/send/m.room.message/1", &[&room])),
            ("POST", "/account/password".to_owned()),
            ("POST", "/account/deactivate".to_owned()),
        ] {
            let answer = guest(method, &url).json(&json!({"msgtype": "m.text", "body": "x"})).await;
            answer.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
        }
    }

    async fn guests_are_kept_out_by_default(server: Server) {
        let answer = server.request("POST", "/register?kind=guest").json(&json!({})).await;
        answer.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
        let answer = server.request("POST", "/register?kind=nonsense").json(&json!({})).await;
        assert_eq!(answer.status, 400, "{answer}");
    }

    async fn names_of_every_kind(server: Server) {
        for (name, is_good) in [
            ("a", true), ("a.b-c_d=e/f+g", true), ("UPPER", true), ("1a", true),
            ("", false), ("1234", false), ("_a", false), ("a:b", false), ("@a", false),
            ("a b", false), ("\u{e9}", false), ("a\u{0}b", false), ("\u{202e}a", false),
        ] {
            let mut body = body(name);
            body["auth"] = json!({"type": "m.login.dummy"});
            let answer = register(&server, &body).await;
            if is_good {
                let id = format!("@{}:test.local", name.to_lowercase());
                assert_eq!(answer.string("user_id"), id, "{name}");
            } else {
                answer.refused(400, "M_INVALID_USERNAME");
            }
        }
        let long = "a".repeat(300);
        register(&server, &body(&long)).await.refused(400, "M_INVALID_USERNAME");
        // Two at once: one gets the name.
        let body = {
            let mut body = body("wanted");
            body["auth"] = json!({"type": "m.login.dummy"});
            body
        };
        let answers = futures::future::join_all((0..4).map(|_| register(&server, &body))).await;
        let made = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(made, 1);
        for answer in answers.iter().filter(|answer| answer.status != 200) {
            answer.refused(400, "M_USER_IN_USE");
        }
    }
}
