//! An event of another server, taken apart: in the form in which it is stored, and as the rules see
//! it. Its signatures and hashes have been checked.

use chatd_base::{EventNid, Refusal, Result, event_form};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedUserId, RoomId,
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;

use crate::{
    pdu::Pdu,
    seal::{self, SealedJson},
};

/// An event that may have no place in the room's graph.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Its numbers are 0.
    pub pdu: Pdu,
    /// Keeps the ids of its predecessors.
    pub sealed: SealedJson,
}

impl Incoming {
    pub fn id(&self) -> &EventId {
        &self.pdu.event_id
    }

    /// The entry of the state that it is, by type and key; `None` if it is no state event.
    pub fn entry(&self) -> Option<(String, &str)> {
        Some((self.pdu.kind.to_string(), self.pdu.state_key.as_deref()?))
    }

    /// Whether it names that event to show that it is allowed.
    pub(crate) fn names(&self, id: &EventId) -> bool {
        self.pdu.auth_events.iter().any(|auth| *auth == id)
    }
}

/// Takes `event` apart; refuses what is no event, or one of another room.
pub fn read(
    event: CanonicalJsonObject,
    rules: &RoomVersionRules,
    room_id: &RoomId,
) -> Result<Incoming> {
    event_form::check(&event, &rules.event_format)?;
    let kind = text(&event, "type")?.to_owned();
    let is_hash_create =
        kind == "m.room.create" && rules.authorization.room_create_event_id_as_room_id;
    if !is_hash_create && text(&event, "room_id")? != room_id.as_str() {
        return Err(wrong("room_id", "is that of another room").into());
    }
    let sender = OwnedUserId::try_from(text(&event, "sender")?)
        .map_err(|error| wrong("sender", &error.to_string()))?;
    let state_key = event.get("state_key").and_then(CanonicalJsonValue::as_str).map(str::to_owned);
    let redacts = match (event.get("content"), rules.redaction.content_field_redacts) {
        (Some(CanonicalJsonValue::Object(content)), true) => content.get("redacts"),
        _ => event.get("redacts"),
    };
    let redacts = redacts.and_then(CanonicalJsonValue::as_str);
    let redacts = redacts.and_then(event_form::event_id);
    let (origin_ts, depth) = (integer(&event, "origin_server_ts"), integer(&event, "depth"));
    let prev_events = references(&event, "prev_events")?;
    let auth_events = references(&event, "auth_events")?;
    let sealed = seal::take_apart_alone(rules, event)?;
    if is_hash_create && seal::room_id_of_create(&sealed.event_id)? != room_id {
        return Err(wrong("room_id", "is that of another room").into());
    }
    let content =
        RawValue::from_string(sealed.content.clone()).map_err(chatd_base::Error::internal)?;
    let pdu = Pdu {
        nid: EventNid(0),
        key: None,
        event_id: sealed.event_id.clone(),
        room_id: (!is_hash_create).then(|| room_id.to_owned()),
        sender,
        origin_ts,
        depth,
        kind: kind.into(),
        state_key,
        content,
        prev_events,
        auth_events,
        redacts,
        rejected: false,
        hash: sealed.hash.clone(),
    };
    Ok(Incoming { pdu, sealed })
}

fn wrong(name: &str, why: &str) -> Refusal {
    Refusal::bad_json(format!("`{name}` of the event {why}"))
}

fn text<'a>(event: &'a CanonicalJsonObject, name: &str) -> Result<&'a str, Refusal> {
    let value = event.get(name).and_then(CanonicalJsonValue::as_str);
    value.ok_or_else(|| wrong(name, "is not a string"))
}

fn integer(event: &CanonicalJsonObject, name: &str) -> i64 {
    match event.get(name) {
        Some(CanonicalJsonValue::Integer(number)) => (*number).into(),
        _ => 0,
    }
}

/// Ids in `prev_events` or `auth_events`, which in old room versions come with hashes.
pub fn references(event: &CanonicalJsonObject, name: &str) -> Result<Vec<OwnedEventId>, Refusal> {
    let Some(CanonicalJsonValue::Array(entries)) = event.get(name) else {
        return Err(wrong(name, "is not an array"));
    };
    let one = |entry: &CanonicalJsonValue| {
        let id = match entry {
            CanonicalJsonValue::Array(pair) => pair.first().and_then(CanonicalJsonValue::as_str),
            other => other.as_str(),
        };
        id.and_then(event_form::event_id).ok_or_else(|| wrong(name, "has a wrong entry"))
    };
    entries.iter().map(one).collect()
}
