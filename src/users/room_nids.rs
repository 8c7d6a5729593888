//! Numbers of rooms by their ids. They never change, so the cache needs no invalidation.

use chatd_base::{Cache, Refusal, Result, RoomNid};
use chatd_storage::memberships;
use ruma_common::{OwnedRoomId, RoomId};

use crate::Deps;

/// Rooms that are remembered (R8).
const CACHED_ROOMS: usize = 50_000;

/// The numbers of rooms that this server knows.
pub struct RoomNids {
    deps: Deps,
    cache: Cache<OwnedRoomId, RoomNid>,
}

impl RoomNids {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self { deps: deps.clone(), cache: Cache::new("rooms_by_id", CACHED_ROOMS) }
    }

    /// The number of a room, if this server knows it.
    pub async fn find(&self, room: &RoomId) -> Result<Option<RoomNid>> {
        if let Some(nid) = self.cache.get(room) {
            return Ok(Some(nid));
        }
        let found = memberships::get_room_nid(&self.deps.pool, room.as_str()).await?;
        if let Some(nid) = found {
            self.cache.insert(room.to_owned(), nid);
        }
        Ok(found)
    }

    /// The number of a room; refuses with 404 if this server does not know it.
    pub async fn get(&self, room: &RoomId) -> Result<RoomNid> {
        self.find(room).await?.ok_or_else(|| Refusal::not_found("unknown room").into())
    }
}
