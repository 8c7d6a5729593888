//! Into rooms, and out of them, across servers.

mod between;
mod lies;
mod ours;
mod partial;
mod theirs;

use chatd_kit::{Answer, User, path, sync::Feed};
use serde_json::{Value, json};

/// One of each kind of room: ids of events and rooms, power levels and joins have changed over time.
const VERSIONS: &[&str] = &["1", "6", "10", "11", "12"];

/// `user` joins a room that `server` is in.
async fn join_by(user: &User, room: &str, server: &str) -> Answer {
    user.post(path("/join/{}?via={}", &[room, server]), &json!({})).await
}

/// The state event of a joined room that a feed has been told.
fn is_state(events: &[Value], kind: &str) -> bool {
    events.iter().any(|event| event["type"] == kind)
}

/// Syncs on until `section` has the room.
async fn until_in(feed: &mut Feed, section: &str, room: &str) -> Value {
    feed.until(&format!("{room} in {section}"), |synced| {
        let found = synced.section(section, room);
        found.is_object().then(|| found.clone())
    })
    .await
}
