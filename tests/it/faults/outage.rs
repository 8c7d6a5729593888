//! PostgreSQL is away for a while, or the way to it breaks in the middle of a commit.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use chatd_kit::{Database, Process, Server, Settings, User, cluster::Cluster, http::Http};
use serde_json::{Value, json};

use super::{
    BINARY,
    proxy::{Cut, Proxy},
};

/// Longest time until a client is told that a write cannot be made now, and a read.
const WRITE_LIMIT: Duration = Duration::from_secs(15);
const READ_LIMIT: Duration = Duration::from_secs(3);

fn text(body: &str) -> Value {
    json!({"msgtype": "m.text", "body": body})
}

/// How often a message is in a room.
async fn count(user: &User, room: &str, body: &str) -> usize {
    user.history(room).await.iter().filter(|event| event["content"]["body"] == body).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_while_postgresql_is_away_and_all_is_well_when_it_is_back() {
    let folder = tempfile::Builder::new().prefix("chatd-pg-").tempdir().unwrap();
    let cluster = Cluster::private(folder.path()).unwrap();
    let database = Database::empty(cluster.clone()).await.unwrap();
    let settings = Settings::new().with("chatd", json!({"shutdown_timeout": "1s"}));
    let mut server = Server::on(BINARY, settings, database).await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().member(&bob).await;
    let feed = bob.feed().await;
    let calm = json!({"presence": {"not_types": ["*"]}});
    let waiting = bob.sync().since(&feed.since).filter(&calm).timeout_ms(100_000).start();

    cluster.kill9().unwrap();
    let away = Instant::now();
    let send = || alice.send_event(&room, "m.room.message", "away", &text("away"));
    let write = tokio::join!(
        send(),
        alice.set_account_data("m.test", &json!({"away": true})),
        alice.to_device("m.test", "away", &bob, &json!({"away": true})),
    );
    for answer in [&write.0, &write.1, &write.2] {
        answer.refused(503, "M_UNKNOWN");
    }
    assert!(away.elapsed() < WRITE_LIMIT, "{:?}", away.elapsed());
    let asked = Instant::now();
    alice.messages(&room, "b").await.refused(503, "M_UNKNOWN");
    server.request("GET", "/_matrix/client/versions").await.ok();
    server.request("GET", "/health").await;
    assert!(asked.elapsed() < READ_LIMIT, "{:?}", asked.elapsed());

    cluster.restart().unwrap();
    let event = send().await.string("event_id");
    let seen = waiting.await;
    assert_eq!(seen.timeline_ids(&room), [event.as_str()], "{}", seen.text);
    assert_eq!(count(&alice, &room, "away").await, 1);
    let again = alice.to_device("m.test", "away", &bob, &json!({"away": true})).await;
    again.ok();
    let mut whispers = seen.to_device();
    let rest = bob.sync().since(&seen.next_batch()).await;
    whispers.extend(rest.to_device());
    assert_eq!(whispers.len(), 1, "{whispers:?}");

    // A server that cannot reach PostgreSQL ends all the same.
    cluster.kill9().unwrap();
    let sending = alice.send_text(&room, "too late").start();
    let ending = Instant::now();
    assert!(server.process().sigterm().await.unwrap().success());
    assert!(ending.elapsed() < WRITE_LIMIT, "{:?}", ending.elapsed());
    drop(sending);
    // And one that is started too early waits.
    let log = server.process().folder().join("chatd.log");
    let has_waited =
        || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("waiting for PostgreSQL"));
    let (started, restarted) = tokio::join!(server.process().restart(), async {
        while !has_waited() {
            tokio::task::yield_now().await;
        }
        cluster.restart()
    });
    started.and(restarted).unwrap();
    assert_eq!(count(&alice, &room, "away").await, 1);
    cluster.kill9().unwrap();
}

/// The way to PostgreSQL breaks before or after the commit of each kind of write: the client is
/// told of a success, and the write has happened once.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_happens_once() {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(folder.path(), database.cluster().socket_folder());
    let config = proxy.config(database.config());
    let process = Process::start(Path::new(BINARY), &Settings::new(), &config).await.unwrap();
    let http = Http::new(process.url());
    let (alice, bob) = (User::register(&http, "alice").await, User::register(&http, "bob").await);
    let room = alice.create_room().member(&bob).await;
    let mut feed = bob.feed().await;
    for (number, point) in [Cut::BeforeCommit, Cut::AfterCommit].into_iter().enumerate() {
        let (body, note) = (format!("{point:?}"), json!({"number": number}));
        proxy.cut(point);
        let send = || alice.send_event(&room, "m.room.message", &body, &text(&body));
        let event = send().await.string("event_id");
        assert!(proxy.is_cut(), "{point:?}");
        assert_eq!(send().await.string("event_id"), event);
        assert_eq!(count(&alice, &room, &body).await, 1, "{point:?}");
        assert_eq!(feed.until_event(&room, &event).await["content"]["body"], *body);

        proxy.cut(point);
        alice.to_device("m.test", &body, &bob, &note).await.ok();
        assert!(proxy.is_cut(), "{point:?}");
        alice.to_device("m.test", &body, &bob, &note).await.ok();
        let synced = feed.now().await;
        assert_eq!(synced.to_device().len(), 1, "{point:?}: {:?}", synced.to_device());
        assert_eq!(feed.now().await.to_device().len(), 0, "{point:?}");

        proxy.cut(point);
        bob.set_account_data("m.test", &note).await.ok();
        assert!(proxy.is_cut(), "{point:?}");
        assert_eq!(feed.now().await.account_data()[0]["content"], note, "{point:?}");

        proxy.cut(point);
        let made = alice.create_room().with("name", body.as_str()).await;
        assert!(proxy.is_cut(), "{point:?}");
        assert_eq!(*alice.get_state(&made, "m.room.name", "").await.ok(), json!({"name": body}));
    }
}
