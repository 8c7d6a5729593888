//! The form that every event has, of whatever room.

use std::borrow::Cow;

use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId,
    room_version_rules::{EventFormatRules, RedactionRules},
};
use ruma_state_res::check_pdu_format;

use crate::{Error, Refusal, Result};

/// Largest event as servers exchange it, signatures included.
pub const MAX_EVENT_BYTES: usize = 65_536;
/// Members that [`check_pdu_format`] looks at. It takes one byte less than all others do for the most
/// that an event may have, so it is not shown the whole.
const MEMBERS: [&str; 8] =
    ["type", "sender", "room_id", "event_id", "state_key", "prev_events", "auth_events", "depth"];

/// Longest id, type or key, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// Whether a text of an event can be a name in tables: PostgreSQL keeps no NUL, and no key of any
/// length.
pub fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && !text.contains('\0')
}

/// The id of an event, if it is one that any event can have. What ids without a server may hold is
/// not said by the grammar.
pub fn event_id(text: &str) -> Option<OwnedEventId> {
    OwnedEventId::try_from(text).ok().filter(|id| is_name(id.as_str()))
}

/// The event as all servers sign it and make its id: where rooms keep `signed` of a
/// `third_party_invite` when they redact it, one that is no object is taken away. ruma leaves it.
pub fn as_signed<'a>(
    event: &'a CanonicalJsonObject,
    rules: &RedactionRules,
) -> Cow<'a, CanonicalJsonObject> {
    const INVITE: &str = "third_party_invite";
    let is_member =
        || event.get("type").and_then(CanonicalJsonValue::as_str) == Some("m.room.member");
    let content = event.get("content").and_then(CanonicalJsonValue::as_object);
    let odd = content.filter(|content| {
        let invite = content.get(INVITE);
        rules.keep_room_member_third_party_invite_signed
            && invite.is_some_and(|invite| invite.as_object().is_none())
            && is_member()
    });
    let Some(content) = odd else { return Cow::Borrowed(event) };
    let mut content = content.clone();
    content.remove(INVITE);
    let mut event = event.clone();
    event.insert("content".to_owned(), content.into());
    Cow::Owned(event)
}

/// Refuses what has not the form of an event, or is too large for one.
pub fn check(event: &CanonicalJsonObject, rules: &EventFormatRules) -> Result<()> {
    let size = serde_json::to_vec(event).map_err(Error::internal)?.len();
    if size > MAX_EVENT_BYTES {
        let message = format!("the event has {size} bytes; {MAX_EVENT_BYTES} are allowed");
        return Err(Refusal::too_large(message).into());
    }
    let members = MEMBERS.iter().filter_map(|name| event.get_key_value(*name));
    let outline: CanonicalJsonObject =
        members.map(|(name, value)| (name.clone(), value.clone())).collect();
    let has_nul = |value: &CanonicalJsonValue| value.as_str().is_some_and(|s| s.contains('\0'));
    if let Some((name, _)) = outline.iter().find(|(_, value)| has_nul(value)) {
        return Err(Refusal::bad_json(format!("`{name}` of the event has a NUL in it")).into());
    }
    Ok(check_pdu_format(&outline, rules).map_err(Refusal::bad_json)?)
}

#[cfg(test)]
mod tests {
    use ruma_common::RoomVersionId;
    use serde_json::json;

    use super::*;

    fn verdict(state_key: &str) -> Result<()> {
        let event = json!({
            "type": "m.test", "sender": "@a:x", "room_id": "!r:x", "state_key": state_key,
            "prev_events": [], "auth_events": [], "depth": 1,
        });
        let event = serde_json::from_value(event).expect("canonical JSON");
        let rules = RoomVersionId::V11.rules().expect("a stable version");
        check(&event, &rules.event_format)
    }

    #[test]
    fn what_no_table_keeps_is_refused() {
        verdict("fine").expect("it is an event");
        verdict(&"x".repeat(MAX_NAME_BYTES)).expect("it is an event");
        for wrong in ["\0".to_owned(), "x".repeat(MAX_NAME_BYTES + 1)] {
            assert!(verdict(&wrong).is_err(), "{wrong:?}");
        }
        assert!(event_id("$x").is_some());
        for wrong in ["x".to_owned(), "$\0".to_owned(), format!("${}", "x".repeat(300))] {
            assert_eq!(event_id(&wrong), None, "{wrong:?}");
        }
    }
}
