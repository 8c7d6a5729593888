//! Clients' filters of room events.
//! <https://spec.matrix.org/latest/client-server-api/#filtering>

use chatd_base::{Refusal, Result};
use chatd_storage::events::{self, StoredEvent};
use ruma_common::{RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The filter of a timeline or of state, as clients write it. What is not there lets everything
/// pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EventFilter {
    pub limit: Option<u64>,
    pub types: Option<Vec<String>>,
    pub not_types: Option<Vec<String>>,
    pub senders: Option<Vec<String>>,
    pub not_senders: Option<Vec<String>>,
    pub rooms: Option<Vec<String>>,
    pub not_rooms: Option<Vec<String>>,
    pub contains_url: Option<bool>,
    pub lazy_load_members: bool,
    pub include_redundant_members: bool,
    pub unread_thread_notifications: bool,
    #[serde(alias = "io.element.relation_types")]
    pub related_by_rel_types: Option<Vec<String>>,
    #[serde(alias = "io.element.relation_senders")]
    pub related_by_senders: Option<Vec<String>>,
}

/// Entries that a list of a filter may have.
const MOST_ENTRIES: usize = 500;

impl EventFilter {
    /// Reads the `filter` parameter of a query; refuses what is not a filter.
    pub fn from_query(text: Option<&str>) -> Result<Self> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Self::default()) };
        if !text.trim_start().starts_with('{') {
            return Err(Refusal::invalid_param("filter: not a JSON object").into());
        }
        let filter: Self = serde_json::from_str(text)
            .map_err(|error| Refusal::invalid_param(format!("filter: {error}")))?;
        if filter.lists().into_iter().flatten().any(|list| list.len() > MOST_ENTRIES) {
            return Err(Refusal::invalid_param("a list of the filter is too long").into());
        }
        Ok(filter)
    }

    fn lists(&self) -> [&Option<Vec<String>>; 8] {
        [
            &self.types,
            &self.not_types,
            &self.senders,
            &self.not_senders,
            &self.rooms,
            &self.not_rooms,
            &self.related_by_rel_types,
            &self.related_by_senders,
        ]
    }

    /// Whether events of this room can pass at all.
    pub fn allows_room(&self, room: &RoomId) -> bool {
        let named = |list: &Vec<String>| list.iter().any(|id| id == room.as_str());
        self.rooms.as_ref().is_none_or(named) && !self.not_rooms.as_ref().is_some_and(named)
    }

    /// Whether events of this type can pass.
    pub fn allows_type(&self, kind: &str) -> bool {
        let typed = |list: &Vec<String>| list.iter().any(|pattern| matches(pattern, kind));
        self.types.as_ref().is_none_or(typed) && !self.not_types.as_ref().is_some_and(typed)
    }

    /// Whether events of this sender can pass.
    pub fn allows_sender(&self, sender: &UserId) -> bool {
        let sent = |list: &Vec<String>| list.iter().any(|id| id == sender.as_str());
        self.senders.as_ref().is_none_or(sent) && !self.not_senders.as_ref().is_some_and(sent)
    }

    /// Whether an event passes, as far as the event alone can tell: relations to it
    /// (`related_by_…`) are left to the database.
    pub fn allows(&self, event: &StoredEvent) -> bool {
        self.allows_type(&event.kind)
            && self.allows_sender(&event.sender)
            && self.contains_url.is_none_or(|wanted| wanted == has_url(&event.content))
    }

    /// Whether only the database can tell which events pass.
    pub fn needs_relations(&self) -> bool {
        self.related_by_rel_types.is_some() || self.related_by_senders.is_some()
    }

    /// Whether some events of `room` may not pass.
    pub fn is_selective(&self, room: &RoomId) -> bool {
        let by_event = [&self.types, &self.not_types, &self.senders, &self.not_senders];
        by_event.into_iter().any(Option::is_some)
            || self.contains_url.is_some()
            || self.needs_relations()
            || !self.allows_room(room)
    }

    /// The same filter as the database applies it.
    pub fn to_storage(&self) -> events::EventFilter {
        let patterns = |list: &Option<Vec<String>>| {
            list.as_ref().map(|list| list.iter().map(|kind| events::like_pattern(kind)).collect())
        };
        events::EventFilter {
            types: patterns(&self.types),
            not_types: patterns(&self.not_types),
            senders: self.senders.clone(),
            not_senders: self.not_senders.clone(),
            with_url: self.contains_url,
            related_by_rel_types: self.related_by_rel_types.clone(),
            related_by_senders: self.related_by_senders.clone(),
        }
    }
}

/// Whether `kind` fits `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, kind: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == kind };
    let Some(mut tail) = kind.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return tail.ends_with(part);
        }
        match tail.find(part) {
            Some(at) => tail = &tail[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Whether a content has a `url` that is a string.
pub(crate) fn has_url(content: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[expect(dead_code, reason = "only that it is a string matters")]
        url: String,
    }
    serde_json::from_str::<Content>(content.get()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, kind, expected) in [
            ("m.room.*", "m.room.message", true),
            ("m.room.*", "m.roomy", false),
            ("*", "", true),
            ("*.message", "m.room.message", true),
            ("m.*.me*ge", "m.room.message", true),
            ("m.*.x*ge", "m.room.message", false),
            ("m.room.message", "m.room.message", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, kind), expected, "{pattern} {kind}");
        }
    }

    #[test]
    fn a_filter_of_the_wrong_shape_is_refused() {
        assert_eq!(EventFilter::from_query(None).unwrap(), EventFilter::default());
        for text in ["[]", "{", r#"{"types":"m.room.message"}"#, r#"{"limit":-1}"#] {
            let error = EventFilter::from_query(Some(text)).unwrap_err();
            assert_eq!(error.errcode(), Some("M_INVALID_PARAM"), "{text}");
        }
    }

    #[test]
    fn rooms_can_be_named_and_excluded() {
        let filter = |text| EventFilter::from_query(Some(text)).unwrap();
        let room = ruma_common::room_id!("!r:x");
        assert!(filter("{}").allows_room(room));
        assert!(filter(r#"{"rooms":["!r:x"]}"#).allows_room(room));
        assert!(!filter(r#"{"rooms":[]}"#).allows_room(room));
        assert!(!filter(r#"{"rooms":["!r:x"],"not_rooms":["!r:x"]}"#).allows_room(room));
    }
}
