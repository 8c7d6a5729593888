//! The filter of a sync: which rooms, events and parts of them a client wants.
//! <https://spec.matrix.org/latest/client-server-api/#filtering>

use std::collections::HashSet;

use chatd_base::Refusal;
use chatd_rooms::filter::EventFilter;
use ruma_common::RoomId;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value};

/// A whole filter, as the client gave it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Members of events to keep, with dots between levels.
    pub event_fields: Option<Vec<String>>,
    pub event_format: EventFormat,
    #[serde(deserialize_with = "object")]
    pub presence: EventFilter,
    #[serde(deserialize_with = "object")]
    pub account_data: EventFilter,
    #[serde(deserialize_with = "object")]
    pub room: RoomFilter,
}

/// `event_format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    #[default]
    Client,
    Federation,
}

/// What is wanted of rooms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RoomFilter {
    pub rooms: Option<Vec<String>>,
    pub not_rooms: Vec<String>,
    pub include_leave: bool,
    #[serde(deserialize_with = "object")]
    pub timeline: EventFilter,
    #[serde(deserialize_with = "object")]
    pub state: EventFilter,
    #[serde(deserialize_with = "object")]
    pub ephemeral: EventFilter,
    #[serde(deserialize_with = "object")]
    pub account_data: EventFilter,
}

/// Events of a timeline if the filter does not say how many.
const DEFAULT_LIMIT: u64 = 10;

impl Filter {
    /// Reads a filter. Refuses what is not JSON, and what has not a filter's shape.
    pub fn from_json(text: &str) -> Result<Self, Refusal> {
        object(&mut serde_json::Deserializer::from_str(text)).map_err(|error| {
            if error.is_data() {
                Refusal::bad_json(format!("the filter is not valid: {error}"))
            } else {
                Refusal::not_json(format!("the filter is not JSON: {error}"))
            }
        })
    }

    /// Events of a timeline at most; `most` is what the admin allows, negative for any number.
    pub fn timeline_limit(&self, most: i64) -> usize {
        let wanted = self.room.timeline.limit.unwrap_or(DEFAULT_LIMIT);
        let allowed = u64::try_from(most).unwrap_or(u64::MAX);
        usize::try_from(wanted.min(allowed)).unwrap_or(usize::MAX)
    }

    pub fn lazy_load_members(&self) -> bool {
        self.room.state.lazy_load_members
    }

    /// Whether anything of `room` is wanted.
    pub fn wants_room(&self, room: &RoomId) -> bool {
        wants(self.room.rooms.as_deref(), &self.room.not_rooms, room.as_str())
    }
}

/// Reads an object: serde would take an array for one as well.
fn object<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let members = Map::<String, Value>::deserialize(from)?;
    T::deserialize(Value::Object(members)).map_err(serde::de::Error::custom)
}

fn wants(only: Option<&[String]>, not: &[String], value: &str) -> bool {
    only.is_none_or(|only| only.iter().any(|item| item == value))
        && !not.iter().any(|item| item == value)
}

/// Keeps only the members of an event that `fields` name. Levels are separated by dots; a dot
/// that is part of a name is written `\.`.
pub fn keep_fields(event: &[u8], fields: &[String]) -> Vec<u8> {
    let Ok(serde_json::Value::Object(from)) = serde_json::from_slice(event) else {
        return b"{}".to_vec();
    };
    let mut kept = serde_json::Map::new();
    let unique: HashSet<&String> = fields.iter().collect();
    for field in unique {
        copy_field(&from, &mut kept, &levels(field));
    }
    serde_json::to_vec(&kept).expect("JSON values always serialise")
}

fn levels(field: &str) -> Vec<String> {
    let mut levels = vec![String::new()];
    let mut letters = field.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '.' => levels.push(String::new()),
            '\\' => levels.last_mut().expect("never empty").extend(letters.next()),
            other => levels.last_mut().expect("never empty").push(other),
        }
    }
    levels
}

fn copy_field(
    from: &serde_json::Map<String, serde_json::Value>,
    to: &mut serde_json::Map<String, serde_json::Value>,
    levels: &[String],
) {
    let Some((first, rest)) = levels.split_first() else { return };
    let Some(value) = from.get(first) else { return };
    if rest.is_empty() {
        to.insert(first.clone(), value.clone());
        return;
    }
    let Some(inner) = value.as_object() else { return };
    let slot = to.entry(first.clone()).or_insert_with(|| serde_json::json!({}));
    if let Some(slot) = slot.as_object_mut() {
        copy_field(inner, slot, rest);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn lists_include_and_exclude() {
        let filter = Filter::from_json(
            r#"{"room": {"rooms": ["!a:x", "!b:x"], "not_rooms": ["!b:x"],
                "timeline": {"types": ["m.room.*"], "not_types": ["m.room.topic"], "limit": 500}}}"#,
        )
        .unwrap();
        let wants = |id: &str| filter.wants_room(RoomId::parse(id).unwrap().as_ref());
        assert_eq!([wants("!a:x"), wants("!b:x"), wants("!c:x")], [true, false, false]);
        let timeline = &filter.room.timeline;
        assert!(timeline.allows_type("m.room.name") && !timeline.allows_type("m.room.topic"));
        assert!(!timeline.allows_type("m.sticker"));
        assert_eq!((filter.timeline_limit(100), filter.timeline_limit(-1)), (100, 500));
        assert!(!EventFilter { types: Some(vec![]), ..Default::default() }.allows_type("x"));
    }

    #[test]
    fn fields_are_kept_by_path() {
        let event = br#"{"type":"m","content":{"body":"b","a.b":1,"c":{"d":2}},"sender":"@a:x"}"#;
        let kept = |fields: &[&str]| -> Value {
            let fields: Vec<String> = fields.iter().map(|f| (*f).to_owned()).collect();
            serde_json::from_slice(&keep_fields(event, &fields)).unwrap()
        };
        assert_eq!(kept(&["type", "content.body"]), json!({"type": "m", "content": {"body": "b"}}));
        assert_eq!(
            kept(&["content.a\\.b", "content.c.d"]),
            json!({"content": {"a.b": 1, "c": {"d": 2}}})
        );
        assert_eq!(kept(&["nothing", "sender.x"]), json!({}));
    }

    #[test]
    fn what_is_not_a_filter_is_refused() {
        for (text, code) in [
            ("{", "M_NOT_JSON"),
            ("[]", "M_BAD_JSON"),
            (r#"{"room":[]}"#, "M_BAD_JSON"),
            (r#"{"room":{"timeline":[]}}"#, "M_BAD_JSON"),
            (r#"{"room":{"timeline":{"limit":-1}}}"#, "M_BAD_JSON"),
        ] {
            assert_eq!(Filter::from_json(text).unwrap_err().errcode, code, "{text}");
        }
    }
}
