//! Rooms as another server asks about them: whether it is in the room, what came before an event,
//! and how much of that it may see. Every function is one statement.

use std::collections::BTreeSet;

use chatd_base::{EventNid, KeyNid, RoomNid, SnapshotId};

use crate::{Pool, Result, Row, statement::statements};

/// Whether a user of the server $2 (or of this one) is joined to the room `r`.
macro_rules! is_in {
    ($more:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
                     WHERE m.room = r.nid AND m.membership = 'j' AND ",
            $more,
            ")"
        )
    };
}

/// Whether the server $2 was said to be in the room when it was joined, whose members are not known.
macro_rules! is_said_to_be_in {
    ($room:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM partial_rooms p
                     WHERE p.room = ",
            $room,
            " AND p.whole_pos IS NULL AND $2 = ANY(p.servers))"
        )
    };
}

/// Whether a user of the server $2 was one of these at the event.
macro_rules! was {
    ($letters:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
                     WHERE m.room = e.room AND NOT m.is_local
                       AND substr(u.user_id, strpos(u.user_id, ':') + 1) = $2
                       AND (SELECT h.membership FROM membership_history h
                            WHERE h.user_nid = m.user_nid AND h.room = m.room AND h.pos <= e.pos
                            ORDER BY h.pos DESC LIMIT 1) IN (",
            $letters,
            ")) OR ",
            is_said_to_be_in!("e.room")
        )
    };
}

statements! {
    GET_ROOM_FOR_SERVER = concat!("
        SELECT r.nid, r.version, ", is_in!("m.is_local"), ", ",
            is_in!("NOT m.is_local AND substr(u.user_id, strpos(u.user_id, ':') + 1) = $2"), "
            OR ", is_said_to_be_in!("r.nid"), ",
            (SELECT j.content FROM current_state c JOIN event_json j ON j.nid = c.event
             WHERE c.room = r.nid
               AND c.key = (SELECT nid FROM state_keys
                            WHERE type = 'm.room.server_acl' AND state_key = ''))
        FROM rooms r WHERE r.room_id = $1");
    COUNT_STATE = "SELECT count(*) FROM current_state c JOIN rooms r ON r.nid = c.room
                   WHERE r.room_id = $1";
    GET_ROOM_OF_EVENT = "SELECT r.room_id FROM events e JOIN rooms r ON r.nid = e.room
                         WHERE e.event_id = $1 AND e.flags & 3 = 0";
    GET_ANCHOR = "SELECT nid, snapshot, flags FROM events WHERE room = $1 AND event_id = $2";
    LIST_IDS = "SELECT nid, event_id FROM events WHERE nid = ANY($1::int8[])";
    /// The events and what came before them, generation by generation; outliers and rejected
    /// events (flags 3) end the walk. No more is walked than is wanted.
    WALK_BACK = "WITH RECURSIVE back(nid) AS (
                     SELECT nid FROM events
                     WHERE room = $1 AND event_id = ANY($2::text[]) AND flags & 3 = 0
                     UNION
                     SELECT p.nid FROM back b JOIN events e ON e.nid = b.nid
                     JOIN events p ON p.nid = ANY(e.prev_ids) AND p.flags & 3 = 0)
                 SELECT nid FROM back LIMIT $3";
    /// What lies between two sets of events, without either.
    WALK_BETWEEN = "WITH RECURSIVE back(nid) AS (
                        SELECT p.nid FROM events e
                        JOIN events p ON p.nid = ANY(e.prev_ids) AND p.flags & 3 = 0
                        WHERE e.room = $1 AND e.event_id = ANY($2::text[])
                          AND NOT p.event_id = ANY($4::text[]) AND p.depth >= $5
                        UNION
                        SELECT p.nid FROM back b JOIN events e ON e.nid = b.nid
                        JOIN events p ON p.nid = ANY(e.prev_ids) AND p.flags & 3 = 0
                        WHERE NOT p.event_id = ANY($4::text[]) AND p.depth >= $5)
                    SELECT nid FROM back LIMIT $3";
    /// How much of each event the server $2 may see. Memberships are looked at only where the
    /// history visibility asks for it. Of events that others have told later (flag 16) what is noted
    /// of memberships says nothing.
    LIST_SIGHTS = concat!("
        SELECT e.nid, v.content,
               CASE WHEN v.content LIKE '%\"invited\"%' OR v.content LIKE '%\"joined\"%'
                    THEN ", was!("'j'"), " ELSE true END,
               CASE WHEN v.content LIKE '%\"invited\"%' THEN ", was!("'j', 'i'"), " ELSE true END,
               CASE WHEN e.flags & 16 <> 0
                         AND (v.content LIKE '%\"invited\"%' OR v.content LIKE '%\"joined\"%')
                    THEN e.snapshot END,
               e.key
        FROM events e
        CROSS JOIN LATERAL (
            SELECT coalesce((
                SELECT j.content FROM state_delta d JOIN event_json j ON j.nid = d.event
                WHERE d.room = e.room AND d.pos < e.pos
                  AND d.key = (SELECT nid FROM state_keys
                               WHERE type = 'm.room.history_visibility' AND state_key = '')
                ORDER BY d.pos DESC LIMIT 1), '{}') AS content) AS v
        WHERE e.nid = ANY($1::int8[])");
    /// Names under which the state of a room has users of the server $2.
    LIST_MEMBER_KEYS = "SELECT k.nid FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
                        JOIN state_keys k ON k.type = 'm.room.member' AND k.state_key = u.user_id
                        WHERE m.room = $1 AND NOT m.is_local
                          AND substr(u.user_id, strpos(u.user_id, ':') + 1) = $2";
}

