//! Which members' events a device has been given, so that lazy loading does not repeat them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{Cache, RoomNid, UserNid};
use chatd_streams::StreamToken;
use parking_lot::Mutex;
use ruma_common::OwnedUserId;

type Key = (UserNid, String, RoomNid);

/// Members, and where the answer ended that has their events.
type Given = HashMap<OwnedUserId, Arc<StreamToken>>;

/// Bounded; what is forgotten is sent again.
#[derive(Debug)]
pub struct GivenMembers {
    rooms: Cache<Key, Arc<Mutex<Given>>>,
}

/// Members remembered for one device and room.
const MOST_MEMBERS: usize = 500;

impl GivenMembers {
    /// `rooms`: pairs of device and room that are remembered.
    pub fn new(rooms: usize) -> Self {
        Self { rooms: Cache::new("lazy_members", rooms) }
    }

    /// The users whose member events the device has: only those of answers that it has confirmed
    /// by coming back with a token at or above them. Whatever changed since was in a timeline or
    /// in the state of a gap.
    pub fn confirmed(
        &self,
        user: UserNid,
        device: &str,
        room: RoomNid,
        since: &StreamToken,
    ) -> HashSet<OwnedUserId> {
        let Some(given) = self.rooms.get(&(user, device.to_owned(), room)) else {
            return HashSet::new();
        };
        let given = given.lock();
        given.iter().filter(|(_, at)| since.is_at_least(at)).map(|(user, _)| user.clone()).collect()
    }

    /// Notes that an answer that ends at `at` has the member events of these users.
    pub fn give(
        &self,
        user: UserNid,
        device: &str,
        room: RoomNid,
        at: &StreamToken,
        members: impl Iterator<Item = OwnedUserId>,
    ) {
        let key = (user, device.to_owned(), room);
        let given = self.rooms.get(&key).unwrap_or_else(|| {
            let fresh = Arc::<Mutex<Given>>::default();
            self.rooms.insert(key, fresh.clone());
            fresh
        });
        let (at, mut given) = (Arc::new(at.clone()), given.lock());
        for member in members {
            if given.len() >= MOST_MEMBERS {
                given.clear();
            }
            given.entry(member).or_insert_with(|| at.clone());
        }
    }

    /// The device starts again: it has nothing of this room.
    pub fn forget(&self, user: UserNid, device: &str, room: RoomNid) {
        self.rooms.remove(&(user, device.to_owned(), room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_confirmed_answers_count() {
        let given = GivenMembers::new(10);
        let alice: OwnedUserId = "@alice:x".try_into().unwrap();
        let token = |text: &str| text.parse::<StreamToken>().unwrap();
        let give = |at| {
            let member = std::iter::once(alice.clone());
            given.give(UserNid(1), "D", RoomNid(1), &token(at), member);
        };
        let has =
            |since| given.confirmed(UserNid(1), "D", RoomNid(1), &token(since)).contains(&alice);
        give("m10~2.12");
        assert_eq!(
            (has("m9~2.12"), has("10"), has("m10~2.12"), has("12")),
            (false, false, true, true)
        );
        give("20");
        assert!(has("12"));
        given.forget(UserNid(1), "D", RoomNid(1));
        assert!(!has("30"));
    }
}
