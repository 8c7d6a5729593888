//! Rooms that were joined without their members, until these have been fetched.

use chatd_base::{RoomNid, SnapshotId, WriterId};

use crate::{Batch, Pool, Result, Row, params, statement::statements};

statements! {
    /// A join that has not come to anything is begun anew.
    UPSERT_PARTIAL = "INSERT INTO partial_rooms (room, joined, prev, servers, added_ts)
                      VALUES ($1, $2, $3, $4, $5)
                      ON CONFLICT (room) DO UPDATE SET joined = excluded.joined,
                          prev = excluded.prev, servers = excluded.servers,
                          added_ts = excluded.added_ts, whole_pos = NULL, whole_writer = NULL";
    DELETE_PARTIAL = "DELETE FROM partial_rooms WHERE room = $1";
    GET_PARTIAL = "SELECT p.room, r.room_id, p.joined, p.prev, p.servers, p.added_ts
                   FROM partial_rooms p JOIN rooms r ON r.nid = p.room
                   WHERE p.room = $1 AND p.whole_pos IS NULL";
    GET_WHOLENESS = "SELECT EXISTS (SELECT 1 FROM room_heads WHERE room = $1),
                            EXISTS (SELECT 1 FROM partial_rooms
                                    WHERE room = $1 AND whole_pos IS NULL)";
    /// Those that somebody here is in; what has never been joined has no heads.
    LIST_PARTIAL = "SELECT p.room, r.room_id, p.joined, p.prev, p.servers, p.added_ts
                    FROM partial_rooms p JOIN rooms r ON r.nid = p.room
                    JOIN room_heads h ON h.room = p.room
                    WHERE p.whole_pos IS NULL
                      AND EXISTS (SELECT 1 FROM memberships m
                                  WHERE m.room = p.room AND m.is_local AND m.membership = 'j')
                    ORDER BY p.added_ts DESC LIMIT $1";
    END_PARTIAL = "UPDATE partial_rooms
                   SET whole_pos = currval('stream_events') + t.o, whole_writer = $3
                   FROM unnest($1::int4[], $2::int8[]) AS t(room, o)
                   WHERE partial_rooms.room = t.room AND whole_pos IS NULL";
    /// Of the join, and of all that came after it.
    LIST_SNAPSHOTS_SINCE = "SELECT DISTINCT e.snapshot FROM events e
                            WHERE e.room = $1 AND e.flags & 1 = 0
                              AND e.pos >= (SELECT j.pos FROM events j WHERE j.event_id = $2)";
    REBASE_EVENTS = "UPDATE events e SET snapshot = t.whole
                     FROM unnest($1::int4[], $2::int8[], $3::int8[]) AS t(room, known, whole)
                     WHERE e.room = t.room AND e.snapshot = t.known AND e.flags & 1 = 0";
}

/// A room whose members are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    pub room: RoomNid,
    pub room_id: String,
    /// Id of the event by which somebody here has joined.
    pub joined: String,
    /// Ids of the events that it follows.
    pub prev: Vec<String>,
    pub servers: Vec<String>,
    pub added_ts: i64,
}

/// What becomes of a room's snapshots once the members are known.
#[derive(Clone, Debug, Default)]
pub struct Rebase {
    /// The snapshot that stands for the state as it was known, and the one for all of it.
    pub snapshots: Vec<(SnapshotId, SnapshotId)>,
}

/// What is known of a room whose members were left out when it was joined.
#[derive(Clone, Debug)]
pub struct Omitted {
    /// Id of the join, and of the events that it follows.
    pub joined: String,
    pub prev: Vec<String>,
    /// Servers in the room, the one to ask first in front.
    pub servers: Vec<String>,
    pub added_ts: i64,
}

/// Notes whether a room is joined without its members, whatever an earlier attempt has noted. Part
/// of the writing of its first state.
pub(crate) fn begin(batch: &mut Batch, room: RoomNid, omitted: Option<Omitted>) {
    let Some(omitted) = omitted else {
        batch.add(&DELETE_PARTIAL, params![room.0]);
        return;
    };
    let Omitted { joined, prev, servers, added_ts } = omitted;
    batch.add(&UPSERT_PARTIAL, params![room.0, joined, prev, servers, added_ts]);
}

/// The room, if its members are not known.
pub async fn get(pool: &Pool, room: RoomNid) -> Result<Option<Partial>> {
    let rows = pool.query(&GET_PARTIAL, &[&room.0]).await?;
    Ok(rows.first().map(read))
}

/// How much of a room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wholeness {
    /// This server has not been in it.
    Nothing,
    /// Its members are not known.
    Partial,
    Whole,
}

/// How much of the room there is.
pub async fn get_wholeness(pool: &Pool, room: RoomNid) -> Result<Wholeness> {
    let rows = pool.query(&GET_WHOLENESS, &[&room.0]).await?;
    Ok(match rows.first().map(|row| (row.get(0), row.get(1))) {
        Some((true, true)) => Wholeness::Partial,
        Some((true, false)) => Wholeness::Whole,
        _ => Wholeness::Nothing,
    })
}

/// Rooms of which the members are to be fetched, those that were joined last first.
pub async fn list(pool: &Pool, most: i64) -> Result<Vec<Partial>> {
    Ok(pool.query(&LIST_PARTIAL, &[&most]).await?.iter().map(read).collect())
}

fn read(row: &Row) -> Partial {
    Partial {
        room: RoomNid(row.get(0)),
        room_id: row.get(1),
        joined: row.get(2),
        prev: row.get(3),
        servers: row.get(4),
        added_ts: row.get(5),
    }
}

/// The snapshots before `joined` and before all that came after it.
pub async fn list_snapshots_since(
    pool: &Pool,
    room: RoomNid,
    joined: &str,
) -> Result<Vec<SnapshotId>> {
    let rows = pool.query(&LIST_SNAPSHOTS_SINCE, &[&room.0, &joined]).await?;
    Ok(rows.iter().map(|row| SnapshotId(row.get(0))).collect())
}

/// Rooms that become whole in a commit: each with the place of its event in it.
pub(crate) fn end(batch: &mut Batch, writer: WriterId, rebased: &[(RoomNid, i64, &Rebase)]) {
    if rebased.is_empty() {
        return;
    }
    let (rooms, offsets): (Vec<i32>, Vec<i64>) =
        rebased.iter().map(|(room, offset, _)| (room.0, *offset)).unzip();
    batch.add(&END_PARTIAL, params![rooms, offsets, writer.0]);
    let pairs = rebased.iter().flat_map(|(room, _, rebase)| {
        rebase.snapshots.iter().map(|(known, whole)| (room.0, known.0, whole.0))
    });
    let (mut rooms, mut known, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for (room, from, to) in pairs {
        rooms.push(room);
        known.push(from);
        whole.push(to);
    }
    batch.add(&REBASE_EVENTS, params![rooms, known, whole]);
}
