//! Events as other servers get them. The same event goes to many of them, so the last ones are
//! remembered.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chatd_base::{Cache, EventNid, Result, RoomNid};
use chatd_rooms::federation_json;
use chatd_storage::{
    Pool, graph,
    sending::{self},
};
use ruma_common::{OwnedRoomId, RoomVersionId, room_version_rules::RoomVersionRules};

/// Events that are remembered (R8).
const MOST_EVENTS: usize = 2_000;
/// Rooms whose id and version are remembered.
const MOST_ROOMS: usize = 20_000;

/// An event and where it belongs.
pub(super) type Place = (EventNid, RoomNid);

/// What the rules of a room are.
type Room = Arc<(OwnedRoomId, RoomVersionRules)>;

/// Reads events.
pub(super) struct Bodies {
    pool: Pool,
    events: Cache<EventNid, Arc<str>>,
    rooms: Cache<RoomNid, Room>,
}

impl Bodies {
    pub(super) fn new(pool: &Pool) -> Self {
        Self {
            pool: pool.clone(),
            events: Cache::new("sent_events", MOST_EVENTS),
            rooms: Cache::new("sent_rooms", MOST_ROOMS),
        }
    }

    /// The JSON of the events; one query for those that are not remembered, and one for rooms.
    pub(super) async fn load(&self, places: &[Place]) -> Result<HashMap<EventNid, Arc<str>>> {
        let mut found = HashMap::with_capacity(places.len());
        let mut missing: HashMap<EventNid, RoomNid> = HashMap::new();
        for (nid, room) in places {
            match self.events.get(nid) {
                Some(body) => drop(found.insert(*nid, body)),
                None => drop(missing.insert(*nid, *room)),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let rooms = self.rooms(missing.values().copied().collect()).await?;
        let nids: Vec<EventNid> = missing.keys().copied().collect();
        for event in graph::list_events(&self.pool, &nids).await? {
            let Some(room) = missing.get(&event.nid).and_then(|room| rooms.get(room)) else {
                continue;
            };
            let json = federation_json(&event, &room.0, &room.1)
                .and_then(|json| serde_json::to_string(&json).map_err(|error| error.to_string()));
            match json {
                Ok(json) => {
                    let body: Arc<str> = json.into();
                    self.events.insert(event.nid, body.clone());
                    found.insert(event.nid, body);
                }
                Err(error) => tracing::error!(%error, "an event cannot be sent"),
            }
        }
        Ok(found)
    }

    async fn rooms(&self, wanted: BTreeSet<RoomNid>) -> Result<HashMap<RoomNid, Room>> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for room in wanted {
            match self.rooms.get(&room) {
                Some(known) => drop(found.insert(room, known)),
                None => missing.push(room),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        for (nid, room_id, version) in sending::list_room_versions(&self.pool, &missing).await? {
            let rules = RoomVersionId::try_from(version.as_str()).ok().and_then(|v| v.rules());
            let (Ok(room_id), Some(rules)) = (OwnedRoomId::try_from(room_id), rules) else {
                continue;
            };
            let room: Room = Arc::new((room_id, rules));
            self.rooms.insert(nid, room.clone());
            found.insert(nid, room);
        }
        Ok(found)
    }
}
