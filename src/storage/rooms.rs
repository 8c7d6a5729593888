//! Rooms as a whole: their numbers, heads and current state, as a room owner loads them.

use chatd_base::{EventNid, KeyNid, Position, RoomNid, SnapshotId, UserNid};

use crate::{Batch, Error, Pool, Result, params, statement::statements};

statements! {
    GET_ROOM = "SELECT r.nid, r.version, r.creator, coalesce(h.events, '{}'), coalesce(h.snapshots, '{}'),
                       coalesce(h.state, h.snapshots[1], 0),
                       EXISTS (SELECT 1 FROM pending_redactions p WHERE p.room = r.nid)
                FROM rooms r LEFT JOIN room_heads h ON h.room = r.nid WHERE r.room_id = $1";
    LIST_CURRENT_STATE = "SELECT key, event FROM current_state WHERE room = $1";
    /// Bodies of all current state but the memberships of users of other servers.
    LIST_STATE_BODIES = "SELECT e.nid, e.event_id, k.type, k.state_key, u.user_id, e.origin_ts, e.depth,
                                j.content, e.key, e.sender,
                                CASE WHEN r.version IN ('1', '2') THEN j.rest END
                         FROM current_state c
                         JOIN rooms r ON r.nid = c.room
                         JOIN events e ON e.nid = c.event
                         JOIN event_json j ON j.nid = c.event
                         JOIN state_keys k ON k.nid = c.key
                         JOIN users_nid u ON u.nid = e.sender
                         WHERE c.room = $1
                           AND (k.type <> 'm.room.member' OR EXISTS (
                                SELECT 1 FROM memberships m JOIN users_nid mu ON mu.nid = m.user_nid
                                WHERE m.room = $1 AND mu.user_id = k.state_key AND m.is_local
                                  AND m.membership IN ('j', 'i', 'k')))";
    LIST_BODIES = "SELECT e.nid, e.event_id, k.type, k.state_key, u.user_id, e.origin_ts, e.depth,
                          j.content, e.key, e.sender,
                          CASE WHEN r.version IN ('1', '2') THEN j.rest END
                   FROM events e
                   JOIN rooms r ON r.nid = e.room
                   JOIN event_json j ON j.nid = e.nid
                   JOIN state_keys k ON k.nid = e.key
                   JOIN users_nid u ON u.nid = e.sender
                   WHERE e.nid = ANY($1::int8[])";
    LIST_HEADS = "SELECT nid, event_id, depth, (SELECT rest FROM event_json j WHERE j.nid = e.nid)
                  FROM events e WHERE nid = ANY($1::int8[])";
    LIST_LOCAL_MEMBERS = "SELECT m.user_nid, u.user_id FROM memberships m
                          JOIN users_nid u ON u.nid = m.user_nid
                          WHERE m.room = $1 AND m.membership = 'j' AND m.is_local";
    COUNT_JOINED = "SELECT count(*) FROM memberships WHERE room = $1 AND membership = 'j'";
    NEXT_ROOM = "SELECT nextval('room_nids')::int4";
    NEXT_EVENTS = "SELECT nextval('event_nids')";
    NEXT_SNAPSHOTS = "SELECT nextval('snapshot_ids')";
    GET_TXN_EVENT = "SELECT e.event_id FROM event_txns t JOIN events e ON e.nid = t.event
                     WHERE t.digest = $1";
    LIST_RECENT_TXNS = "SELECT t.digest, e.event_id, e.pos
                        FROM (SELECT nid, event_id, pos FROM events
                              WHERE room = $1 AND pos > 0 ORDER BY pos DESC LIMIT 200) e
                        JOIN event_txns t ON t.event = e.nid ORDER BY e.pos";
    DELETE_OLD_EVENT_TXNS = "DELETE FROM event_txns WHERE digest IN (
                                 SELECT digest FROM event_txns WHERE added_ts < $1 LIMIT 10000)";
    SET_FORGOTTEN = "UPDATE memberships SET forgotten = true
                     WHERE user_nid = $1 AND room = $2 AND membership IN ('l', 'b')
                     RETURNING 1";
    GET_MEMBERSHIP = "SELECT membership FROM memberships WHERE user_nid = $1 AND room = $2";
    LIST_KNOWN_ROOMS = "SELECT room_id FROM rooms WHERE room_id = ANY($1::text[])";
    GET_MEMBER = "SELECT membership, event FROM memberships WHERE user_nid = $1 AND room = $2";
    GET_ALIAS = "SELECT r.room_id FROM room_aliases a JOIN rooms r ON r.nid = a.room WHERE a.alias = $1";
    LIST_ALIAS_TARGETS = "SELECT a.alias, r.room_id FROM room_aliases a JOIN rooms r ON r.nid = a.room
                          WHERE a.alias = ANY($1::text[])";
    COUNT_JOINED_IN = "SELECT count(*) FROM memberships m JOIN rooms r ON r.nid = m.room
                       WHERE m.user_nid = $1 AND m.membership = 'j' AND r.room_id = ANY($2::text[])";
    LIST_WITH_LOCALS = "SELECT r.room_id FROM rooms r
                        WHERE r.room_id = ANY($1::text[])
                          AND EXISTS (SELECT FROM memberships m
                                      WHERE m.room = r.nid AND m.membership = 'j' AND m.is_local)";
}

