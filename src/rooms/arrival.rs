//! An event as it comes from another server: checked for its form, and taken apart for the rules
//! and for the tables. Its signatures and hashes have been checked before.

use std::collections::HashSet;

use chatd_base::{EventNid, KeyNid, Refusal, Result, event_form};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, RoomId, UserId,
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;

use crate::{
    incoming::references,
    pdu::Pdu,
    seal::{self, Draft, Reference, Route, SealedJson, Unsealed},
};

/// An event of another server that is to find its place.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub draft: Draft,
    pub sealed: SealedJson,
    pub depth: i64,
    pub prev_events: Vec<OwnedEventId>,
    pub auth_events: Vec<OwnedEventId>,
    /// The members that name other events, as they were signed: needed where one of those is not
    /// known.
    references: Vec<(&'static str, CanonicalJsonValue)>,
}

const REFERENCES: [&str; 2] = ["prev_events", "auth_events"];

impl Arrival {
    /// Refuses what has not the form of an event of `room_id`.
    pub fn parse(
        mut event: CanonicalJsonObject,
        rules: &RoomVersionRules,
        room_id: &RoomId,
    ) -> Result<Self> {
        event.remove("unsigned");
        event_form::check(&event, &rules.event_format)?;
        let is_create = event.get("type").and_then(CanonicalJsonValue::as_str)
            == Some("m.room.create")
            && rules.authorization.room_create_event_id_as_room_id;
        let in_room = event.get("room_id").and_then(CanonicalJsonValue::as_str);
        if in_room != Some(room_id.as_str()) && !(is_create && in_room.is_none()) {
            return Err(Refusal::bad_json("the event belongs to another room").into());
        }
        let draft = draft_of(&event, rules)?;
        let prev_events = references(&event, REFERENCES[0])?;
        let auth_events = references(&event, REFERENCES[1])?;
        let named = REFERENCES.map(|name| (name, event.get(name).cloned()));
        let references = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
        Ok(Self {
            draft,
            prev_events,
            auth_events,
            references: references.collect(),
            depth: integer(&event, "depth").unwrap_or_default(),
            sealed: seal::take_apart(rules, event)?,
        })
    }

    /// An event that was sealed here and finds its place like one from elsewhere.
    pub fn own(event: &Unsealed<'_>, sealed: SealedJson) -> Self {
        let ids = |references: &[Reference]| -> Vec<OwnedEventId> {
            references.iter().map(|reference| reference.event_id.clone()).collect()
        };
        Self {
            draft: Draft { origin_ts: Some(event.origin_ts), ..event.draft.clone() },
            sealed,
            depth: event.depth,
            prev_events: ids(event.prev_events),
            auth_events: ids(event.auth_events),
            references: Vec::new(),
        }
    }

    pub fn event_id(&self) -> &OwnedEventId {
        &self.sealed.event_id
    }

    /// Every event that it names.
    pub fn named(&self) -> impl Iterator<Item = &OwnedEventId> {
        self.prev_events.iter().chain(&self.auth_events)
    }

    /// Whether it names an event twice.
    pub fn repeats_itself(&self) -> bool {
        let mut seen: HashSet<&EventId> = HashSet::new();
        !self.prev_events.iter().all(|id| seen.insert(id))
    }

    /// What is stored beside the columns. These hold the references as numbers, so that unknown
    /// ones have to be kept as they were written.
    pub fn stored(&self, knows_all: bool) -> Result<SealedJson> {
        let mut sealed = self.sealed.clone();
        if !knows_all {
            let mut rest: CanonicalJsonObject =
                serde_json::from_slice(&sealed.rest).map_err(chatd_base::Error::internal)?;
            for (name, value) in &self.references {
                rest.insert((*name).to_owned(), value.clone());
            }
            sealed.rest = serde_json::to_vec(&rest).map_err(chatd_base::Error::internal)?;
        }
        Ok(sealed)
    }

    /// The event as the rules see it.
    pub fn pdu(
        &self,
        nid: EventNid,
        key: Option<KeyNid>,
        rules: &RoomVersionRules,
        room_id: &RoomId,
    ) -> Result<Pdu> {
        let draft = &self.draft;
        let has_no_room =
            draft.kind == "m.room.create" && rules.authorization.room_create_event_id_as_room_id;
        Ok(Pdu {
            nid,
            key,
            event_id: self.event_id().clone(),
            room_id: (!has_no_room).then(|| room_id.to_owned()),
            sender: draft.sender.clone(),
            origin_ts: draft.origin_ts.unwrap_or_default(),
            depth: self.depth,
            kind: draft.kind.as_str().into(),
            state_key: draft.state_key.clone(),
            content: RawValue::from_string(self.sealed.content.clone())
                .map_err(chatd_base::Error::internal)?,
            prev_events: self.prev_events.clone(),
            auth_events: self.auth_events.clone(),
            redacts: draft.redacts.clone(),
            rejected: false,
            hash: self.sealed.hash.clone(),
        })
    }
}

/// The event as a draft says it.
fn draft_of(event: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<Draft> {
    let text = |name: &str| event.get(name).and_then(CanonicalJsonValue::as_str);
    let wrong = |name: &str| Refusal::bad_json(format!("`{name}` of the event is not valid"));
    let sender = text("sender").and_then(|sender| UserId::parse(sender).ok());
    let content = match event.get("content") {
        Some(content @ CanonicalJsonValue::Object(_)) => serde_json::Value::from(content.clone()),
        _ => return Err(wrong("content").into()),
    };
    let serde_json::Value::Object(content) = content else { return Err(wrong("content").into()) };
    let redacts = match rules.redaction.content_field_redacts {
        true => content.get("redacts").and_then(serde_json::Value::as_str),
        false => text("redacts"),
    };
    let origin_ts = integer(event, "origin_server_ts").ok_or_else(|| wrong("origin_server_ts"))?;
    Ok(Draft {
        redacts: redacts.and_then(|id| OwnedEventId::try_from(id).ok()),
        sender: sender.ok_or_else(|| wrong("sender"))?,
        kind: text("type").ok_or_else(|| wrong("type"))?.to_owned(),
        state_key: text("state_key").map(ToOwned::to_owned),
        origin_ts: Some(origin_ts),
        content,
        txn: None,
        key: None,
        route: Route::Received,
        is_bulk: true,
    })
}

fn integer(event: &CanonicalJsonObject, name: &str) -> Option<i64> {
    match event.get(name) {
        Some(CanonicalJsonValue::Integer(number)) => Some((*number).into()),
        _ => None,
    }
}
