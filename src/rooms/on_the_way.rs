//! Rooms that somebody here is on the way into: a server that is there has been asked to let them
//! in, and its answer is not in the tables yet. The others in the room may send what happens there
//! from now on, so that has to wait, and must not be taken for news of an unknown room.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chatd_base::{Refusal, Result};
use ruma_common::{OwnedRoomId, RoomId, RoomVersionId};
use tokio::sync::watch;

use crate::owner::RoomOwner;

/// How long what comes for such a room waits. Its sender has to come again after that.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many are on the way into each room.
type Counts = watch::Sender<HashMap<OwnedRoomId, usize>>;

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
    fn begin(&self, room: &RoomId) -> Way {
        self.0.send_modify(|rooms| *rooms.entry(room.to_owned()).or_default() += 1);
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
            if let Some(count) = rooms.get_mut(&self.room) {
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
    /// known, on every instance.
    pub async fn expect(&self, room: &RoomId, version: &RoomVersionId) -> Result<Way> {
        let way = self.on_the_way.begin(room);
        self.known_room(room, version).await?;
        Ok(way)
    }

    /// Whether somebody here was on the way into the room, for whom this has waited. Refuses (503)
    /// if that takes too long.
    pub async fn has_waited_for(&self, room: &RoomId) -> Result<bool> {
        let late = || Refusal::new(503, "M_UNKNOWN", "this server is joining the room; try again");
        Ok(self.on_the_way.ended(room, PATIENCE).await.ok_or_else(late)?)
    }
}

#[cfg(test)]
mod tests {
    use ruma_common::room_id;

    use super::*;

    #[tokio::test]
    async fn what_comes_waits_until_all_are_there() {
        let rooms = OnTheWay::default();
        let (room, other) = (room_id!("!room:a"), room_id!("!other:a"));
        assert_eq!(rooms.ended(room, PATIENCE).await, Some(false));
        let (one, two) = (rooms.begin(room), rooms.begin(room));
        assert_eq!(rooms.ended(other, PATIENCE).await, Some(false));
        drop(one);
        assert_eq!(rooms.ended(room, Duration::ZERO).await, None);
        let waits = rooms.clone();
        let waits = tokio::join!(waits.ended(room, PATIENCE), async { drop(two) });
        assert_eq!(waits.0, Some(true));
        assert!(rooms.0.borrow().is_empty());
    }
}