/// A room without its state.
#[derive(Clone, Debug)]
pub struct RoomRow {
    pub nid: RoomNid,
    pub version: String,
    pub creator: UserNid,
    /// Forward extremities and the snapshot after each.
    pub heads: Vec<(EventNid, SnapshotId)>,
    /// Snapshot of the current state.
    pub state: SnapshotId,
    /// Redactions wait for events of the room that have not come.
    pub redactions_wait: bool,
}

/// The room with that id, if this server knows it.
pub async fn get(pool: &Pool, room_id: &str) -> Result<Option<RoomRow>> {
    let Some(row) = pool.query_opt(&GET_ROOM, &[&room_id]).await? else { return Ok(None) };
    let (events, snapshots): (Vec<i64>, Vec<i64>) = (row.get(3), row.get(4));
    Ok(Some(RoomRow {
        nid: RoomNid(row.get(0)),
        version: row.get(1),
        creator: UserNid(row.get(2)),
        heads: events
            .into_iter()
            .map(EventNid)
            .zip(snapshots.into_iter().map(SnapshotId))
            .collect(),
        state: SnapshotId(row.get(5)),
        redactions_wait: row.get(6),
    }))
}

/// Which event each key of the current state has.
pub async fn list_current_state(pool: &Pool, room: RoomNid) -> Result<Vec<(KeyNid, EventNid)>> {
    let rows = pool.query(&LIST_CURRENT_STATE, &[&room.0]).await?;
    Ok(rows.iter().map(|row| (KeyNid(row.get(0)), EventNid(row.get(1)))).collect())
}

/// A state event as event authorisation needs it.
#[derive(Clone, Debug)]
pub struct StateBody {
    pub nid: EventNid,
    pub event_id: String,
    pub kind: String,
    pub state_key: String,
    pub sender: String,
    pub sender_nid: UserNid,
    pub origin_ts: i64,
    pub depth: i64,
    pub content: String,
    pub key: KeyNid,
    /// Remainder of the federation format, in rooms whose events refer to hashes.
    pub rest: Option<Vec<u8>>,
}

fn body(row: &crate::Row) -> StateBody {
    StateBody {
        nid: EventNid(row.get(0)),
        event_id: row.get(1),
        kind: row.get(2),
        state_key: row.get(3),
        sender: row.get(4),
        origin_ts: row.get(5),
        depth: row.get(6),
        content: row.get(7),
        key: KeyNid(row.get(8)),
        sender_nid: UserNid(row.get(9)),
        rest: row.get(10),
    }
}

/// Bodies of the current state, but for memberships of users who are not local and joined.
pub async fn list_state_bodies(pool: &Pool, room: RoomNid) -> Result<Vec<StateBody>> {
    Ok(pool.query(&LIST_STATE_BODIES, &[&room.0]).await?.iter().map(body).collect())
}

/// Bodies of the given state events.
pub async fn list_bodies(pool: &Pool, events: &[EventNid]) -> Result<Vec<StateBody>> {
    let events: Vec<i64> = events.iter().map(|nid| nid.0).collect();
    Ok(pool.query(&LIST_BODIES, &[&events]).await?.iter().map(body).collect())
}

/// (number, id, depth, `rest`) of the given events.
pub async fn list_heads(
    pool: &Pool,
    events: &[EventNid],
) -> Result<Vec<(EventNid, String, i64, Vec<u8>)>> {
    let events: Vec<i64> = events.iter().map(|nid| nid.0).collect();
    let rows = pool.query(&LIST_HEADS, &[&events]).await?;
    Ok(rows.iter().map(|row| (EventNid(row.get(0)), row.get(1), row.get(2), row.get(3))).collect())
}

