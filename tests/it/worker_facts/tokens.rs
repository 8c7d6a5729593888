//! Positions: they never go back, never jump, and each row has its own.

use std::{collections::BTreeSet, path::Path};

use chatd_kit::{Database, Process, Request, Server, Settings, User, http::Http, scenario, spawn};
use serde_json::{Value, json};

use super::BINARY;
use crate::faults::{
    device::is_at_least,
    plan,
    proxy::{Cut, Proxy},
};

const BATCH: usize = 40;

/// The stream positions of the state events of a kind in a room.
async fn positions(server: &Server, room: &str, kind: &str) -> Vec<(i64, String)> {
    let sql = "SELECT e.pos, k.state_key FROM events e JOIN rooms r ON r.nid = e.room \
               JOIN state_keys k ON k.nid = e.key WHERE r.room_id = $1 AND k.type = $2 ORDER BY 1";
    let client = server.database().connect().await.unwrap();
    let rows = client.query(sql, &[&room, &kind]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

scenario! {
    async fn state_changes_have_their_own_place_in_a_batch(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let since = bob.sync().await.next_batch();
        let changes = (0..BATCH).map(|number| {
            let change =
                alice.set_state(&room, "m.test", &number.to_string(), &json!({"number": number}));
            change.start()
        });
        for change in changes.collect::<Vec<_>>() {
            change.await.ok();
        }
        alice.send(&room, "after all of them").await;
        let changes = positions(&server, &room, "m.test").await;
        assert_eq!(changes.len(), BATCH);
        let in_company = changes.windows(2).filter(|pair| pair[0].0 + 1 == pair[1].0).count();
        assert!(in_company > 0, "no batch had two of them: {changes:?}");
        let (_, rest) = since.split_once('_').unwrap();
        let filter = json!({"room": {"timeline": {"limit": 1}}});
        for (number, (position, _)) in changes.iter().enumerate() {
            let amid = format!("s{position}_{rest}");
            let synced = bob.sync().since(&amid).filter(&filter).with("use_state_after", true).await;
            let told = chatd_kit::sync::events(&synced.room(&room)["state_after"]);
            let told: BTreeSet<&str> = told.iter().filter_map(|one| one["state_key"].as_str()).collect();
            let after: BTreeSet<&str> = changes[number + 1..].iter().map(|(_, key)| key.as_str()).collect();
            assert_eq!(told, after, "after {amid}");
        }
    }
}

/// One write of each kind.
fn write(alice: &User, bob: &User, room: &str, kind: usize, number: u64) -> Request {
    let (content, txn) = (json!({"number": number}), format!("{kind}-{number}"));
    match kind {
        0 => alice.send_event(room, "m.test", &txn, &content),
        1 => alice.to_device("m.test", &txn, bob, &content),
        2 => bob.set_account_data("m.test", &content),
        _ => alice.put("/pushrules/global/content/x", &json!({"actions": [], "pattern": txn})),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_position_goes_back_after_a_write_that_was_rolled_back() {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(folder.path(), database.cluster().socket_folder());
    let config = proxy.config(database.config());
    let mut process = Process::start(Path::new(BINARY), &Settings::new(), &config).await.unwrap();
    let http = Http::new(process.url());
    let (alice, bob) = (User::register(&http, "alice").await, User::register(&http, "bob").await);
    let room = alice.create_room().member(&bob).await;
    let mut feed = bob.feed().await;
    plan();
    for number in 0..3 {
        for kind in 0..4 {
            write(&alice, &bob, &room, kind, number * 2).await.ok();
            let before = feed.now().await.next_batch();
            proxy.cut(Cut::BeforeCommit);
            let lost = spawn(write(&alice, &bob, &room, kind, number * 2 + 1).unchecked().send());
            while !proxy.is_cut() {
                tokio::task::yield_now().await;
            }
            process.kill9().unwrap();
            drop(lost.await);
            process.restart().await.unwrap();
            let after = feed.now().await.next_batch();
            assert!(is_at_least(&after, &before), "kind {kind}: {after} is behind {before}");
            // What comes next has a place behind it.
            let marker = alice.send(&room, &format!("{kind} {number}")).await;
            feed.until_event(&room, &marker).await;
            assert!(is_at_least(&feed.since, &after), "kind {kind}: {} {after}", feed.since);
        }
    }
    let seen: Value =
        bob.history(&room).await.into_iter().filter(|one| one["type"] == "m.test").collect();
    assert!(seen.as_array().unwrap().len() >= 3, "{seen}");
}
