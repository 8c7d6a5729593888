//! How far users have read, as far as this instance has heard lately. Two receipts of a user that go
//! through two writers at the same time may come in any order; the lesser one, which the tables do not
//! keep, is told to nobody who may know the further one.

use chatd_base::{Position, RoomNid, UserNid};
use chatd_streams::receipts::ReceiptRow;
use quick_cache::unsync::Cache;

/// Receipts that are remembered (R8). They come within moments of each other.
const REMEMBERED: usize = 10_000;

/// Room, user, whether it is private, and its thread.
type Key = (RoomNid, UserNid, bool, Option<String>);

/// The furthest receipt of each user, kind and thread.
#[derive(Debug)]
pub struct Furthest(Cache<Key, Position>);

impl Furthest {
    pub fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }

    /// Takes note of a receipt. False if one that is as far or further has been heard of.
    pub fn advances(&mut self, row: &ReceiptRow) -> bool {
        let key = (row.room, row.user, row.is_private, row.thread.clone());
        if self.0.get(&key).is_some_and(|known| *known >= row.event_pos) {
            return false;
        }
        self.0.insert(key, row.event_pos);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(user: i32, thread: Option<&str>, at: i64) -> ReceiptRow {
        ReceiptRow {
            room: RoomNid(1),
            room_id: "!r:x".try_into().unwrap(),
            user: UserNid(user),
            user_id: format!("@u{user}:x").try_into().unwrap(),
            is_private: false,
            thread: thread.map(str::to_owned),
            event_id: format!("${at}").try_into().unwrap(),
            event_pos: Position(at),
            ts: 0,
        }
    }

    #[test]
    fn a_lesser_receipt_that_comes_late_is_passed_over() {
        let mut furthest = Furthest::new();
        assert!(furthest.advances(&receipt(1, None, 5)));
        assert!(!furthest.advances(&receipt(1, None, 4)));
        assert!(!furthest.advances(&receipt(1, None, 5)), "the same again");
        assert!(furthest.advances(&receipt(2, None, 4)), "somebody else's");
        assert!(furthest.advances(&receipt(1, Some("main"), 4)), "of another thread");
        let private = ReceiptRow { is_private: true, ..receipt(1, None, 4) };
        assert!(furthest.advances(&private), "of another kind");
        assert!(furthest.advances(&receipt(1, None, 6)));
    }
}
