//! Rooms that somebody here is on the way into: a server that is there has been asked to let them
//! in, and its answer is not in the tables yet. The others in the room may send what happens there
//! from now on, so that has to wait, and must not be taken for news of an unknown room.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chatd_base::Result;
use ruma_common::{OwnedRoomId, RoomId, RoomVersionId, room_version_rules::RoomVersionRules};
use tokio::sync::watch;

use crate::owner::RoomOwner;

/// How many are on the way into each room, and its version.
type Counts = watch::Sender<HashMap<OwnedRoomId, (usize, RoomVersionId)>>;

/// The rooms. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct OnTheWay(Arc<Counts>);

/// Somebody is on the way while this lives.
#[derive(Debug)]
pub struct Way {
    rooms: Arc<Counts>,
    room: OwnedRoomId,
}

impl OnTheWay {
    fn begin(&self, room: &RoomId, version: &RoomVersionId) -> Way {
        self.0.send_modify(|rooms| {
            rooms.entry(room.to_owned()).or_insert_with(|| (0, version.clone())).0 += 1;
        });
        Way { rooms: self.0.clone(), room: room.to_owned() }
    }

    /// Whether somebody was on the way, and is there now or has given up; `None` if it takes too
    /// long.
    async fn ended(&self, room: &RoomId, patience: Duration) -> Option<bool> {
        let mut rooms = self.0.subscribe();
        if !rooms.borrow().contains_key(room) {
            return Some(false);
        }
        let ended = rooms.wait_for(|rooms| !rooms.contains_key(room));
        let in_time = tokio::time::timeout(patience, ended).await.is_ok();
        in_time.then_some(true)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.rooms.send_modify(|rooms| {
            if let Some((count, _)) = rooms.get_mut(&self.room) {
                *count -= 1;
                if *count == 0 {
                    rooms.remove(&self.room);
                }
            }
        });
    }
}

impl RoomOwner {
    /// Somebody here is about to ask another server for the way into a room. On return the room is
    /// in the tables, and the other instances are told, which may have found it unknown.
    pub async fn expect(&self, room: &RoomId, version: &RoomVersionId) -> Result<Way> {
        let way = self.on_the_way.begin(room, version);
        self.known_room(room, version).await?;
        Ok(way)
    }

    /// The rules of a room that somebody here is on the way into.
    pub fn expected(&self, room: &RoomId) -> Option<RoomVersionRules> {
        self.on_the_way.0.borrow().get(room).and_then(|(_, version)| version.rules())
    }

    /// Waits until nobody here is on the way into the room; false if that takes too long.
    pub async fn has_waited_for(&self, room: &RoomId, patience: Duration) -> bool {
        self.on_the_way.ended(room, patience).await.is_some()
    }
}

#[cfg(test)]
mod tests {
    use ruma_common::room_id;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn what_comes_waits_until_all_are_there() {
        let rooms = OnTheWay::default();
        let (room, other) = (room_id!("!room:a"), room_id!("!other:a"));
        assert_eq!(rooms.ended(room, PATIENCE).await, Some(false));
        let version = RoomVersionId::V11;
        let (one, two) = (rooms.begin(room, &version), rooms.begin(room, &version));
        assert_eq!(rooms.ended(other, PATIENCE).await, Some(false));
        drop(one);
        assert_eq!(rooms.ended(room, Duration::ZERO).await, None);
        let waits = rooms.clone();
        let waits = tokio::join!(waits.ended(room, PATIENCE), async { drop(two) });
        assert_eq!(waits.0, Some(true));
        assert!(rooms.0.borrow().is_empty());
    }
}