/// Local users who are joined now.
pub async fn list_local_members(pool: &Pool, room: RoomNid) -> Result<Vec<(UserNid, String)>> {
    let rows = pool.query(&LIST_LOCAL_MEMBERS, &[&room.0]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}

/// Number of users who are joined now.
pub async fn count_joined(pool: &Pool, room: RoomNid) -> Result<i64> {
    let row = pool.query_opt(&COUNT_JOINED, &[&room.0]).await?;
    Ok(row.map_or(0, |row| row.get(0)))
}

fn number<N: for<'a> tokio_postgres::types::FromSql<'a>>(row: Option<crate::Row>) -> Result<N> {
    row.map(|row| row.get(0)).ok_or_else(|| Error::Corrupt("a sequence gave no number".to_owned()))
}

/// A number for a new room.
pub async fn next_room(pool: &Pool) -> Result<RoomNid> {
    Ok(RoomNid(number(pool.query_opt(&NEXT_ROOM, &[]).await?)?))
}

/// How many numbers [`next_events`] and [`next_snapshots`] reserve.
pub const NID_BLOCK: i64 = 10_000;

/// First of a block of event numbers.
pub async fn next_events(pool: &Pool) -> Result<i64> {
    number(pool.query_opt(&NEXT_EVENTS, &[]).await?)
}

/// First of a block of snapshot numbers.
pub async fn next_snapshots(pool: &Pool) -> Result<i64> {
    number(pool.query_opt(&NEXT_SNAPSHOTS, &[]).await?)
}

/// The event that an earlier request with this transaction digest made.
pub async fn get_txn_event(pool: &Pool, digest: uuid::Uuid) -> Result<Option<String>> {
    Ok(pool.query_opt(&GET_TXN_EVENT, &[&digest]).await?.map(|row| row.get(0)))
}

/// Digests of the transactions that made the latest events of a room, in their order: (digest,
/// event id, position).
pub async fn list_recent_txns(
    pool: &Pool,
    room: RoomNid,
) -> Result<Vec<(uuid::Uuid, String, Position)>> {
    let rows = pool.query(&LIST_RECENT_TXNS, &[&room.0]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), Position(row.get(2)))).collect())
}

/// Forgets some of the transaction ids from before `before_ms`; returns how many.
pub async fn delete_event_txns(pool: &Pool, before_ms: i64) -> Result<u64> {
    pool.execute(&DELETE_OLD_EVENT_TXNS, &[&before_ms]).await
}

/// Hides a left room from its user. The result has a row if the user has left it.
pub fn set_forgotten(batch: &mut Batch, user: UserNid, room: RoomNid) -> usize {
    batch.add(&SET_FORGOTTEN, params![user.0, room.0])
}

/// The letter of the user's membership.
pub async fn get_membership(pool: &Pool, user: UserNid, room: RoomNid) -> Result<Option<i8>> {
    Ok(pool.query_opt(&GET_MEMBERSHIP, &[&user.0, &room.0]).await?.map(|row| row.get(0)))
}

/// The letter of the user's membership, and the event that says so.
pub async fn get_member(
    pool: &Pool,
    user: UserNid,
    room: RoomNid,
) -> Result<Option<(i8, EventNid)>> {
    let row = pool.query_opt(&GET_MEMBER, &[&user.0, &room.0]).await?;
    Ok(row.map(|row| (row.get(0), EventNid(row.get(1)))))
}

/// The room that a local alias points to.
pub async fn get_alias(pool: &Pool, alias: &str) -> Result<Option<String>> {
    Ok(pool.query_opt(&GET_ALIAS, &[&alias]).await?.map(|row| row.get(0)))
}

/// (alias, room id) of those of `aliases` that exist here.
pub async fn list_alias_targets(pool: &Pool, aliases: &[String]) -> Result<Vec<(String, String)>> {
    if aliases.is_empty() {
        return Ok(Vec::new());
    }
    let rows = pool.query(&LIST_ALIAS_TARGETS, &[&aliases]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Whether the user is joined to at least one of the rooms.
pub async fn is_joined_to_any(pool: &Pool, user: UserNid, rooms: &[&str]) -> Result<bool> {
    let row = pool.query_opt(&COUNT_JOINED_IN, &[&user.0, &rooms]).await?;
    Ok(row.is_some_and(|row| row.get::<_, i64>(0) > 0))
}

/// Those of the rooms that this server knows.
pub async fn list_known(pool: &Pool, rooms: &[&str]) -> Result<Vec<String>> {
    let rows = pool.query(&LIST_KNOWN_ROOMS, &[&rooms]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Those of the rooms that somebody of this server is joined to.
pub async fn list_with_locals(pool: &Pool, rooms: &[&str]) -> Result<Vec<String>> {
    let rows = pool.query(&LIST_WITH_LOCALS, &[&rooms]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
