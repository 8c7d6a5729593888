//! Events as servers exchange them, for clients that ask for that format.

use std::collections::HashMap;

use chatd_base::{EventNid, Result};
use chatd_storage::{
    Pool,
    events::{self, StoredEvent},
};
use serde_json::{Map, Value, json};

use crate::{
    client_event::{Extras, Viewer, unsigned},
    seal::HASH_KEY,
};

/// What the federation format says besides what clients usually get, by event.
#[derive(Debug, Default)]
pub struct FederationParts(HashMap<EventNid, events::FederationRow>);

/// Reads the parts of `events`. One statement; none if there are no events.
pub async fn load<'a>(
    pool: &Pool,
    events: impl IntoIterator<Item = &'a StoredEvent>,
) -> Result<FederationParts> {
    let nids: Vec<EventNid> = events.into_iter().map(|event| event.nid).collect();
    let rows = events::list_federation(pool, &nids).await?;
    Ok(FederationParts(rows.into_iter().map(|row| (row.nid, row)).collect()))
}

impl FederationParts {
    /// The event in the federation format; `None` if its parts were not read.
    pub fn to_json(
        &self,
        event: &StoredEvent,
        viewer: &Viewer<'_>,
        extras: &Extras<'_>,
    ) -> Option<Vec<u8>> {
        let row = self.0.get(&event.nid)?;
        let mut members: Map<String, Value> = serde_json::from_slice(&row.rest).ok()?;
        let has_id = members.remove(HASH_KEY).is_some();
        let mut put = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
        if has_id {
            // Room versions 1 and 2: the references in `rest` have hashes already.
            put("event_id", event.event_id.as_str().into());
        } else {
            put("auth_events", json!(row.auth_events));
            // An event whose predecessors are not known has their ids in `rest`.
            members.entry("prev_events").or_insert_with(|| json!(row.prev_events));
        }
        let mut put = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
        let is_id_of_room =
            &*event.kind == "m.room.create" && event.room_id.server_name().is_none();
        if !is_id_of_room {
            put("room_id", event.room_id.as_str().into());
        }
        if let Some(state_key) = &event.state_key {
            put("state_key", (**state_key).into());
        }
        put("content", value(event.content.get().as_bytes())?);
        put("depth", event.depth.into());
        put("origin_server_ts", event.origin_ts.into());
        put("sender", event.sender.as_str().into());
        put("type", (*event.kind).into());
        put("unsigned", value(&unsigned(event, viewer, extras))?);
        serde_json::to_vec(&members).ok()
    }
}

fn value(json: &[u8]) -> Option<Value> {
    serde_json::from_slice(json).ok()
}
