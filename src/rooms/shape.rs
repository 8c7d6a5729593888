//! Shapes of well-known content that clients send. Rooms work without these checks, but an event
//! of the wrong shape cannot be taken back, and other servers and clients stumble over it.

use chatd_base::Refusal;
use serde_json::{Map, Value};

/// What a member of the content has to be.
#[derive(Clone, Copy)]
enum Shape {
    /// A string that must be there.
    String,
    /// A string, or absent.
    OptionalString,
}

/// State of these types, which has one entry that matters.
const STATE: &[(&str, &str, Shape)] = &[
    ("m.room.encryption", "algorithm", Shape::OptionalString),
    ("m.room.guest_access", "guest_access", Shape::String),
    ("m.room.history_visibility", "history_visibility", Shape::String),
    ("m.room.join_rules", "join_rule", Shape::String),
    ("m.room.name", "name", Shape::OptionalString),
    ("m.room.tombstone", "replacement_room", Shape::OptionalString),
    ("m.room.topic", "topic", Shape::OptionalString),
];

/// Refuses content in which a well-known state event lacks what makes it one.
pub(crate) fn check(
    kind: &str,
    state_key: Option<&str>,
    content: &Map<String, Value>,
) -> Result<(), Refusal> {
    if state_key != Some("") {
        return Ok(());
    }
    let known = STATE.iter().filter(|(name, ..)| *name == kind);
    for (_, key, shape) in known {
        match (content.get(*key), shape) {
            (Some(Value::String(_)), _) | (None, Shape::OptionalString) => {}
            (None, Shape::String) => {
                return Err(Refusal::bad_json(format!("`{key}` is missing in {kind}")));
            }
            (Some(_), _) => {
                return Err(Refusal::bad_json(format!("`{key}` in {kind} must be a string")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn well_known_state_must_have_its_shape() {
        let table = [
            ("m.room.join_rules", json!({"join_rule": "public"}), true),
            ("m.room.join_rules", json!({"join_rule": 7}), false),
            ("m.room.join_rules", json!({}), false),
            ("m.room.topic", json!({}), true),
            ("m.room.topic", json!({"topic": null}), false),
            ("org.example.topic", json!({"topic": 1}), true),
        ];
        for (kind, content, is_good) in table {
            let content = content.as_object().unwrap();
            assert_eq!(check(kind, Some(""), content).is_ok(), is_good, "{kind} {content:?}");
            assert!(check(kind, None, content).is_ok(), "a message of that type is no state");
        }
    }
}
