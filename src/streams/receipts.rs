//! Read receipts.

use chatd_base::{Position, RoomNid, UserNid};
use chatd_config::StreamName;
use chatd_storage::{Batch, positions::StreamId, receipts};
use ruma_common::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::{Concerns, Key, Persist, Stream};

pub struct Receipts;

impl Stream for Receipts {
    const NAME: &'static str = "receipts";
    const KIND: StreamName = StreamName::Receipts;
    const ID: StreamId = StreamId { number: 5, sequence: "stream_receipts" };
    type Row = ReceiptRow;

    fn concerns(row: &Self::Row) -> Concerns {
        Concerns::only([Key::Room(row.room), Key::User(row.user)])
    }
}

/// A read receipt; carries the receipt itself, so that no reader goes to the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReceiptRow {
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub user: UserNid,
    pub user_id: OwnedUserId,
    /// `m.read.private`.
    pub is_private: bool,
    /// Absent: unthreaded; `main`, or the id of the thread's root.
    pub thread: Option<String>,
    pub event_id: OwnedEventId,
    /// Position of that event: what is at or below it is read.
    pub event_pos: Position,
    pub ts: i64,
}

impl Persist for Receipts {
    type Change = ReceiptRow;

    fn rows(change: &ReceiptRow) -> Vec<ReceiptRow> {
        vec![change.clone()]
    }

    fn persist(batch: &mut Batch, changes: &[(i64, &ReceiptRow)]) {
        let mut columns = receipts::Columns::default();
        for (offset, row) in changes {
            columns.push(receipts::Receipt {
                room: row.room,
                user: row.user,
                is_private: row.is_private,
                thread: row.thread.as_deref().unwrap_or_default(),
                offset: *offset,
                event_id: row.event_id.as_str(),
                event_pos: row.event_pos,
                ts: row.ts,
            });
        }
        receipts::upsert(batch, columns);
    }
}
