//! Rate limits: every `rc_` key that has an effect slows somebody down, and says for how long.
//! Counted to the last one, so with one instance; those of a fleet tell each other what they have
//! counted (`worker_facts::limits`).

use chatd_kit::{Answer, SERVER_NAME, Server, Settings, User, path, scenario, user::password_of};
use serde_json::{Value, json};

/// Three at once, then one in ten seconds.
fn slow() -> Value {
    json!({"per_second": 0.1, "burst_count": 3})
}

fn fast() -> Value {
    json!({"per_second": 100_000, "burst_count": 100_000})
}

/// A 429 that says for how long, in the body and in the header.
#[track_caller]
fn is_slowed_down(answer: &Answer) {
    answer.refused(429, "M_LIMIT_EXCEEDED");
    let wait = answer.json()["retry_after_ms"].as_u64().expect("retry_after_ms");
    assert!((1..=10_000).contains(&wait), "{answer}");
    let header = answer.header("retry-after").and_then(|text| text.parse::<u64>().ok());
    assert_eq!(header, Some(wait.div_ceil(1_000)), "{answer}");
}

/// Asserts that the first three answers are none of the limit's, and that the fourth is.
async fn three_and_no_more<F: Future<Output = Answer>>(mut ask: impl FnMut(usize) -> F) {
    for number in 0..3 {
        let answer = ask(number).await;
        assert_ne!(answer.status, 429, "{answer}");
    }
    is_slowed_down(&ask(3).await);
}

async fn log_in(server: &Server, name: &str, password: &str) -> Answer {
    let identifier = json!({"type": "m.id.user", "user": name});
    let body = json!({"type": "m.login.password", "identifier": identifier, "password": password});
    server.request("POST", "/login").json(&body).await
}

async fn join(user: &User, room: &str) -> Answer {
    user.join(room).await
}

