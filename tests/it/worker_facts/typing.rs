//! Who types is in no table: what the bus loses of it is told again.

use std::collections::{BTreeMap, BTreeSet};

use chatd_kit::{eventually, say};
use futures::future::join_all;
use rand::Rng;
use serde_json::json;

use super::{at, fleet, users};
use crate::faults::{bus::BadBus, plan};

const ROOMS: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_stopped_is_seen_to_have_stopped() {
    let (_, mut random) = plan();
    let mut bus = BadBus::new();
    let (mut fleet, _database) = fleet(&bus.settings()).await;
    bus.start(&mut fleet, random.random());
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        rooms.push(alice.create_room().member(&bob).await);
    }
    let watcher = bob.at(&at(fleet.folder(), "sync1"));
    let since = tokio::sync::Mutex::new(watcher.sync().await.next_batch());
    // Rooms in which somebody has been seen typing, and who types there now.
    let seen = tokio::sync::Mutex::new(BTreeMap::<String, bool>::new());
    let look = || async {
        let mut since = since.lock().await;
        let answer = watcher.sync().since(&since).timeout_ms(1_000).await;
        *since = answer.next_batch();
        let mut seen = seen.lock().await;
        for room in &rooms {
            if let Some(typing) = answer.ephemeral_of(room, "m.typing") {
                seen.insert(room.clone(), typing["content"]["user_ids"] != json!([]));
            }
        }
        seen.clone()
    };
    join_all(rooms.iter().map(|room| alice.typing(room, true).into_future())).await;
    eventually("they are seen typing", || async {
        let seen = look().await;
        if seen.len() == ROOMS { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    join_all(rooms.iter().map(|room| alice.typing(room, false).into_future())).await;
    let first = look().await;
    eventually("they are seen to have stopped", || async {
        let typing: BTreeSet<_> = look().await.into_iter().filter(|(_, types)| *types).collect();
        if typing.is_empty() { Ok(()) } else { Err(format!("{typing:?}")) }
    })
    .await;
    let late = first.values().filter(|types| **types).count();
    say(format!("{late} of {ROOMS} were not seen to stop at first"));
}