/// A room as one other server finds it.
#[derive(Clone, Debug)]
pub struct RoomForServer {
    pub nid: RoomNid,
    pub version: String,
    /// Whether somebody of this server is in the room.
    pub we_are_in: bool,
    /// Whether somebody of the other server is.
    pub they_are_in: bool,
    /// Content of `m.room.server_acl`.
    pub acl: Option<String>,
}

/// The room as `server` finds it, if it is known here.
pub async fn get_room(pool: &Pool, room: &str, server: &str) -> Result<Option<RoomForServer>> {
    let row = pool.query_opt(&GET_ROOM_FOR_SERVER, &[&room, &server]).await?;
    Ok(row.map(|row| RoomForServer {
        nid: RoomNid(row.get(0)),
        version: row.get(1),
        we_are_in: row.get(2),
        they_are_in: row.get(3),
        acl: row.get(4),
    }))
}

/// How much current state a room has.
pub async fn count_state(pool: &Pool, room: &str) -> Result<i64> {
    let row = pool.query_opt(&COUNT_STATE, &[&room]).await?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// The room of an event that has its place in it.
pub async fn get_room_of_event(pool: &Pool, event: &str) -> Result<Option<String>> {
    Ok(pool.query_opt(&GET_ROOM_OF_EVENT, &[&event]).await?.map(|row| row.get(0)))
}

/// Where the state of a room is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    pub nid: EventNid,
    /// State before the event.
    pub snapshot: SnapshotId,
    pub flags: i16,
}

/// An event of the room.
pub async fn get_anchor(pool: &Pool, room: RoomNid, event: &str) -> Result<Option<Anchor>> {
    let row = pool.query_opt(&GET_ANCHOR, &[&room.0, &event]).await?;
    Ok(row.map(|row| Anchor {
        nid: EventNid(row.get(0)),
        snapshot: SnapshotId(row.get(1)),
        flags: row.get(2),
    }))
}

/// Numbers and ids of those of the events that exist.
pub async fn list_ids(pool: &Pool, events: &[EventNid]) -> Result<Vec<(EventNid, String)>> {
    let rows = pool.query(&LIST_IDS, &[&numbers(events)]).await?;
    Ok(rows.iter().map(|row| (EventNid(row.get(0)), row.get(1))).collect())
}

/// `events` and what came before them, nearest first, at most `limit`.
pub async fn walk_back(
    pool: &Pool,
    room: RoomNid,
    events: &[String],
    limit: i64,
) -> Result<Vec<EventNid>> {
    let rows = pool.query(&WALK_BACK, &[&room.0, &events, &limit]).await?;
    Ok(nids(&rows))
}

/// What came before `latest`, without them, back to `earliest`, without them; nothing above
/// `min_depth`; nearest first, at most `limit`.
pub async fn walk_between(
    pool: &Pool,
    room: RoomNid,
    latest: &[String],
    earliest: &[String],
    min_depth: i64,
    limit: i64,
) -> Result<Vec<EventNid>> {
    let rows =
        pool.query(&WALK_BETWEEN, &[&room.0, &latest, &limit, &earliest, &min_depth]).await?;
    Ok(nids(&rows))
}

/// What decides how much of an event a server may see.
#[derive(Clone, Debug)]
pub struct Sight {
    pub nid: EventNid,
    /// Content of `m.room.history_visibility` before the event.
    pub visibility: String,
    /// Whether the server was in the room; true where nobody asks.
    pub was_joined: bool,
    /// Whether it was in the room or invited; true where nobody asks.
    pub was_invited: bool,
    /// State before the event, which alone says whether the server was there, if others have told
    /// the event later and the setting asks for it.
    pub snapshot: Option<SnapshotId>,
    /// Of the event, if it is state.
    pub key: Option<KeyNid>,
}

/// How much `server` may see of each event, in no order.
pub async fn list_sights(pool: &Pool, events: &[EventNid], server: &str) -> Result<Vec<Sight>> {
    let rows = pool.query(&LIST_SIGHTS, &[&numbers(events), &server]).await?;
    let sight = |row: &Row| Sight {
        nid: EventNid(row.get(0)),
        visibility: row.get(1),
        was_joined: row.get(2),
        was_invited: row.get(3),
        snapshot: row.get::<_, Option<i64>>(4).map(SnapshotId),
        key: row.get::<_, Option<i64>>(5).map(KeyNid),
    };
    Ok(rows.iter().map(sight).collect())
}

/// Keys of the member events of users of `server` who have had to do with the room.
pub async fn list_member_keys(
    pool: &Pool,
    room: RoomNid,
    server: &str,
) -> Result<BTreeSet<KeyNid>> {
    let rows = pool.query(&LIST_MEMBER_KEYS, &[&room.0, &server]).await?;
    Ok(rows.iter().map(|row| KeyNid(row.get(0))).collect())
}

fn numbers(events: &[EventNid]) -> Vec<i64> {
    events.iter().map(|event| event.0).collect()
}

fn nids(rows: &[Row]) -> Vec<EventNid> {
    rows.iter().map(|row| EventNid(row.get(0))).collect()
}
