//! The form that every event has, of whatever room.

use ruma_common::{CanonicalJsonObject, room_version_rules::EventFormatRules};
use ruma_state_res::check_pdu_format;

use crate::{Error, Refusal, Result};

/// Largest event as servers exchange it, signatures included.
pub const MAX_EVENT_BYTES: usize = 65_536;
/// Members that [`check_pdu_format`] looks at. It takes one byte less than all others do for the most
/// that an event may have, so it is not shown the whole.
const MEMBERS: [&str; 8] =
    ["type", "sender", "room_id", "event_id", "state_key", "prev_events", "auth_events", "depth"];

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
    Ok(check_pdu_format(&outline, rules).map_err(Refusal::bad_json)?)
}
