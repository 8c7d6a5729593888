//! Presence of those who sync at workers that do not write it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use chatd_kit::{
    Database, Fleet, Settings, Spread, User, fleet::metrics_socket, http::Http, prometheus::Page,
    say,
};
use serde_json::json;

use super::{BINARY, at, users};

const ONLINE_TIMEOUT: Duration = Duration::from_millis(900);

async fn fleet(database: &Database, settings: Settings) -> Fleet {
    Fleet::start(Path::new(BINARY), &settings, &database.config(), Spread::Random).await.unwrap()
}

/// A sync that waits ten times longer than a user is online after one: nobody sees the user go.
#[tokio::test]
async fn a_long_sync_is_one_presence() {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let presence = json!({"enabled": true, "sync_online_timeout": "900ms"});
    let fleet = fleet(&database, Settings::new().with("presence", presence)).await;
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    alice.create_room().member(&bob).await;
    let (alice, bob) =
        (alice.at(&at(fleet.folder(), "sync1")), bob.at(&at(fleet.folder(), "sync2")));
    let mut feed = bob.feed().await;
    let of_alice = |event: &serde_json::Value| event["sender"] == alice.id;
    let since = alice.sync().await.next_batch();
    let calm = json!({"presence": {"not_types": ["*"]}});
    let waiting = alice.sync().since(&since).filter(&calm).timeout_ms(60_000).start();
    feed.until("alice online", |synced| {
        let mut events = synced.presence().into_iter();
        events.find(|event| of_alice(event) && event["content"]["presence"] == "online")
    })
    .await;
    let end = Instant::now() + ONLINE_TIMEOUT * 10;
    while Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now()).as_millis();
        let synced = feed.next(u64::try_from(left).unwrap()).await;
        for event in synced.presence().iter().filter(|event| of_alice(event)) {
            assert_eq!(event["content"]["presence"], "online", "{event}");
        }
    }
    assert!(!waiting.is_finished());
    drop(waiting);
}

/// How often sync1 has called the writer of presence.
async fn calls(fleet: &Fleet) -> f64 {
    let metrics = Http::on_socket(&metrics_socket(fleet.folder(), "sync1"));
    let page = Page::parse(&metrics.request("GET", "/_synapse/metrics").await.text).unwrap();
    page.sum("chatd_call_seconds_count", &[("instance", "stream2")]).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_syncs_are_few_calls() {
    const USERS: usize = 40;
    const SYNCS: usize = 25;
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let fleet = fleet(&database, Settings::new()).await;
    let sync1 = at(fleet.folder(), "sync1");
    let names: Vec<String> = (0..USERS).map(|number| format!("user{number}")).collect();
    let everybody =
        futures::future::join_all(names.iter().map(|name| User::register(&sync1, name))).await;
    let (before, began) = (calls(&fleet).await, Instant::now());
    futures::future::join_all(everybody.iter().map(async |user| {
        let mut feed = user.feed().await;
        for _ in 0..SYNCS {
            feed.now().await;
        }
    }))
    .await;
    let (made, took) = (calls(&fleet).await - before, began.elapsed());
    say(format!("{made} calls for {} syncs in {took:?}", USERS * SYNCS));
    // One in each tenth of a second, however many there are to tell of.
    assert!(made >= 1.0 && made <= took.as_secs_f64() * 10.0 + 2.0, "{made} in {took:?}");
    assert!(made < (USERS * SYNCS) as f64 / 10.0, "{made}");
}
