//! What another server is told of a room that one of its users has joined: the state before the join
//! and what authorises it, as they are stored. A constant number of statements, whatever the room
//! holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chatd_base::{Error, EventNid, Refusal, Result};
use chatd_storage::{
    graph::{self, GraphEvent},
    lane::flags,
    snapshots,
};
use ruma_common::{
    EventId, OwnedServerName, RoomId,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
};
use serde_json::value::RawValue;

use crate::{Rooms, owner::lock, parallel, pdu, seal::HASH_KEY};

/// The state before an event, and its auth chain: events in the federation format.
#[derive(Debug, Default)]
pub struct JoinAnswer {
    pub state: Vec<String>,
    pub auth_chain: Vec<String>,
    /// The servers in the room, this one included.
    pub servers: Vec<OwnedServerName>,
}

impl Rooms {
    /// What is told of the room after `join`, one of its events. `omits_members`: without the
    /// memberships, but for those that authorise something.
    pub async fn join_answer(
        &self,
        room_id: &RoomId,
        join: &EventId,
        omits_members: bool,
    ) -> Result<JoinAnswer> {
        let slot = self.owner.slot(room_id).await?;
        let (room, rules) = {
            let live = lock(&slot).lock();
            (live.room, Arc::new(live.rules.clone()))
        };
        let places = graph::list_places(&self.pool, &[join.as_str()]).await?;
        let place = places.get(join.as_str()).filter(|place| place.room == room);
        let place = place.ok_or_else(|| Refusal::not_found("the event is not known"))?;
        let mut loaded = snapshots::load_many(&self.pool, room, &[place.snapshot]).await?;
        let (state, _) = loaded
            .remove(&place.snapshot)
            .ok_or_else(|| Error::internal("a snapshot is missing"))?;
        let seeds: Vec<EventNid> = state.values().copied().chain([place.nid]).collect();
        let of_state: BTreeSet<EventNid> = state.into_values().collect();
        let edges = graph::list_auth_edges(&self.pool, &seeds).await?;
        let of_join = edges.get(&place.nid).cloned().unwrap_or_default();
        let wanted: Vec<EventNid> = edges.into_keys().filter(|nid| *nid != place.nid).collect();
        let events = graph::list_events(&self.pool, &wanted).await?;
        let authorising: BTreeSet<EventNid> = match omits_members {
            true => authorising(&events, &of_join),
            false => BTreeSet::new(),
        };
        let is_told = |event: &GraphEvent| {
            !omits_members || event.kind != "m.room.member" || authorising.contains(&event.nid)
        };
        let events: Vec<GraphEvent> = events.into_iter().filter(is_told).collect();
        let in_state: Vec<bool> =
            events.iter().map(|event| of_state.contains(&event.nid)).collect();
        let (id, rules) = (room_id.to_owned(), rules.clone());
        let texts = parallel::map(events, move |event| text(&event, &id, &rules)).await?;
        let mut answer =
            JoinAnswer { servers: self.hosts.servers_in(room).await?, ..Default::default() };
        answer.servers.insert(0, self.owner.signer.server_name.clone());
        for (text, in_state) in texts.into_iter().zip(in_state) {
            let text = text.map_err(Error::internal)?;
            if in_state {
                answer.state.push(text);
            } else {
                answer.auth_chain.push(text);
            }
        }
        Ok(answer)
    }
}

/// Events that others name to show that they are allowed: those of `events` that are no memberships,
/// and the join, which names `of_join`.
fn authorising(events: &[GraphEvent], of_join: &[EventNid]) -> BTreeSet<EventNid> {
    let nids: BTreeMap<&str, EventNid> =
        events.iter().map(|event| (event.event_id.as_str(), event.nid)).collect();
    let is_member = |event: &&GraphEvent| event.kind == "m.room.member";
    let mut open: Vec<&GraphEvent> = events.iter().filter(|event| !is_member(event)).collect();
    let by_nid: BTreeMap<EventNid, &GraphEvent> =
        events.iter().map(|event| (event.nid, event)).collect();
    let mut found: BTreeSet<EventNid> = of_join.iter().copied().collect();
    open.extend(of_join.iter().filter_map(|nid| by_nid.get(nid)));
    while let Some(event) = open.pop() {
        for nid in event.auth_events.iter().filter_map(|id| nids.get(id.as_str())) {
            if found.insert(*nid) {
                open.extend(by_nid.get(nid));
            }
        }
    }
    found
}

/// The event as it was signed. What is stored is spliced in as it is; only a redacted event is taken
/// apart.
pub(crate) fn text(
    event: &GraphEvent,
    room_id: &RoomId,
    rules: &RoomVersionRules,
) -> Result<String, String> {
    let wrong = |error: serde_json::Error| format!("event {}: {error}", event.event_id);
    if event.flags & flags::REDACTED != 0 {
        let object = pdu::federation_json(event, room_id, rules)?;
        return serde_json::to_string(&object).map_err(wrong);
    }
    let mut members: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(&event.rest).map_err(wrong)?;
    members.remove(HASH_KEY);
    let mut put = |name: &str, value: Box<RawValue>| drop(members.insert(name.to_owned(), value));
    put("content", RawValue::from_string(event.content.clone()).map_err(wrong)?);
    put("depth", raw(&event.depth).map_err(wrong)?);
    put("origin_server_ts", raw(&event.origin_ts).map_err(wrong)?);
    put("sender", raw(&event.sender).map_err(wrong)?);
    put("type", raw(&event.kind).map_err(wrong)?);
    if let Some(state_key) = &event.state_key {
        put("state_key", raw(state_key).map_err(wrong)?);
    }
    let is_hash_create =
        event.kind == "m.room.create" && rules.authorization.room_create_event_id_as_room_id;
    if !is_hash_create {
        put("room_id", raw(room_id.as_str()).map_err(wrong)?);
    }
    if rules.event_id_format == EventIdFormatVersion::V1 {
        put("event_id", raw(&event.event_id).map_err(wrong)?);
    }
    for (name, ids) in [("prev_events", &event.prev_events), ("auth_events", &event.auth_events)] {
        if !members.contains_key(name) {
            members.insert(name.to_owned(), raw(ids).map_err(wrong)?);
        }
    }
    serde_json::to_string(&members).map_err(wrong)
}

fn raw(value: &(impl serde::Serialize + ?Sized)) -> serde_json::Result<Box<RawValue>> {
    serde_json::value::to_raw_value(value)
}
