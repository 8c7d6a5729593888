//! Events of a room's past that other servers have told. They were known without a place, and get
//! one: below all that the stream of events has brought if they are from before this server came,
//! at positions below zero; and among those that the stream has left free if they fill a gap. No
//! sync tells them.
//!
//! Each takes two positions: its own, and the one below, at which entries of the state are noted
//! that the event before it does not explain. So who may see an event is read from the same rows
//! as everywhere, `state_delta` and `membership_history`. What is not noted there is not known.

use std::collections::{HashMap, HashSet};

use chatd_base::{EventNid, KeyNid, Position, RoomNid, ShardId, SnapshotId, UserNid};

use crate::{
    Batch, Pool, Result, gaps,
    lane::{self, NewRedaction},
    params, shards,
    snapshots::NewSnapshot,
    statement::statements,
};

statements! {
    GET_BEGINNING = "SELECT coalesce(min(pos), 0) FROM events WHERE room = $1 AND pos < 0";
    /// Flag 1: outliers; 16: what has its place from here.
    PLACE_EVENTS = "UPDATE events e
                    SET pos = t.pos, snapshot = t.snapshot, replaces = t.replaces,
                        flags = (e.flags - 1) | 16 | t.flags, prev_ids = t.prev::int8[]
                    FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int8[], $5::int2[], $6::text[])
                         AS t(nid, pos, snapshot, replaces, flags, prev)
                    WHERE e.nid = t.nid AND e.flags & 1 <> 0";
    INSERT_SETTINGS = "INSERT INTO state_delta (room, pos, key, event, previous)
                       SELECT $1, * FROM unnest($2::int8[], $3::int8[], $4::int8[], $5::int8[])";
    /// Between the event at $2 and the one that the stream has brought before it. Flags 17: has no
    /// place, or has it from here.
    GET_SPACE = "SELECT b.pos, f.depth,
                        t.pos, t.snapshot,
                        (SELECT min(h.pos) FROM memberships m
                         JOIN membership_history h ON h.user_nid = m.user_nid AND h.room = m.room
                         WHERE m.room = $1 AND m.is_local AND h.pos > b.pos AND h.pos < $2)
                 FROM (SELECT max(e.pos) AS pos FROM events e
                       WHERE e.room = $1 AND e.pos > 0 AND e.pos < $2 AND e.flags & 17 = 0) AS b,
                      (SELECT e.depth FROM events e
                       WHERE e.room = $1 AND e.pos > 0 AND e.flags & 17 = 0
                       ORDER BY e.pos LIMIT 1) AS f
                 LEFT JOIN LATERAL (
                     SELECT e.pos, e.snapshot FROM events e
                     WHERE e.room = $1 AND e.pos > b.pos AND e.pos <= $2 AND e.flags & 16 <> 0
                     ORDER BY e.pos LIMIT 1) AS t ON true
                 WHERE b.pos IS NOT NULL";
    /// Which of these keys are noted at just the position $3.
    LIST_NOTED = "SELECT d.key FROM state_delta d
                  WHERE d.room = $1 AND d.key = ANY($2::int8[]) AND d.pos = $3
                  UNION ALL
                  SELECT t.key FROM unnest($4::int8[], $5::int4[]) AS t(key, user_nid)
                  JOIN membership_history h ON h.user_nid = t.user_nid AND h.room = $1
                  WHERE h.pos = $3";
    /// Entries with these keys, as they are noted for positions below $3: of the state, and of the
    /// memberships of local users.
    LIST_STANDING = "SELECT key, event
                     FROM (SELECT DISTINCT ON (d.key) d.key, d.event FROM state_delta d
                           WHERE d.room = $1 AND d.key = ANY($2::int8[]) AND d.pos < $3
                           ORDER BY d.key, d.pos DESC) AS s
                     WHERE event IS NOT NULL
                     UNION ALL
                     SELECT key, event
                     FROM (SELECT DISTINCT ON (t.key) t.key, h.event
                           FROM unnest($4::int8[], $5::int4[]) AS t(key, user_nid)
                           JOIN membership_history h ON h.user_nid = t.user_nid AND h.room = $1
                           WHERE h.pos < $3
                           ORDER BY t.key, h.pos DESC) AS m
                     WHERE event <> 0";
    INSERT_PAST_MEMBERSHIPS =
        "INSERT INTO membership_history (user_nid, room, pos, membership, event)
         SELECT u, $1, pos, m, event
         FROM unnest($2::int4[], $3::int8[], $4::\"char\"[], $5::int8[]) AS t(u, pos, m, event)";
    /// Local users who have something to do with the room.
    LIST_LOCAL_USERS = "SELECT u.nid, u.user_id FROM memberships m
                        JOIN users_nid u ON u.nid = m.user_nid
                        WHERE m.room = $1 AND m.is_local";
}

