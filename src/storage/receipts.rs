//! Read receipts: the latest of each user, kind and thread in a room.

use std::collections::BTreeMap;

use chatd_base::{Position, RoomNid, UserNid};

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    UPSERT_RECEIPTS = "INSERT INTO receipts (room, user_nid, kind, thread, pos, event_id, event_pos, ts)
                       SELECT r, u, k, t, currval('stream_receipts') + o, e, p, ts
                       FROM unnest($1::int4[], $2::int4[], $3::\"char\"[], $4::text[], $5::int8[],
                                   $6::text[], $7::int8[], $8::int8[]) AS rows(r, u, k, t, o, e, p, ts)
                       ON CONFLICT (room, user_nid, kind, thread)
                       DO UPDATE SET pos = excluded.pos, event_id = excluded.event_id,
                                     event_pos = excluded.event_pos, ts = excluded.ts
                       WHERE receipts.event_pos < excluded.event_pos";

    /// What a receipt needs to know: its room, whether the user is in it, where the event is, and
    /// where the receipt ('r', 'p') or the marker ('f') stands now.
    GET_TARGET = "SELECT r.nid, m.membership = 'j', e.pos, coalesce(old.event_pos, marker.pos),
                         CASE WHEN $5 <> '' THEN (SELECT content FROM event_json j
                                                  WHERE j.nid = e.nid) END
                  FROM rooms r
                  LEFT JOIN memberships m ON m.room = r.nid AND m.user_nid = $2
                  LEFT JOIN events e ON e.event_id = $3 AND e.room = r.nid
                  LEFT JOIN receipts old ON old.room = r.nid AND old.user_nid = $2
                                         AND old.kind = $4 AND old.thread = $5
                  LEFT JOIN LATERAL (
                      SELECT f.pos FROM account_data a
                      JOIN events f ON f.event_id = a.content::json ->> 'event_id'
                           AND f.room = a.room
                      WHERE a.user_nid = $2 AND a.room = r.nid AND a.type = 'm.fully_read')
                      AS marker ON $4 = 'f'
                  WHERE r.room_id = $1";
    LIST_RECEIPTS = "SELECT room, user_nid, kind, thread, pos, event_id, event_pos, ts
                     FROM receipts WHERE room = ANY($1::int4[]) AND pos > $2 ORDER BY pos";
    LIST_RECEIPTS_OF = "SELECT room, user_nid, kind, thread, pos, event_id, event_pos, ts
                        FROM receipts WHERE user_nid = $1 AND room = ANY($2::int4[])";
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

/// Receipts of a commit; of several for the same key the furthest counts.
#[derive(Default)]
pub struct Columns<'a>(BTreeMap<(i32, i32, i8, &'a str), Receipt<'a>>);

impl<'a> Columns<'a> {
    pub fn push(&mut self, receipt: Receipt<'a>) {
        let kind = letter(receipt.is_private);
        let key = (receipt.room.0, receipt.user.0, kind, receipt.thread);
        if self.0.get(&key).is_none_or(|other| other.event_pos < receipt.event_pos) {
            self.0.insert(key, receipt);
        }
    }
}

/// Writes the receipts at `currval + offset`. One that is further already stays: two writers may
/// have been asked at once.
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

/// Something that marks how far a user has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    Receipt {
        is_private: bool,
    },
    /// `m.fully_read` in the account data.
    FullyRead,
}

/// The letter of a kind in the table.
fn letter(is_private: bool) -> i8 {
    if is_private { b'p' as i8 } else { b'r' as i8 }
}

/// What is known about the event that a receipt is to be moved to.
#[derive(Clone, Debug)]
pub struct Target {
    pub room: RoomNid,
    pub is_joined: bool,
    /// Position of the event; absent if the room has no such event.
    pub event_pos: Option<Position>,
    /// Position of the event at which the receipt stands now.
    pub stands_at: Option<Position>,
    /// Content of the event, looked at only for a receipt in a thread.
    pub content: Option<String>,
}

/// Looks up what it takes to move a receipt; `None` if there is no such room.
pub async fn get_target(
    pool: &Pool,
    room_id: &str,
    user: UserNid,
    event_id: &str,
    marker: Marker,
    thread: &str,
) -> Result<Option<Target>> {
    let kind = match marker {
        Marker::Receipt { is_private } => letter(is_private),
        Marker::FullyRead => b'f' as i8,
    };
    let row = pool.query_opt(&GET_TARGET, &[&room_id, &user.0, &event_id, &kind, &thread]).await?;
    Ok(row.map(|row| Target {
        room: RoomNid(row.get(0)),
        is_joined: row.get::<_, Option<bool>>(1).unwrap_or(false),
        event_pos: row.get::<_, Option<i64>>(2).map(Position),
        stands_at: row.get::<_, Option<i64>>(3).map(Position),
        content: row.get(4),
    }))
}

/// A receipt as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub room: RoomNid,
    pub user: UserNid,
    pub is_private: bool,
    /// Empty for an unthreaded receipt.
    pub thread: String,
    pub pos: Position,
    pub event_id: String,
    pub event_pos: Position,
    pub ts: i64,
}

/// A receipt from the first eight columns.
pub(crate) fn stored(row: &crate::Row) -> Stored {
    Stored {
        room: RoomNid(row.get(0)),
        user: UserNid(row.get(1)),
        is_private: row.get::<_, i8>(2) == letter(true),
        thread: row.get(3),
        pos: Position(row.get(4)),
        event_id: row.get(5),
        event_pos: Position(row.get(6)),
        ts: row.get(7),
    }
}

/// Receipts of everybody in `rooms` that were written after `after`, private ones included. There
/// is no upper bound: a receipt is overwritten when it moves, so that one which has moved since the
/// reader's position would be missing, not old.
pub async fn list(pool: &Pool, rooms: &[RoomNid], after: Position) -> Result<Vec<Stored>> {
    let rooms: Vec<i32> = rooms.iter().map(|room| room.0).collect();
    let rows = pool.query(&LIST_RECEIPTS, &[&rooms, &after.0]).await?;
    Ok(rows.iter().map(stored).collect())
}

/// All receipts of one user in `rooms`: what unread counts start from.
pub async fn list_of_user(pool: &Pool, user: UserNid, rooms: &[RoomNid]) -> Result<Vec<Stored>> {
    let rooms: Vec<i32> = rooms.iter().map(|room| room.0).collect();
    let rows = pool.query(&LIST_RECEIPTS_OF, &[&user.0, &rooms]).await?;
    Ok(rows.iter().map(stored).collect())
}
