//! Read receipts: the latest of each user, kind and thread in a room.

use std::collections::BTreeMap;

use chatd_base::{Position, RoomNid, UserNid};

use crate::{Batch, params, statement::statements};

statements! {
    UPSERT_RECEIPTS = "INSERT INTO receipts (room, user_nid, kind, thread, pos, event_id, event_pos, ts)
                       SELECT r, u, k, t, currval('stream_receipts') + o, e, p, ts
                       FROM unnest($1::int4[], $2::int4[], $3::\"char\"[], $4::text[], $5::int8[],
                                   $6::text[], $7::int8[], $8::int8[]) AS rows(r, u, k, t, o, e, p, ts)
                       ON CONFLICT (room, user_nid, kind, thread)
                       DO UPDATE SET pos = excluded.pos, event_id = excluded.event_id,
                                     event_pos = excluded.event_pos, ts = excluded.ts";
}

/// One receipt that is to be written.
pub struct Receipt<'a> {
    pub room: RoomNid,
    pub user: UserNid,
    pub is_private: bool,
    /// Empty for an unthreaded receipt.
    pub thread: &'a str,
    pub offset: i64,
    pub event_id: &'a str,
    pub event_pos: Position,
    pub ts: i64,
}

/// Receipts of a commit; of several for the same key the last counts.
#[derive(Default)]
pub struct Columns<'a>(BTreeMap<(i32, i32, i8, &'a str), Receipt<'a>>);

impl<'a> Columns<'a> {
    pub fn push(&mut self, receipt: Receipt<'a>) {
        let kind = if receipt.is_private { b'p' } else { b'r' } as i8;
        self.0.insert((receipt.room.0, receipt.user.0, kind, receipt.thread), receipt);
    }
}

/// Writes the receipts at `currval + offset`.
pub fn upsert(batch: &mut Batch, rows: Columns<'_>) {
    let (mut rooms, mut users, mut kinds, mut threads) = (vec![], vec![], vec![], vec![]);
    let (mut offsets, mut events, mut event_pos, mut times) = (vec![], vec![], vec![], vec![]);
    for ((room, user, kind, thread), receipt) in rows.0 {
        rooms.push(room);
        users.push(user);
        kinds.push(kind);
        threads.push(thread.to_owned());
        offsets.push(receipt.offset);
        events.push(receipt.event_id.to_owned());
        event_pos.push(receipt.event_pos.0);
        times.push(receipt.ts);
    }
    batch.add(
        &UPSERT_RECEIPTS,
        params![rooms, users, kinds, threads, offsets, events, event_pos, times],
    );
}
