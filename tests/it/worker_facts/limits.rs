//! A rate limit is one for the fleet, whichever instances are asked.

use chatd_kit::{Answer, Request, Settings, User};
use serde_json::json;

use super::{at, fleet, users};

const INSTANCES: [&str; 7] =
    ["main", "persister1", "persister2", "stream1", "stream2", "sync1", "sync2"];
/// What a caller may do at once.
const BURST: usize = 5;

/// Asks one instance after the other until each has refused once; how often it was allowed.
async fn allowed(user: &User, ask: impl Fn(&User) -> Request, folder: &std::path::Path) -> usize {
    let mut allowed = 0;
    let mut waiting = INSTANCES.map(|name| user.at(&at(folder, name))).to_vec();
    while !waiting.is_empty() {
        let mut answers: Vec<(User, Answer)> = Vec::new();
        for user in waiting {
            let answer = ask(&user).unchecked().await;
            answers.push((user, answer));
        }
        answers.retain(|(_, answer)| answer.status != 429);
        allowed += answers.len();
        waiting = answers.into_iter().map(|(user, _)| user).collect();
    }
    allowed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_count_for_each_other() {
    let slow = json!({"per_second": 0.01, "burst_count": BURST});
    let settings = Settings::new().with("rc_message", slow.clone()).with("rc_room_creation", slow);
    let (fleet, _database) = fleet(&settings).await;
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    let room = bob.create_room().preset("public_chat").await;
    alice.join(&room).await.ok();
    // Each instance may let one through before it has heard of the others'.
    let most = BURST + INSTANCES.len();
    let messages = allowed(&alice, |user| user.send_text(&room, "text"), fleet.folder()).await;
    assert!((BURST..=most).contains(&messages), "{messages} messages");
    let create = |user: &User| user.post("/createRoom", &json!({}));
    let rooms = allowed(&alice, create, fleet.folder()).await;
    assert!((BURST..=most).contains(&rooms), "{rooms} rooms");
    bob.send_text(&room, "another user may").await.ok();
}
