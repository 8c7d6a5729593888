//! An event as event authorisation and state resolution see it.

use std::{borrow::Cow, collections::BTreeMap, fmt::Display, str::FromStr};

use chatd_base::{EventNid, KeyNid};
use chatd_storage::{
    graph::{self, GraphEvent},
    lane::flags,
    rooms::StateBody,
};
use js_int::UInt;
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId,
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    canonical_json::redact_in_place,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
};
use ruma_events::TimelineEventType;
use ruma_state_res::Event;
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    Rooms,
    owner::lock,
    seal::{Draft, HASH_KEY},
};

/// An event with all that the rules look at. Numbers are 0 where they are not known.
#[derive(Clone, Debug)]
pub struct Pdu {
    pub nid: EventNid,
    /// Number of its (type, state key), for a state event.
    pub key: Option<KeyNid>,
    pub event_id: OwnedEventId,
    /// Absent for the `m.room.create` event of rooms whose id is that event's hash.
    pub room_id: Option<OwnedRoomId>,
    pub sender: OwnedUserId,
    pub origin_ts: i64,
    pub depth: i64,
    pub kind: TimelineEventType,
    pub state_key: Option<String>,
    pub content: Box<RawValue>,
    pub prev_events: Vec<OwnedEventId>,
    pub auth_events: Vec<OwnedEventId>,
    pub redacts: Option<OwnedEventId>,
    pub rejected: bool,
    /// Reference hash, where it is known and needed (room versions 1 and 2).
    pub hash: Option<String>,
}

impl Pdu {
    /// An event with its references.
    pub fn from_graph(
        event: GraphEvent,
        room_id: &RoomId,
        has_hash_id: bool,
    ) -> Result<Self, String> {
        let ids = |ids: &[String]| -> Result<Vec<OwnedEventId>, String> {
            ids.iter().map(|id| parse(id, "reference", &event.event_id)).collect()
        };
        let is_create = event.kind == "m.room.create";
        Ok(Self {
            nid: event.nid,
            key: event.key,
            event_id: parse(&event.event_id, "id", &event.event_id)?,
            room_id: (!(is_create && has_hash_id)).then(|| room_id.to_owned()),
            sender: parse(&event.sender, "sender", &event.event_id)?,
            origin_ts: event.origin_ts,
            depth: event.depth,
            kind: TimelineEventType::from(event.kind.as_str()),
            state_key: event.state_key.clone(),
            content: RawValue::from_string(event.content.clone())
                .map_err(|error| format!("event {} has no content: {error}", event.event_id))?,
            prev_events: ids(&event.prev_events)?,
            auth_events: ids(&event.auth_events)?,
            redacts: None,
            rejected: event.flags & flags::REJECTED != 0,
            hash: crate::live::stored_hash(&event.rest),
        })
    }

    /// A state event from its row; its references are left out, which only state resolution
    /// needs.
    pub fn from_body(body: StateBody, room_id: &RoomId, has_hash_id: bool) -> Result<Self, String> {
        let is_create = body.kind == "m.room.create";
        let wrong = |what: &str, error: &dyn std::fmt::Display| {
            format!("event {} has a wrong {what}: {error}", body.event_id)
        };
        Ok(Self {
            nid: body.nid,
            key: Some(body.key),
            event_id: OwnedEventId::try_from(body.event_id.as_str())
                .map_err(|error| wrong("id", &error))?,
            room_id: (!(is_create && has_hash_id)).then(|| room_id.to_owned()),
            sender: OwnedUserId::try_from(body.sender.as_str())
                .map_err(|error| wrong("sender", &error))?,
            origin_ts: body.origin_ts,
            depth: body.depth,
            kind: TimelineEventType::from(body.kind.as_str()),
            state_key: Some(body.state_key.clone()),
            content: RawValue::from_string(body.content.clone())
                .map_err(|error| wrong("content", &error))?,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            redacts: None,
            rejected: false,
            hash: body.rest.as_deref().and_then(crate::live::stored_hash),
        })
    }

    /// What a draft would be, before it has its place.
    pub fn nobody(draft: &Draft, room_id: &RoomId) -> chatd_base::Result<Self> {
        Ok(Self {
            nid: EventNid(0),
            key: None,
            event_id: OwnedEventId::try_from("$nobody").map_err(chatd_base::Error::internal)?,
            room_id: Some(room_id.to_owned()),
            sender: draft.sender.clone(),
            origin_ts: 0,
            depth: 0,
            kind: draft.kind.as_str().into(),
            state_key: draft.state_key.clone(),
            content: serde_json::value::to_raw_value(&draft.content)
                .map_err(chatd_base::Error::internal)?,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            redacts: None,
            rejected: false,
            hash: None,
        })
    }

    /// A string member of the content.
    pub fn content_str(&self, member: &str) -> Option<String> {
        content_str(&self.content, member)
    }
}

fn parse<T: FromStr<Err: Display>>(text: &str, what: &str, event: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("event {event} has a wrong {what}: {error}"))
}

