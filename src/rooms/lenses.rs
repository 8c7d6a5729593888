//! Lenses that are remembered, so that a page of history needs no query to know who may see it.
//!
//! A lens changes with its user's membership and with the room's history visibility, and with
//! nothing else that happens in the room. It is dropped when one of them does; one that was being
//! read meanwhile is used, and not kept.

use std::{collections::HashMap, sync::Arc};

use chatd_base::{Cache, Result, UserNid};
use chatd_storage::Pool;
use chatd_streams::events::EventRow;
use parking_lot::Mutex;
use ruma_common::{OwnedRoomId, RoomId};

use crate::visibility::Lens;

/// Rooms whose lenses are remembered, and lenses of each (R8).
const MOST_ROOMS: usize = 5_000;
const MOST_USERS: usize = 500;

/// The lenses on one room.
#[derive(Debug, Default)]
struct OfRoom {
    lenses: HashMap<UserNid, Arc<Lens>>,
    /// Counts what made lenses wrong.
    changes: u64,
}

impl OfRoom {
    /// Drops the lens of one user, or all of them.
    fn forget(&mut self, user: Option<UserNid>) {
        self.changes += 1;
        match user {
            Some(user) => drop(self.lenses.remove(&user)),
            None => self.lenses.clear(),
        }
    }

    /// Keeps a lens that was read when `changes` was `seen`.
    fn keep(&mut self, seen: u64, lens: Arc<Lens>) {
        if self.changes != seen {
            return;
        }
        if self.lenses.len() >= MOST_USERS {
            self.lenses.clear();
        }
        self.lenses.insert(lens.user(), lens);
    }
}

/// Lenses of many users on many rooms; bounded.
#[derive(Debug)]
pub struct Lenses {
    rooms: Cache<OwnedRoomId, Arc<Mutex<OfRoom>>>,
}

impl Lenses {
    /// No lenses yet. [`Lenses::see`] must be told of every live event from now on.
    pub fn new() -> Self {
        Self { rooms: Cache::new("lenses", MOST_ROOMS) }
    }

    /// The lens of `user` on a room; refuses as [`Lens::of`] does. No query once warm.
    pub async fn get(&self, pool: &Pool, user: UserNid, room_id: &RoomId) -> Result<Arc<Lens>> {
        let of_room = self.of_room(room_id);
        let seen = {
            let of_room = of_room.lock();
            if let Some(lens) = of_room.lenses.get(&user) {
                return Ok(lens.clone());
            }
            of_room.changes
        };
        let lens = Arc::new(Lens::of(pool, user, room_id).await?);
        of_room.lock().keep(seen, lens.clone());
        Ok(lens)
    }

    fn of_room(&self, room_id: &RoomId) -> Arc<Mutex<OfRoom>> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        match self.rooms.get_or_insert_with(room_id, fresh) {
            Ok(of_room) => of_room,
            Err(never) => match never {},
        }
    }

    /// Takes note of a live event.
    pub fn see(&self, row: &EventRow) {
        let is_setting = row.is_current && &*row.kind == "m.room.history_visibility";
        if is_setting || !row.resolved.is_empty() {
            self.forget(&row.room_id, None);
        } else if let Some(change) = &row.membership {
            self.forget(&row.room_id, Some(change.user));
        }
    }

    /// Drops all lenses. One that is being read meanwhile is kept by nobody.
    pub fn clear(&self) {
        self.rooms.clear();
    }

    /// Drops the lens of one user on a room, or of all users.
    pub fn forget(&self, room_id: &RoomId, user: Option<UserNid>) {
        if let Some(of_room) = self.rooms.get(room_id) {
            of_room.lock().forget(user);
        }
    }
}
