//! The state of rooms as readers want it: now, or as it was at a position.

use std::sync::Arc;

use chatd_base::{EventNid, Position, RoomNid, UserNid};

use crate::{
    Pool, Result,
    events::{StoredEvent, all, columns, joins},
    statement::statements,
};

/// Conditions of a [`StateFilter`], whose values are `$3` to `$6`.
macro_rules! filter {
    () => {
        "($3::text[] IS NULL OR (k.type, k.state_key) IN (SELECT * FROM unnest($3, $4::text[])))
         AND ($5::text IS NULL OR k.type = $5)
         AND ($6::text[] IS NULL OR k.type <> 'm.room.member' OR k.state_key = ANY($6))"
    };
}

statements! {
    LIST_STATE_NOW = concat!("SELECT ", columns!(), " FROM current_state c
        JOIN events e ON e.nid = c.event", joins!(),
        "WHERE c.room = $1 AND $2::int8 IS NULL AND ", filter!());
    /// The latest change of each entry up to the position; entries that were removed have none.
    LIST_STATE_AT = concat!("SELECT ", columns!(), "
        FROM (SELECT DISTINCT ON (d.key) d.key, d.event FROM state_delta d
              WHERE d.room = $1 AND d.pos <= $2::int8
                AND ($3::text[] IS NULL AND $5::text IS NULL AND $6::text[] IS NULL OR d.key IN (
                     SELECT k.nid FROM state_keys k WHERE ", filter!(), "))
              ORDER BY d.key, d.pos DESC) AS c
        JOIN events e ON e.nid = c.event", joins!());
    LIST_STATE_OF = concat!("SELECT ", columns!(), " FROM events e", joins!(),
        "WHERE e.nid = ANY($1::int8[]) AND e.room = $2 AND ", filter!());
    /// The bans of now, the oldest first.
    LIST_BANS = concat!("SELECT ", columns!(), " FROM memberships m
        JOIN events e ON e.nid = m.event", joins!(),
        "WHERE m.room = $1 AND m.membership = 'b' ORDER BY e.nid LIMIT $2");
    LIST_JOINED_PROFILES = "
        SELECT u.user_id, j.content FROM memberships m
        JOIN users_nid u ON u.nid = m.user_nid
        JOIN event_json j ON j.nid = m.event
        WHERE m.room = $1 AND m.membership = 'j'";
    LIST_JOINED_ROOMS = "
        SELECT r.nid, r.room_id FROM memberships m JOIN rooms r ON r.nid = m.room
        WHERE m.user_nid = $1 AND m.membership = 'j'";
    /// Rooms that the user has to do with: joined, invited or knocking.
    LIST_ROOMS_TO_LEAVE = "
        SELECT r.room_id FROM memberships m JOIN rooms r ON r.nid = m.room
        WHERE m.user_nid = $1 AND m.membership IN ('j', 'i', 'k')";
}

/// Which part of the state is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct StateFilter<'a> {
    /// Only these (type, state key) pairs.
    pub keys: Option<&'a [(&'a str, &'a str)]>,
    /// Only entries of this type.
    pub kind: Option<&'a str>,
    /// Of the members only these users.
    pub members: Option<&'a [&'a str]>,
}

impl StateFilter<'_> {
    /// Types and state keys, as columns.
    fn columns(&self) -> (Option<Vec<&str>>, Option<Vec<&str>>) {
        match self.keys.map(|keys| keys.iter().copied().unzip()) {
            Some((kinds, keys)) => (Some(kinds), Some(keys)),
            None => (None, None),
        }
    }
}

/// State events of `room`, in no order: those in force now, or those in force at `at`.
pub async fn list(
    pool: &Pool,
    room: RoomNid,
    at: Option<Position>,
    filter: &StateFilter<'_>,
) -> Result<Vec<Arc<StoredEvent>>> {
    let (kinds, keys) = filter.columns();
    let statement = if at.is_some() { &LIST_STATE_AT } else { &LIST_STATE_NOW };
    let at = at.map(|position| position.0);
    all(&pool
        .query(statement, &[&room.0, &at, &kinds, &keys, &filter.kind, &filter.members])
        .await?)
}

/// Those of `events`, which are state of `room`, that are wanted; in no order.
pub async fn list_of(
    pool: &Pool,
    room: RoomNid,
    events: &[EventNid],
    filter: &StateFilter<'_>,
) -> Result<Vec<Arc<StoredEvent>>> {
    let nids: Vec<i64> = events.iter().map(|event| event.0).collect();
    let (kinds, keys) = filter.columns();
    let rows = pool
        .query(&LIST_STATE_OF, &[&nids, &room.0, &kinds, &keys, &filter.kind, &filter.members])
        .await?;
    all(&rows)
}

/// Member events of those who are banned from the room, at most `limit`.
pub async fn list_bans(pool: &Pool, room: RoomNid, limit: usize) -> Result<Vec<Arc<StoredEvent>>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    all(&pool.query(&LIST_BANS, &[&room.0, &limit]).await?)
}

/// Ids of the users who are joined now, with the content of their member events.
pub async fn list_joined_profiles(pool: &Pool, room: RoomNid) -> Result<Vec<(String, String)>> {
    let rows = pool.query(&LIST_JOINED_PROFILES, &[&room.0]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Rooms that the user is joined to now.
pub async fn list_joined_rooms(pool: &Pool, user: UserNid) -> Result<Vec<(RoomNid, String)>> {
    let rows = pool.query(&LIST_JOINED_ROOMS, &[&user.0]).await?;
    Ok(rows.iter().map(|row| (RoomNid(row.get(0)), row.get(1))).collect())
}

/// Rooms that the user is joined or invited to, or knocks at.
pub async fn list_rooms_to_leave(pool: &Pool, user: UserNid) -> Result<Vec<String>> {
    let rows = pool.query(&LIST_ROOMS_TO_LEAVE, &[&user.0]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