/// The event as other servers get it, byte by byte as it was signed; a redacted one as it is
/// afterwards, which has the same id and signatures.
pub fn federation_json(
    event: &GraphEvent,
    room_id: &RoomId,
    rules: &RoomVersionRules,
) -> Result<CanonicalJsonObject, String> {
    let wrong =
        |error: &dyn Display| format!("event {} cannot be rebuilt: {error}", event.event_id);
    let mut object: CanonicalJsonObject =
        serde_json::from_slice(&event.rest).map_err(|error| wrong(&error))?;
    let content: CanonicalJsonValue =
        serde_json::from_str(&event.content).map_err(|error| wrong(&error))?;
    object.remove(HASH_KEY);
    let integer = |number: i64| match js_int::Int::try_from(number) {
        Ok(number) => Ok(CanonicalJsonValue::Integer(number)),
        Err(error) => Err(wrong(&error)),
    };
    let ids = |ids: &[String]| {
        CanonicalJsonValue::Array(ids.iter().map(|id| id.as_str().into()).collect())
    };
    object.insert("content".to_owned(), content);
    object.insert("depth".to_owned(), integer(event.depth)?);
    object.insert("origin_server_ts".to_owned(), integer(event.origin_ts)?);
    object.insert("sender".to_owned(), event.sender.as_str().into());
    object.insert("type".to_owned(), event.kind.as_str().into());
    // In old room versions the remainder has them, with hashes.
    object.entry("prev_events".to_owned()).or_insert_with(|| ids(&event.prev_events));
    object.entry("auth_events".to_owned()).or_insert_with(|| ids(&event.auth_events));
    if let Some(state_key) = &event.state_key {
        object.insert("state_key".to_owned(), state_key.as_str().into());
    }
    let is_hash_create =
        event.kind == "m.room.create" && rules.authorization.room_create_event_id_as_room_id;
    if !is_hash_create {
        object.insert("room_id".to_owned(), room_id.as_str().into());
    }
    if rules.event_id_format == EventIdFormatVersion::V1 {
        object.insert("event_id".to_owned(), event.event_id.as_str().into());
    }
    if event.flags & flags::REDACTED != 0 {
        redact_in_place(&mut object, &rules.redaction, None).map_err(|error| wrong(&error))?;
    }
    Ok(object)
}

/// As [`federation_json`], written to `out` without parsing more than the outermost object.
pub fn write_federation(
    out: &mut Vec<u8>,
    event: &GraphEvent,
    room_id: &RoomId,
    rules: &RoomVersionRules,
) -> Result<(), String> {
    let wrong =
        |error: serde_json::Error| format!("event {} cannot be rebuilt: {error}", event.event_id);
    if event.flags & flags::REDACTED != 0 {
        let object = federation_json(event, room_id, rules)?;
        return serde_json::to_writer(out, &object).map_err(wrong);
    }
    let mut members: BTreeMap<Cow<'_, str>, Cow<'_, RawValue>> =
        serde_json::from_slice::<BTreeMap<Cow<'_, str>, &RawValue>>(&event.rest)
            .map_err(wrong)?
            .into_iter()
            .map(|(name, value)| (name, Cow::Borrowed(value)))
            .collect();
    members.remove(HASH_KEY);
    let content: &RawValue = serde_json::from_str(&event.content).map_err(wrong)?;
    members.insert("content".into(), Cow::Borrowed(content));
    let has_references = members.contains_key("prev_events");
    let is_hash_create =
        event.kind == "m.room.create" && rules.authorization.room_create_event_id_as_room_id;
    let has_id = rules.event_id_format == EventIdFormatVersion::V1;
    let mut put = |name: &'static str, value: serde_json::Result<Box<RawValue>>| {
        members.insert(name.into(), Cow::Owned(value.map_err(wrong)?));
        Ok::<_, String>(())
    };
    put("depth", to_raw_value(&event.depth))?;
    put("origin_server_ts", to_raw_value(&event.origin_ts))?;
    put("sender", to_raw_value(&event.sender))?;
    put("type", to_raw_value(&event.kind))?;
    if !has_references {
        put("prev_events", to_raw_value(&event.prev_events))?;
        put("auth_events", to_raw_value(&event.auth_events))?;
    }
    if let Some(state_key) = &event.state_key {
        put("state_key", to_raw_value(state_key))?;
    }
    if !is_hash_create {
        put("room_id", to_raw_value(room_id))?;
    }
    if has_id {
        put("event_id", to_raw_value(&event.event_id))?;
    }
    serde_json::to_writer(out, &members).map_err(wrong)
}

impl Rooms {
    /// Those of the events of a room that are known, as other servers get them.
    pub async fn federation_events(
        &self,
        room_id: &RoomId,
        ids: &[&EventId],
    ) -> chatd_base::Result<Vec<CanonicalJsonObject>> {
        let slot = self.owner.slot(room_id).await?;
        let (room, rules) = {
            let live = lock(&slot).lock();
            (live.room, live.rules.clone())
        };
        let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
        let places = graph::list_places(&self.pool, &ids).await?;
        let nids: Vec<EventNid> =
            places.values().filter(|place| place.room == room).map(|place| place.nid).collect();
        let events = graph::list_events(&self.pool, &nids).await?;
        events
            .iter()
            .map(|event| federation_json(event, room_id, &rules))
            .collect::<Result<_, String>>()
            .map_err(chatd_base::Error::internal)
    }
}

/// A string member of an event's content.
pub fn content_str(content: &RawValue, member: &str) -> Option<String> {
    let members: std::collections::HashMap<std::borrow::Cow<'_, str>, &RawValue> =
        serde_json::from_str(content.get()).ok()?;
    serde_json::from_str(members.get(member)?.get()).ok()
}

impl Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        self.room_id.as_deref()
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        let ms = u64::try_from(self.origin_ts).unwrap_or_default();
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(ms))
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}