scenario! {
    async fn rc_message(server: Server) in (monolith) with (Settings::new().with("rc_message", slow())) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.public_room().await;
        bob.join(&room).await.ok();
        // Messages, state and redactions are events alike.
        let sent = alice.send(&room, "one").await;
        alice.set_state(&room, "m.room.topic", "", &json!({"topic": "two"})).await.ok();
        alice.redact(&room, &sent).await.ok();
        is_slowed_down(&alice.send_text(&room, "four").await);
        bob.send_text(&room, "another user may").await.ok();
    }

    async fn rc_admin_redaction(server: Server) in (monolith) with (Settings::new()
        .with("rc_admin_redaction", slow()))
    {
        let alice = server.user("alice").await;
        let database = server.database().connect().await.expect("the database");
        let room = alice.public_room().await;
        let mut sent = Vec::new();
        for number in 0..5 {
            sent.push(alice.send(&room, &number.to_string()).await);
        }
        alice.redact(&room, &sent[0]).await.ok();
        database.execute("UPDATE users SET is_admin = true", &[]).await.expect("an admin");
        let admin = alice.another_device().await;
        three_and_no_more(|number| admin.redact(&room, &sent[number + 1]).into_future()).await;
        alice.send_text(&room, "messages are counted apart").await.ok();
    }

    async fn rc_registration(server: Server) in (monolith)
        with (Settings::new().with("rc_registration", slow()))
    {
        three_and_no_more(|number| {
            let body = json!({
                "username": format!("user{number}"), "password": "a long password",
                "auth": {"type": "m.login.dummy"},
            });
            server.request("POST", "/register").json(&body).into_future()
        })
        .await;
    }

    async fn rc_registration_token_validity(server: Server) in (monolith)
        with (Settings::new().with("rc_registration_token_validity", slow()))
    {
        three_and_no_more(|_| {
            let url = "/_matrix/client/v1/register/m.login.registration_token/validity";
            server.request("GET", url).query("token", "guess").into_future()
        })
        .await;
    }

    async fn rc_login_address(server: Server) in (monolith) with (Settings::new().with(
        "rc_login", json!({"address": slow(), "account": fast(), "failed_attempts": fast()})))
    {
        three_and_no_more(|number| {
            let name = format!("user{number}");
            let server = &server;
            async move { log_in(server, &name, "x").await }
        })
        .await;
    }

    async fn rc_login_account(server: Server) in (monolith) with (Settings::new().with(
        "rc_login", json!({"address": fast(), "account": slow(), "failed_attempts": fast()})))
    {
        server.user("alice").await;
        server.user("bob").await;
        let password = password_of("alice");
        three_and_no_more(|_| log_in(&server, "alice", &password)).await;
        is_slowed_down(&log_in(&server, &format!("@alice:{SERVER_NAME}"), &password).await);
        log_in(&server, "bob", &password_of("bob")).await.ok();
    }

    async fn rc_login_failed_attempts(server: Server) in (monolith) with (Settings::new().with(
        "rc_login", json!({"address": fast(), "account": fast(), "failed_attempts": slow()})))
    {
        let alice = server.user("alice").await;
        for _ in 0..10 {
            log_in(&server, "alice", &password_of("alice")).await.ok();
        }
        // However the name is written, it is one account.
        for name in ["alice", "ALICE", &alice.id] {
            log_in(&server, name, "wrong").await.refused(403, "M_FORBIDDEN");
        }
        is_slowed_down(&log_in(&server, "alice", "wrong").await);
        // The right password is no way around it, or guessing could go on.
        is_slowed_down(&log_in(&server, "alice", &password_of("alice")).await);
        server.user("bob").await;
        log_in(&server, "bob", &password_of("bob")).await.ok();
        // Confirming an operation is guessing, too.
        let asked = alice.post("/delete_devices", &json!({"devices": []})).await;
        let auth = json!({
            "type": "m.login.password", "password": "wrong", "session": asked.json()["session"],
            "identifier": {"type": "m.id.user", "user": alice.id},
        });
        let body = json!({"devices": [], "auth": auth});
        is_slowed_down(&alice.post("/delete_devices", &body).await);
    }

    async fn rc_joins(server: Server) in (monolith)
        with (Settings::new().with("rc_joins", json!({"local": slow(), "remote": fast()})))
    {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut rooms = Vec::new();
        for _ in 0..4 {
            rooms.push(alice.public_room().await);
        }
        three_and_no_more(|number| join(&bob, &rooms[number])).await;
    }

    async fn rc_joins_per_room(server: Server) in (monolith)
        with (Settings::new().with("rc_joins_per_room", slow()))
    {
        let alice = server.user("alice").await;
        let (room, other) = (alice.public_room().await, alice.public_room().await);
        let mut users = Vec::new();
        for number in 0..4 {
            users.push(server.user(&format!("user{number}")).await);
        }
        three_and_no_more(|number| join(&users[number], &room)).await;
        users[3].join(&other).await.ok();
    }

    async fn rc_invites_per_issuer(server: Server) in (monolith) with (Settings::new().with("rc_invites",
        json!({"per_room": fast(), "per_user": fast(), "per_issuer": slow()})))
    {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut rooms = Vec::new();
        for _ in 0..4 {
            rooms.push(alice.create_room().await);
        }
        three_and_no_more(|number| alice.invite(&rooms[number], &bob).into_future()).await;
    }

    async fn rc_invites_per_room(server: Server) in (monolith) with (Settings::new().with("rc_invites",
        json!({"per_room": slow(), "per_user": fast(), "per_issuer": fast()})))
    {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let mut users = Vec::new();
        for number in 0..4 {
            users.push(server.user(&format!("user{number}")).await);
        }
        three_and_no_more(|number| alice.invite(&room, &users[number]).into_future()).await;
    }

    async fn rc_invites_per_user(server: Server) in (monolith) with (Settings::new().with("rc_invites",
        json!({"per_room": fast(), "per_user": slow(), "per_issuer": fast()})))
    {
        let bob = server.user("bob").await;
        let mut invites = Vec::new();
        for number in 0..4 {
            let user = server.user(&format!("user{number}")).await;
            let room = user.create_room().await;
            invites.push((user, room));
        }
        three_and_no_more(|number| {
            let (user, room) = &invites[number];
            user.invite(room, &bob).into_future()
        })
        .await;
    }

    async fn rc_presence(server: Server) in (monolith)
        with (Settings::new().with("rc_presence", json!({"per_user": slow()})))
    {
        let alice = server.user("alice").await;
        let url = path("/presence/{}/status", &[&alice.id]);
        three_and_no_more(|number| {
            let body = json!({"presence": "online", "status_msg": number.to_string()});
            alice.put(url.as_str(), &body).into_future()
        })
        .await;
    }

    async fn rc_room_creation(server: Server) in (monolith)
        with (Settings::new().with("rc_room_creation", slow()))
    {
        let alice = server.user("alice").await;
        three_and_no_more(|_| alice.post("/createRoom", &json!({})).into_future()).await;
    }
}
