//! Two processes on one database: the later one takes over, and the earlier one cannot write.

use std::path::Path;

use chatd_kit::{Answer, Database, User, http::Http, path, process::signal, spawn};
use serde_json::json;

use super::BINARY;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_process_that_was_replaced_cannot_write_and_ends() {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let mut first = super::start(&database.config()).await;
    let http = Http::new(first.url());
    let (alice, bob) = (User::register(&http, "alice").await, User::register(&http, "bob").await);
    let room = alice.create_room().member(&bob).await;
    let event = alice.send(&room, "before").await;
    let since = bob.sync().await.next_batch();

    signal(first.pid().unwrap(), "STOP").unwrap();
    // These wait in the sockets of the process that is paused.
    let late = json!({"msgtype": "m.text", "body": "late"});
    let writes = [
        alice.send_event(&room, "m.room.message", "late", &late),
        alice.to_device("m.test", "late", &bob, &late),
        bob.set_account_data("m.test", &late),
        bob.read(&room, &event),
        alice.set_state(&room, "m.room.topic", "", &json!({"topic": "late"})),
        alice.put("/pushrules/global/room/!late", &json!({"actions": ["notify"]})),
        alice.create_room().with("room_alias_name", "late").request(),
    ];
    let late: Vec<_> = writes.map(|write| spawn(write.unchecked().send())).into();

    let second = super::start(&database.config()).await;
    let http = Http::new(second.url());
    let (alice, bob) = (alice.at(&http), bob.at(&http));
    let after = alice.send(&room, "after").await;

    signal(first.pid().unwrap(), "CONT").unwrap();
    for write in late {
        // It may have ended before it came to this one.
        if let Ok(answer) = write.await {
            assert_eq!((answer.status, answer.errcode()), (503, "M_UNKNOWN"), "{answer}");
        }
    }
    let ended = first.ended().await.unwrap();
    assert!(!ended.success() && first.log().contains("has taken over"), "{}", first.log());

    nothing_is_late(&alice, &bob, &room, &since, &after).await;
    // The later one has not noticed anything.
    let last = alice.send(&room, "last").await;
    assert_eq!(alice.event(&room, &last).await.string("event_id"), last);
}

async fn nothing_is_late(alice: &User, bob: &User, room: &str, since: &str, after: &str) {
    let synced = bob.sync().since(since).await;
    assert_eq!(synced.timeline_ids(room), [after], "{}", synced.text);
    assert!(synced.to_device().is_empty() && synced.account_data().is_empty(), "{}", synced.text);
    assert_eq!(synced.ephemeral_of(room, "m.receipt"), None, "{}", synced.text);
    assert!(!alice.history(room).await.iter().any(|event| event.to_string().contains("late")));
    let refused: [Answer; 3] = [
        alice.get_state(room, "m.room.topic", "").await,
        alice.get("/pushrules/global/room/!late").await,
        alice.get(path("/directory/room/{}", &["#late:test.local"])).await,
    ];
    for answer in refused {
        answer.refused(404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn an_idle_process_finds_out_that_it_was_replaced() {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let mut first = super::start(&database.config()).await;
    let second = super::start(&database.config()).await;
    assert!(!first.ended().await.unwrap().success());
    assert!(first.log().contains("has taken over"), "{}", first.log());
    User::register(&Http::new(second.url()), "alice").await;
}

#[tokio::test]
async fn two_servers_do_not_share_a_data_folder() {
    let first = super::start(&json!({"name": "embedded"})).await;
    let output = std::process::Command::new(BINARY)
        .args(["run", "-c", "homeserver.yaml", "--data-dir", "data"])
        .env("CHATD_LISTENERS", "[]")
        .current_dir(first.folder())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("another chatd is using"), "{text}");
    User::register(&Http::new(first.url()), "alice").await;
}