/// An event that gets its place.
#[derive(Clone, Debug)]
pub struct Placed {
    pub nid: EventNid,
    pub event_id: String,
    pub pos: Position,
    /// State before it.
    pub snapshot: SnapshotId,
    pub replaces: Option<EventNid>,
    /// Bits that are added to those that it has.
    pub flags: i16,
    /// Predecessors that are known, whether they have a place or not.
    pub prev_ids: Vec<EventNid>,
    /// Predecessors that are not known, or have no place.
    pub gaps: Vec<String>,
    /// (parent event id, relation type).
    pub relation: Option<(String, String)>,
    pub redaction: Option<NewRedaction>,
}

/// An entry of the state whose past decides who sees what, from a position on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    pub pos: Position,
    pub key: KeyNid,
    pub event: Option<EventNid>,
    pub previous: Option<EventNid>,
}

/// Free positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All below it are free,
    pub top: Position,
    /// down to this one, which is not.
    pub floor: Position,
    pub above: Above,
}

/// What comes after free positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Above {
    /// All that is known of the room.
    Everything,
    /// An event of the stream, before which something is missing.
    Stream,
    /// An event that others have told to fill the same gap, with the state before it.
    Told(SnapshotId),
}

/// What a user of this server was from a position on.
#[derive(Clone, Copy, Debug)]
pub struct PastMembership {
    pub user: UserNid,
    pub pos: Position,
    pub membership: i8,
    pub event: EventNid,
}

/// A piece of the past of one room.
#[derive(Debug)]
pub struct Piece {
    pub room: RoomNid,
    pub events: Vec<Placed>,
    pub snapshots: Vec<NewSnapshot>,
    pub settings: Vec<Setting>,
    pub memberships: Vec<PastMembership>,
}

/// The space below all events of the room.
pub async fn get_beginning(pool: &Pool, room: RoomNid) -> Result<Space> {
    let row = pool.query_opt(&GET_BEGINNING, &[&room.0]).await?;
    let top = Position(row.map_or(0, |row| row.get(0)));
    Ok(Space { top, floor: Position(i64::MIN), above: Above::Everything })
}

/// The space before the event at `pos`, for events of which the newest has this depth. `None` if
/// they belong before all that the stream has brought.
pub async fn get_space(
    pool: &Pool,
    room: RoomNid,
    pos: Position,
    depth: i64,
) -> Result<Option<Space>> {
    let Some(row) = pool.query_opt(&GET_SPACE, &[&room.0, &pos.0]).await? else {
        return Ok(None);
    };
    if depth < row.get::<_, i64>(1) {
        return Ok(None);
    }
    let lowest: Option<i64> = row.get(2);
    let above = match row.get::<_, Option<i64>>(3) {
        Some(snapshot) => Above::Told(SnapshotId(snapshot)),
        None => Above::Stream,
    };
    let membership: Option<i64> = row.get(4);
    let top = lowest.or(membership).unwrap_or(pos.0);
    Ok(Some(Space { top: Position(top), floor: Position(row.get(0)), above }))
}

/// Which of these keys have an entry at just that position. `members` are the keys of users of this
/// server.
pub async fn list_noted(
    pool: &Pool,
    room: RoomNid,
    settings: &[KeyNid],
    members: impl Iterator<Item = (KeyNid, UserNid)>,
    pos: Position,
) -> Result<HashSet<KeyNid>> {
    let settings: Vec<i64> = settings.iter().map(|key| key.0).collect();
    let (keys, users): (Vec<i64>, Vec<i32>) = members.map(|(key, user)| (key.0, user.0)).unzip();
    let rows = pool.query(&LIST_NOTED, &[&room.0, &settings, &pos.0, &keys, &users]).await?;
    Ok(rows.iter().map(|row| KeyNid(row.get(0))).collect())
}

