//! How far somebody has read never goes back, whichever writers of receipts are asked at once.

use chatd_kit::{Settings, path};
use futures::join;
use serde_json::json;

use super::{at, fleet, users};

const ROUNDS: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_stays_read() {
    let (fleet, _database) = fleet(&Settings::new()).await;
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    let room = alice.create_room().member(&bob).await;
    let writers = ["stream1", "stream2"].map(|name| alice.at(&at(fleet.folder(), name)));
    let watcher = bob.at(&at(fleet.folder(), "sync1"));
    let reader = alice.at(&at(fleet.folder(), "sync2"));
    let mut since = watcher.sync().await.next_batch();
    let (mut events, mut furthest) = (Vec::new(), None::<usize>);
    for round in 0..ROUNDS {
        events.push(alice.send(&room, "lesser").await);
        events.push(alice.send(&room, "further").await);
        let [.., lesser, further] = &*events else { unreachable!("two were sent") };
        let url = path("/rooms/{}/read_markers", &[&room]);
        let mark = |writer: usize, event: &str| {
            let marks = json!({"m.fully_read": event, "m.read": event});
            writers[writer % 2].post(url.as_str(), &marks)
        };
        let (first, second) =
            join!(mark(round, lesser).into_future(), mark(round + 1, further).into_future());
        first.ok();
        second.ok();

        let url = path("/user/{}/rooms/{}/account_data/m.fully_read", &[&alice.id, &room]);
        let marker = reader.get(url).await;
        assert_eq!(marker.ok()["event_id"], **further, "round {round}");
        while furthest != Some(events.len() - 1) {
            let answer = watcher.sync().since(&since).timeout_ms(10_000).await;
            since = answer.next_batch();
            let receipts = answer.ephemeral_of(&room, "m.receipt").unwrap_or_default();
            let mut told = receipts["content"].as_object().into_iter().flatten();
            let own = told.find(|(_, kinds)| kinds["m.read"].get(&alice.id).is_some());
            let Some((event, _)) = own else { continue };
            let place = events.iter().position(|one| one == event);
            assert!(place > furthest, "round {round}: {place:?} after {furthest:?}: {}", *answer);
            furthest = place;
        }
    }
}
