//! Events as servers exchange them.

use ruma_common::{
    CanonicalJsonObject,
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules},
};
use ruma_signatures::{add_content_hash_to_event, reference_hash, sign_event};
use serde_json::{Map, Value, json};

use super::key::{Key, canonical};

/// Largest event that there can be.
const MOST_BYTES: usize = 65_535;

/// The rules of a room version; panics if there is no such one.
pub fn rules_of(version: &str) -> RoomVersionRules {
    let id = ruma_common::RoomVersionId::try_from(version).expect("a room version");
    id.rules().unwrap_or_else(|| panic!("room version {version} is unknown"))
}

/// An event with its id.
#[derive(Clone, Debug, PartialEq)]
pub struct Pdu {
    /// `event_id`.
    pub id: String,
    /// The event as it goes from server to server.
    pub json: Value,
}

impl Pdu {
    /// One that came from elsewhere.
    pub fn of(json: Value, rules: &RoomVersionRules) -> Self {
        let id = match rules.event_id_format {
            EventIdFormatVersion::V1 => json["event_id"].as_str().unwrap_or_default().to_owned(),
            _ => format!("${}", hash(&json, rules)),
        };
        Self { id, json }
    }

    /// Hashes and signs `event`, whose references are complete. One that is too large for that
    /// gets an id and a hash that are made up.
    pub fn seal(mut event: Value, rules: &RoomVersionRules, server: &str, key: &Key) -> Self {
        if event.to_string().len() > MOST_BYTES {
            event["hashes"] = json!({"sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"});
            let id = format!("${:043}", rand::random::<u64>());
            return Self { id, json: key.sign(server, event) };
        }
        let mut event = canonical(event);
        add_content_hash_to_event(&mut event).expect("an event can be hashed");
        sign_event(server, key.pair(), &mut event, &rules.redaction).expect("and signed");
        Self::of(serde_json::to_value(event).expect("canonical JSON is JSON"), rules)
    }

    /// The same with a further signature.
    #[must_use]
    pub fn signed_by(&self, rules: &RoomVersionRules, server: &str, key: &Key) -> Self {
        let mut event = self.canonical();
        sign_event(server, key.pair(), &mut event, &rules.redaction).expect("it can be signed");
        Self { id: self.id.clone(), json: serde_json::to_value(event).expect("JSON") }
    }

    /// The same after `change`, with the hashes and signatures as they were: forged.
    #[must_use]
    pub fn forged(&self, rules: &RoomVersionRules, change: impl FnOnce(&mut Value)) -> Self {
        let mut json = self.json.clone();
        change(&mut json);
        Self::of(json, rules)
    }

    /// As canonical JSON.
    pub fn canonical(&self) -> CanonicalJsonObject {
        canonical(self.json.clone())
    }

    /// `type`, and `state_key` where it is state.
    pub fn state_entry(&self) -> Option<(String, String)> {
        Some((self.text("type").to_owned(), self.json["state_key"].as_str()?.to_owned()))
    }

    /// A string member; empty if it is none.
    pub fn text(&self, member: &str) -> &str {
        self.json[member].as_str().unwrap_or_default()
    }

    /// The ids in `prev_events` or `auth_events`, whichever form they have.
    pub fn references(&self, member: &str) -> Vec<String> {
        let all = self.json[member].as_array().into_iter().flatten();
        let id = |reference: &Value| {
            reference.as_str().or_else(|| reference[0].as_str()).map(str::to_owned)
        };
        all.filter_map(id).collect()
    }

    /// How a later event refers to this one.
    pub fn reference(&self, rules: &RoomVersionRules) -> Value {
        match rules.events_reference_format {
            EventsReferenceFormatVersion::V1 => {
                json!([self.id, {"sha256": hash(&self.json, rules)}])
            }
            _ => self.id.as_str().into(),
        }
    }

    /// What somebody who is invited is told of it.
    pub fn stripped(&self) -> Value {
        let members = ["type", "state_key", "sender", "content"];
        let part = members.iter().map(|&name| (name.to_owned(), self.json[name].clone()));
        Value::Object(part.collect::<Map<_, _>>())
    }
}

fn hash(json: &Value, rules: &RoomVersionRules) -> String {
    let mut json = json.clone();
    let is_odd = json["content"].get("third_party_invite").is_some_and(|odd| !odd.is_object());
    if is_odd && json["type"] == "m.room.member" {
        // No server keeps it when it redacts an event; ruma does.
        drop(json["content"].as_object_mut().map(|content| content.remove("third_party_invite")));
    }
    reference_hash(&canonical(json), rules).expect("an event has a reference hash")
}