/// The entries with these keys that are noted for positions below `pos`. `members` are the keys of
/// users of this server.
pub async fn list_standing(
    pool: &Pool,
    room: RoomNid,
    settings: &[KeyNid],
    members: impl Iterator<Item = (KeyNid, UserNid)>,
    pos: Position,
) -> Result<HashMap<KeyNid, EventNid>> {
    let settings: Vec<i64> = settings.iter().map(|key| key.0).collect();
    let (keys, users): (Vec<i64>, Vec<i32>) = members.map(|(key, user)| (key.0, user.0)).unzip();
    let rows = pool.query(&LIST_STANDING, &[&room.0, &settings, &pos.0, &keys, &users]).await?;
    Ok(rows.iter().map(|row| (KeyNid(row.get(0)), EventNid(row.get(1)))).collect())
}

/// Users of this server who are or were in the room, or are invited.
pub async fn list_local_users(pool: &Pool, room: RoomNid) -> Result<Vec<(UserNid, String)>> {
    let rows = pool.query(&LIST_LOCAL_USERS, &[&room.0]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}

/// The batch that gives the events of `piece` their place. Nothing else may write events of the
/// room meanwhile. Fails if the shard has gone to another instance.
pub fn batch(fence: (ShardId, i64), piece: Piece) -> Batch {
    let mut batch = Batch::new();
    shards::fence(&mut batch, &[fence]);
    lane::add_new_snapshots(&mut batch, &piece.snapshots.iter().collect::<Vec<_>>());
    add_events(&mut batch, &piece.events);
    add_settings(&mut batch, &piece);
    let room = piece.room;
    let related = piece.events.iter().filter_map(|e| Some((room, e.nid, e.relation.clone()?)));
    lane::add_relations(&mut batch, related.collect());
    let redactions = piece.events.iter().filter_map(|event| {
        Some((room, event.nid, event.event_id.as_str(), event.redaction.as_ref()?))
    });
    lane::add_redactions(&mut batch, redactions);
    let missing = piece.events.iter().flat_map(|event| {
        event.gaps.iter().map(move |missing| (room.0, missing.clone(), event.nid.0))
    });
    gaps::insert(&mut batch, missing.collect());
    let filled = piece.events.iter().map(|event| (room.0, event.event_id.clone(), event.nid.0));
    gaps::fill(&mut batch, filled.collect());
    batch
}

fn add_events(batch: &mut Batch, events: &[Placed]) {
    batch.add(
        &PLACE_EVENTS,
        params![
            events.iter().map(|e| e.nid.0).collect::<Vec<_>>(),
            events.iter().map(|e| e.pos.0).collect::<Vec<_>>(),
            events.iter().map(|e| e.snapshot.0).collect::<Vec<_>>(),
            events.iter().map(|e| e.replaces.map(|nid| nid.0)).collect::<Vec<_>>(),
            events.iter().map(|e| e.flags).collect::<Vec<_>>(),
            events.iter().map(|e| lane::literal(e.prev_ids.iter())).collect::<Vec<_>>(),
        ],
    );
}

fn add_settings(batch: &mut Batch, piece: &Piece) {
    if !piece.settings.is_empty() {
        batch.add(
            &INSERT_SETTINGS,
            params![
                piece.room.0,
                piece.settings.iter().map(|s| s.pos.0).collect::<Vec<_>>(),
                piece.settings.iter().map(|s| s.key.0).collect::<Vec<_>>(),
                piece.settings.iter().map(|s| s.event.map(|nid| nid.0)).collect::<Vec<_>>(),
                piece.settings.iter().map(|s| s.previous.map(|nid| nid.0)).collect::<Vec<_>>(),
            ],
        );
    }
    let members = &piece.memberships;
    if !members.is_empty() {
        batch.add(
            &INSERT_PAST_MEMBERSHIPS,
            params![
                piece.room.0,
                members.iter().map(|member| member.user.0).collect::<Vec<_>>(),
                members.iter().map(|member| member.pos.0).collect::<Vec<_>>(),
                members.iter().map(|member| member.membership).collect::<Vec<_>>(),
                members.iter().map(|member| member.event.0).collect::<Vec<_>>(),
            ],
        );
    }
}
