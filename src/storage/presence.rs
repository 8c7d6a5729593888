//! The last known presence of each user.

use std::collections::BTreeMap;

use chatd_base::{Position, RoomNid, UserNid};

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    UPSERT_PRESENCE = "INSERT INTO presence
                           (user_nid, pos, state, currently_active, last_active_ts, status_msg)
                       SELECT u, currval('stream_presence') + o, s, a, l, m
                       FROM unnest($1::int4[], $2::int8[], $3::\"char\"[], $4::bool[], $5::int8[],
                                   $6::text[]) AS rows(u, o, s, a, l, m)
                       ON CONFLICT (user_nid)
                       DO UPDATE SET pos = excluded.pos, state = excluded.state,
                                     currently_active = excluded.currently_active,
                                     last_active_ts = excluded.last_active_ts,
                                     status_msg = excluded.status_msg";

    LIST_PRESENCE = "SELECT user_nid, pos, state, currently_active, last_active_ts, status_msg
                     FROM presence WHERE user_nid = ANY($1::int4[])";
    LIST_CHANGED_PRESENCE = "SELECT user_nid, pos, state, currently_active, last_active_ts,
                                    status_msg
                             FROM presence WHERE pos > $1 AND pos <= $2
                             ORDER BY pos LIMIT $3";
    /// Users of this server, with a room that they are in.
    LIST_PRESENT_IN = "SELECT p.user_nid, p.pos, p.state, p.currently_active, p.last_active_ts,
                              p.status_msg, m.room
                       FROM memberships m
                       JOIN presence p ON p.user_nid = m.user_nid AND p.state <> 'f'
                       WHERE m.room = ANY($1::int4[]) AND m.is_local AND m.membership = 'j'
                       LIMIT $2";
    LIST_PRESENT = "SELECT user_nid, pos, state, currently_active, last_active_ts, status_msg
                    FROM presence WHERE state <> 'f' LIMIT $1";
}

/// One user's presence that is to be written.
pub struct Entry<'a> {
    pub user: UserNid,
    pub offset: i64,
    pub state: i8,
    pub currently_active: bool,
    pub last_active_ts: i64,
    pub status_msg: Option<&'a str>,
}

/// Presence of a commit; of several for the same user the last counts.
#[derive(Default)]
pub struct Columns<'a>(BTreeMap<i32, Entry<'a>>);

impl<'a> Columns<'a> {
    pub fn push(&mut self, entry: Entry<'a>) {
        self.0.insert(entry.user.0, entry);
    }
}

/// Writes the entries at `currval + offset`.
pub fn upsert(batch: &mut Batch, rows: Columns<'_>) {
    let (mut users, mut offsets, mut states) = (vec![], vec![], vec![]);
    let (mut active, mut times, mut messages) = (vec![], vec![], vec![]);
    for (user, entry) in rows.0 {
        users.push(user);
        offsets.push(entry.offset);
        states.push(entry.state);
        active.push(entry.currently_active);
        times.push(entry.last_active_ts);
        messages.push(entry.status_msg.map(str::to_owned));
    }
    batch.add(&UPSERT_PRESENCE, params![users, offsets, states, active, times, messages]);
}

/// Presence as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub user: UserNid,
    pub pos: Position,
    pub state: i8,
    pub currently_active: bool,
    pub last_active_ts: i64,
    pub status_msg: Option<String>,
}

/// Presence from the first six columns.
pub(crate) fn stored(row: &crate::Row) -> Stored {
    Stored {
        user: UserNid(row.get(0)),
        pos: Position(row.get(1)),
        state: row.get(2),
        currently_active: row.get(3),
        last_active_ts: row.get(4),
        status_msg: row.get(5),
    }
}

/// Presence of those `users` who have one.
pub async fn list(pool: &Pool, users: &[UserNid]) -> Result<Vec<Stored>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    Ok(pool.query(&LIST_PRESENCE, &[&users]).await?.iter().map(stored).collect())
}

/// Presence that changed in `(after, upto]`, the oldest `limit` changes.
pub async fn list_changed(
    pool: &Pool,
    after: Position,
    upto: Position,
    limit: i64,
) -> Result<Vec<Stored>> {
    let rows = pool.query(&LIST_CHANGED_PRESENCE, &[&after.0, &upto.0, &limit]).await?;
    Ok(rows.iter().map(stored).collect())
}

/// Up to `limit` users who are not offline.
pub async fn list_present(pool: &Pool, limit: i64) -> Result<Vec<Stored>> {
    Ok(pool.query(&LIST_PRESENT, &[&limit]).await?.iter().map(stored).collect())
}

/// Up to `limit` times that a user of this server is in one of `rooms` and not offline.
pub async fn list_present_in(
    pool: &Pool,
    rooms: &[RoomNid],
    limit: i64,
) -> Result<Vec<(RoomNid, Stored)>> {
    let rooms: Vec<i32> = rooms.iter().map(|room| room.0).collect();
    let rows = pool.query(&LIST_PRESENT_IN, &[&rooms, &limit]).await?;
    Ok(rows.iter().map(|row| (RoomNid(row.get(6)), stored(row))).collect())
}
