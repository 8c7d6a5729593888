//! Where the graph of a room has holes: predecessors that an event names and this server does not
//! have, or has without their place (outliers). What comes later fills them.

use std::collections::HashSet;

use chatd_base::{EventNid, Position, RoomNid};

use crate::{Batch, Pool, Result, lane::NewEvent, params, statement::statements};

statements! {
    INSERT_GAPS = "INSERT INTO event_gaps (room, missing, event)
                   SELECT * FROM unnest($1::int4[], $2::text[], $3::int8[])
                   ON CONFLICT DO NOTHING";
    /// Whoever named one of the events has it as a predecessor now.
    FILL_GAPS = "UPDATE events e
                 SET prev_ids = e.prev_ids || ARRAY(SELECT n FROM unnest(f.nids) AS n
                                                    WHERE n <> ALL(e.prev_ids))
                 FROM (SELECT g.event, array_agg(t.nid ORDER BY t.nid) AS nids FROM event_gaps g
                       JOIN unnest($1::int4[], $2::text[], $3::int8[]) AS t(room, id, nid)
                            ON g.room = t.room AND g.missing = t.id
                       GROUP BY g.event) AS f
                 WHERE e.nid = f.event";
    DELETE_GAPS = "DELETE FROM event_gaps g USING unnest($1::int4[], $2::text[]) AS t(room, id)
                   WHERE g.room = t.room AND g.missing = t.id";
    LIST_NAMED = "SELECT DISTINCT missing FROM event_gaps
                  WHERE room = $1 AND missing = ANY($2::text[])";
    /// Those behind the first event that the stream has brought, and those further back.
    LIST_BEGINNINGS = "SELECT g.missing, e.depth FROM event_gaps g
                       JOIN events e ON e.nid = g.event
                       WHERE g.room = $1 AND e.flags & 1 = 0
                         AND e.pos <= (SELECT min(f.pos) FROM events f
                                       WHERE f.room = $1 AND f.pos > 0)
                       ORDER BY e.pos DESC, g.missing LIMIT $2";
    /// Those behind later ones; $2 has the events that name them.
    LIST_BETWEEN = "SELECT g.missing, e.nid, e.pos FROM event_gaps g
                    JOIN events e ON e.nid = g.event
                    WHERE g.room = $1 AND e.flags & 1 = 0
                      AND ($2::int8[] IS NULL OR g.event = ANY($2))
                      AND e.pos > (SELECT min(f.pos) FROM events f
                                   WHERE f.room = $1 AND f.pos > 0)
                    ORDER BY e.pos DESC, g.missing LIMIT $3";
}

/// Notes what the events of a commit lack, and what they fill.
pub(crate) fn note(batch: &mut Batch, events: &[&NewEvent]) {
    let foreign: Vec<&NewEvent> =
        events.iter().copied().filter(|event| event.gaps.is_some()).collect();
    if foreign.is_empty() {
        return;
    }
    let of = |event: &NewEvent| {
        let (room, nid) = (event.room.0, event.nid.0);
        let missing = event.gaps.clone().unwrap_or_default();
        missing.into_iter().map(move |missing| (room, missing, nid))
    };
    insert(batch, foreign.iter().flat_map(|event| of(event)).collect());
    let filled =
        foreign.iter().map(|event| (event.room.0, event.event_id.clone(), event.nid.0)).collect();
    fill(batch, filled);
}

/// Closes the gaps that these events leave: (room, event id, event).
pub fn fill(batch: &mut Batch, filled: Vec<(i32, String, i64)>) {
    let rooms: Vec<i32> = filled.iter().map(|event| event.0).collect();
    let nids: Vec<i64> = filled.iter().map(|event| event.2).collect();
    let ids: Vec<String> = filled.into_iter().map(|event| event.1).collect();
    batch.add(&FILL_GAPS, params![rooms.clone(), ids.clone(), nids]);
    batch.add(&DELETE_GAPS, params![rooms, ids]);
}

/// Adds (room, missing event, event that names it).
pub fn insert(batch: &mut Batch, gaps: Vec<(i32, String, i64)>) {
    if gaps.is_empty() {
        return;
    }
    let rooms: Vec<i32> = gaps.iter().map(|gap| gap.0).collect();
    let nids: Vec<i64> = gaps.iter().map(|gap| gap.2).collect();
    let missing: Vec<String> = gaps.into_iter().map(|gap| gap.1).collect();
    batch.add(&INSERT_GAPS, params![rooms, missing, nids]);
}

/// Those of `ids` that an event of the room names as a predecessor, and that had no place so far.
pub async fn list_named(pool: &Pool, room: RoomNid, ids: &[&str]) -> Result<HashSet<String>> {
    let rows = pool.query(&LIST_NAMED, &[&room.0, &ids]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Where the past of a room begins here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The predecessor that is missing.
    pub missing: String,
    /// Of the event that names it.
    pub depth: i64,
}

/// Where the past of a room begins, the newest place first: from there on a walk has to ask other
/// servers.
pub async fn list_beginnings(pool: &Pool, room: RoomNid, limit: i64) -> Result<Vec<Beginning>> {
    let rows = pool.query(&LIST_BEGINNINGS, &[&room.0, &limit]).await?;
    let beginning = |row: &crate::Row| Beginning { missing: row.get(0), depth: row.get(1) };
    Ok(rows.iter().map(beginning).collect())
}

/// A hole between events of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The predecessor that is missing.
    pub missing: String,
    /// The event that names it.
    pub event: EventNid,
    pub pos: Position,
}

/// Holes between events, behind those of `events` or all of them, the newest first.
pub async fn list_between(
    pool: &Pool,
    room: RoomNid,
    events: Option<&[EventNid]>,
    limit: i64,
) -> Result<Vec<Gap>> {
    let events: Option<Vec<i64>> = events.map(|all| all.iter().map(|event| event.0).collect());
    let rows = pool.query(&LIST_BETWEEN, &[&room.0, &events, &limit]).await?;
    let gap = |row: &crate::Row| Gap {
        missing: row.get(0),
        event: EventNid(row.get(1)),
        pos: Position(row.get(2)),
    };
    Ok(rows.iter().map(gap).collect())
}
