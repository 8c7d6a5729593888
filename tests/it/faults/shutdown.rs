//! SIGTERM under load: what was accepted is finished and answered, and nothing else has happened.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use chatd_kit::{Database, Process, User, http::Http, spawn};
use serde_json::{Value, json};

use super::BINARY;

/// Longest time that a server with nothing stuck may take to end.
const LIMIT: Duration = Duration::from_secs(5);

/// Messages by what their senders were told.
#[derive(Debug, Default)]
struct Told {
    sent: BTreeSet<String>,
    nothing: BTreeSet<String>,
}

/// Sends until the server is gone.
async fn talk(user: User, room: String, told: Arc<Mutex<Told>>, name: String) {
    for number in 0.. {
        let body = format!("{name} {number}");
        let text = json!({"msgtype": "m.text", "body": body});
        let request = user.send_event(&room, "m.room.message", &body, &text).unchecked();
        let outcome = request.send().await;
        let mut told = told.lock().unwrap();
        match outcome {
            Ok(answer) if answer.status == 200 => told.sent.insert(body),
            Ok(answer) => panic!("{answer}"),
            Err(_) => {
                told.nothing.insert(body);
                return;
            }
        };
    }
}

async fn end_under_load(mut process: Process) {
    let http = Http::new(process.url());
    let (alice, bob) = (User::register(&http, "alice").await, User::register(&http, "bob").await);
    let room = alice.create_room().member(&bob).await;
    let told = Arc::new(Mutex::new(Told::default()));
    for round in 0..3 {
        let since = bob.sync().await.next_batch();
        // Nothing ever comes for this one: no room of its own, and no presence.
        let nobody = User::register(&http, &format!("nobody{round}")).await;
        let idle = nobody.feed().await.since;
        let talkers: Vec<_> = (0..8)
            .map(|number| {
                // Each on connections of its own.
                let user = alice.at(&Http::new(process.url()));
                spawn(talk(user, room.clone(), told.clone(), format!("{round} {number}")))
            })
            .collect();
        let waiting = nobody.sync().since(&idle).timeout_ms(60_000).start();
        let is_loaded = || told.lock().unwrap().sent.len() > (round + 1) * 40;
        while !is_loaded() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        let asked = Instant::now();
        let status = process.sigterm().await.unwrap();
        assert_eq!(status.code(), Some(0), "{}", process.log());
        assert!(!process.log().contains("lost the database"), "{}", process.log());
        assert!(asked.elapsed() < LIMIT, "{:?}", asked.elapsed());
        assert_eq!(waiting.await.ok()["next_batch"].as_str().map(str::is_empty), Some(false));
        for talker in talkers {
            talker.await;
        }
        process.restart().await.unwrap();
        compare(&alice, &room, &told).await;
        bob.sync().since(&since).await.ok();
    }
}

async fn compare(user: &User, room: &str, told: &Mutex<Told>) {
    let history = user.history(room).await;
    let body = |event: &Value| event["content"]["body"].as_str().map(str::to_owned);
    let found: Vec<String> = history.iter().filter_map(body).collect();
    let unique: BTreeSet<String> = found.iter().cloned().collect();
    let told = told.lock().unwrap();
    assert_eq!(found.len(), unique.len(), "some are there twice");
    assert!(told.sent.len() > 10, "there was a load");
    assert!(told.sent.is_subset(&unique), "lost: {:?}", told.sent.difference(&unique));
    let unanswered: Vec<_> = told.nothing.intersection(&unique).collect();
    assert!(unanswered.is_empty(), "made, and the sender was told nothing: {unanswered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_answers_what_was_accepted() {
    let database = Database::create(std::path::Path::new(BINARY)).await.unwrap();
    end_under_load(super::start(&database.config()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_ends_the_embedded_postgresql_in_good_order() {
    let process = super::start(&json!({"name": "embedded"})).await;
    end_under_load(process).await;
}
