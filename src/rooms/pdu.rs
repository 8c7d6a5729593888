//! An event as event authorisation and state resolution see it.

use chatd_base::EventNid;
use chatd_storage::rooms::StateBody;
use js_int::UInt;
use ruma_common::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
};
use ruma_events::TimelineEventType;
use ruma_state_res::Event;
use serde_json::value::RawValue;

/// An event with all that the rules look at. Numbers are 0 where they are not known.
#[derive(Clone, Debug)]
pub struct Pdu {
    pub nid: EventNid,
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
}

impl Pdu {
    /// A state event from its row; its references are left out, which only state resolution
    /// needs.
    pub fn from_body(body: StateBody, room_id: &RoomId, has_hash_id: bool) -> Result<Self, String> {
        let is_create = body.kind == "m.room.create";
        let wrong = |what: &str, error: &dyn std::fmt::Display| {
            format!("event {} has a wrong {what}: {error}", body.event_id)
        };
        Ok(Self {
            nid: body.nid,
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
        })
    }

    /// A string member of the content.
    pub fn content_str(&self, member: &str) -> Option<String> {
        content_str(&self.content, member)
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
