//! The event graph of a room, as its owner reads it to place an event that does not simply follow
//! the newest one. Every function is one statement, whatever the number of events.

use std::collections::HashMap;

use chatd_base::{EventNid, KeyNid, RoomNid, SnapshotId};

use crate::{Pool, Result, statement::statements};

statements! {
    LIST_PLACES = "SELECT nid, event_id, room, depth, flags, snapshot, key FROM events
                   WHERE event_id = ANY($1::text[])";
    /// Everything that can be reached over auth events, the seeds included.
    LIST_AUTH_EDGES = "WITH RECURSIVE chain(nid) AS (
                           SELECT unnest($1::int8[])
                           UNION
                           SELECT unnest(e.auth_ids) FROM chain c JOIN events e ON e.nid = c.nid)
                       SELECT e.nid, e.auth_ids FROM chain c JOIN events e ON e.nid = c.nid";
    /// Events as the rules see them.
    LIST_GRAPH_EVENTS = "
        SELECT e.nid, e.event_id, t.type, k.state_key, u.user_id, e.origin_ts, e.depth, e.flags,
               e.key, j.content, j.rest,
               ARRAY(SELECT p.event_id FROM unnest(e.prev_ids) WITH ORDINALITY AS x(nid, n)
                     JOIN events p ON p.nid = x.nid ORDER BY x.n),
               ARRAY(SELECT a.event_id FROM unnest(e.auth_ids) WITH ORDINALITY AS x(nid, n)
                     JOIN events a ON a.nid = x.nid ORDER BY x.n)
        FROM events e
        JOIN event_json j ON j.nid = e.nid
        JOIN event_types t ON t.nid = e.type
        JOIN users_nid u ON u.nid = e.sender
        LEFT JOIN state_keys k ON k.nid = e.key
        WHERE e.nid = ANY($1::int8[])";
    /// What lies behind the given events, through rejected and soft-failed ones only (flags 2, 4).
    LIST_BEHIND = "WITH RECURSIVE behind(nid) AS (
                       SELECT unnest($1::int8[])
                       UNION
                       SELECT unnest(e.prev_ids) FROM behind b
                       JOIN events e ON e.nid = b.nid AND e.flags & 6 <> 0)
                   SELECT nid FROM behind";
    LIST_PENDING_REDACTIONS = "SELECT DISTINCT ON (p.target) p.target, p.redaction, u.user_id
                               FROM pending_redactions p
                               JOIN events e ON e.nid = p.redaction
                               JOIN users_nid u ON u.nid = e.sender
                               WHERE p.room = $1 AND p.target = ANY($2::text[])
                               ORDER BY p.target, p.redaction";
}

/// Where an event stands in the graph.
#[derive(Clone, Debug)]
pub struct Place {
    pub nid: EventNid,
    pub room: RoomNid,
    pub depth: i64,
    pub flags: i16,
    /// State before it.
    pub snapshot: SnapshotId,
    pub key: Option<KeyNid>,
}

/// Those of the events that are known, by id.
pub async fn list_places(pool: &Pool, ids: &[&str]) -> Result<HashMap<String, Place>> {
    let rows = pool.query(&LIST_PLACES, &[&ids]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let place = Place {
                nid: EventNid(row.get(0)),
                room: RoomNid(row.get(2)),
                depth: row.get(3),
                flags: row.get(4),
                snapshot: SnapshotId(row.get(5)),
                key: row.get::<_, Option<i64>>(6).map(KeyNid),
            };
            (row.get(1), place)
        })
        .collect())
}

/// The auth events of `seeds`, of those, and so on.
pub async fn list_auth_edges(
    pool: &Pool,
    seeds: &[EventNid],
) -> Result<HashMap<EventNid, Vec<EventNid>>> {
    let rows = pool.query(&LIST_AUTH_EDGES, &[&numbers(seeds)]).await?;
    Ok(rows.iter().map(|row| (EventNid(row.get(0)), nids(row.get(1)))).collect())
}

/// An event with its references, as event authorisation and state resolution see it.
#[derive(Clone, Debug)]
pub struct GraphEvent {
    pub nid: EventNid,
    pub event_id: String,
    pub kind: String,
    pub state_key: Option<String>,
    pub sender: String,
    pub origin_ts: i64,
    pub depth: i64,
    pub flags: i16,
    pub key: Option<KeyNid>,
    pub content: String,
    /// Remainder of the federation format.
    pub rest: Vec<u8>,
    pub prev_events: Vec<String>,
    pub auth_events: Vec<String>,
}

/// The given events, in no order.
pub async fn list_events(pool: &Pool, events: &[EventNid]) -> Result<Vec<GraphEvent>> {
    let rows = pool.query(&LIST_GRAPH_EVENTS, &[&numbers(events)]).await?;
    Ok(rows
        .iter()
        .map(|row| GraphEvent {
            nid: EventNid(row.get(0)),
            event_id: row.get(1),
            kind: row.get(2),
            state_key: row.get(3),
            sender: row.get(4),
            origin_ts: row.get(5),
            depth: row.get(6),
            flags: row.get(7),
            key: row.get::<_, Option<i64>>(8).map(KeyNid),
            content: row.get(9),
            rest: row.get(10),
            prev_events: row.get(11),
            auth_events: row.get(12),
        })
        .collect())
}

/// `events`, and what lies behind those of them that were rejected or soft-failed.
pub async fn list_behind(pool: &Pool, events: &[EventNid]) -> Result<Vec<EventNid>> {
    let rows = pool.query(&LIST_BEHIND, &[&numbers(events)]).await?;
    Ok(rows.iter().map(|row| EventNid(row.get(0))).collect())
}

/// Redactions that came before the targets in `ids`, and who sent them.
pub async fn list_pending_redactions(
    pool: &Pool,
    room: RoomNid,
    ids: &[&str],
) -> Result<HashMap<String, (EventNid, String)>> {
    let rows = pool.query(&LIST_PENDING_REDACTIONS, &[&room.0, &ids]).await?;
    Ok(rows.iter().map(|row| (row.get(0), (EventNid(row.get(1)), row.get(2)))).collect())
}

fn numbers(events: &[EventNid]) -> Vec<i64> {
    events.iter().map(|event| event.0).collect()
}

fn nids(numbers: Vec<i64>) -> Vec<EventNid> {
    numbers.into_iter().map(EventNid).collect()
}
