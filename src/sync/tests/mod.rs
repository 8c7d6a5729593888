//! Rows for the tests of this member.

use std::sync::Arc;

use chatd_base::{EventNid, Position, RoomNid, UserNid};
use chatd_streams::events::{self, EventRow, Extent, Visibility};
use serde_json::value::RawValue;

use crate::{index::Live, plan::RoomPlan};

/// A message at `position` of room 1.
pub(crate) fn live_message(position: i64) -> Live {
    let row = EventRow {
        nid: EventNid(position),
        room: RoomNid(1),
        room_id: "!r:x".try_into().unwrap(),
        event_id: format!("$e{position}").try_into().unwrap(),
        sender: "@a:x".try_into().unwrap(),
        sender_nid: UserNid(1),
        kind: "m.room.message".into(),
        state_key: None,
        key: None,
        origin_ts: 0,
        depth: position,
        content: RawValue::from_string("{}".to_owned()).unwrap().into(),
        redacts_top_level: None,
        redacts: None,
        relation: None,
        thread: None,
        replaced: None,
        is_current: false,
        membership: None,
        visibility: Visibility::Shared,
        txn: None,
        notify: Arc::new([]),
        highlight: Arc::new([]),
        resolved: Vec::new(),
        resolved_members: Vec::new(),
        hidden: false,
        to_send: false,
        extent: Extent::default(),
    };
    let event = Arc::new(events::stored(Position(position), &row));
    Live { event, row: Arc::new(row), altered: false }
}

/// A joined room with the interval `(low, high]`.
pub(crate) fn room_plan(low: Position, high: Position) -> RoomPlan {
    RoomPlan::joined(RoomNid(1), &"!r:x".try_into().unwrap(), low, high)
}
