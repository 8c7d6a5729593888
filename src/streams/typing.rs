//! Who is typing where. Memory only; starts at the time of day, so that tokens do not go back
//! when the server restarts.

use chatd_base::{Position, RoomNid, WriterId};
use chatd_config::StreamName;
use chatd_storage::positions::StreamId;
use ruma_common::{OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::{Concerns, Feed, Key, Stream, writer};

pub struct Typing;

impl Stream for Typing {
    const NAME: &'static str = "typing";
    const KIND: StreamName = StreamName::Typing;
    const ID: StreamId = StreamId { number: 2, sequence: "" };
    type Row = TypingRow;

    fn concerns(row: &Self::Row) -> Concerns {
        Concerns::only([Key::Room(row.room)])
    }
}

/// All who type in a room now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TypingRow {
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub users: Vec<OwnedUserId>,
}

/// Puts `rows` on the stream. `now_ms` keeps positions above those of earlier processes.
pub fn publish(feed: &Feed<Typing>, id: WriterId, now_ms: u64, rows: Vec<TypingRow>) {
    let next = feed.position_of(id).0.saturating_add(1);
    let base = next.max(i64::try_from(now_ms).unwrap_or(next));
    writer::publish(feed, id, Position(base), rows);
}
