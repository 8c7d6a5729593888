//! Events of other servers that were accepted and wait for those that they refer to.

use crate::{Batch, Pool, Result, Row, params, statement::statements};

statements! {
    STAGE = "INSERT INTO inbound_events (room_id, event_id, origin, added_ts, event)
             SELECT $1, * FROM unnest($2::text[], $3::text[], $4::int8[], $5::text[])
             ON CONFLICT (room_id, event_id) DO NOTHING";
    COUNT_STAGED = "SELECT count(*), count(*) FILTER (WHERE origin = $2)
                    FROM inbound_events WHERE room_id = $1";
    /// As many of each sender: one whose events wait for long does not hold up the others.
    LIST_STAGED = "SELECT e.id, e.event_id, e.origin, e.added_ts, e.event
                   FROM (SELECT id, row_number() OVER (PARTITION BY origin ORDER BY id) AS turn
                         FROM inbound_events WHERE room_id = $1) AS t
                   JOIN inbound_events e ON e.id = t.id
                   ORDER BY t.turn, e.id LIMIT $2";
    LIST_STAGED_ROOMS = "SELECT DISTINCT room_id FROM inbound_events LIMIT $1";
    DELETE_STAGED = "DELETE FROM inbound_events WHERE id = ANY($1::int8[])";
    COUNT_ALL_STAGED = "SELECT count(*), coalesce(min(added_ts), 0) FROM inbound_events";
}

/// An event that waits.
#[derive(Clone, Debug)]
pub struct Staged {
    /// In the order of arrival; 0 for one that has not been stored yet.
    pub id: i64,
    pub event_id: String,
    /// The server that has sent it.
    pub origin: String,
    pub added_ts: i64,
    /// Canonical JSON.
    pub event: String,
}

/// Keeps events of a room; those that wait already are left alone.
pub async fn stage(pool: &Pool, room_id: &str, events: Vec<Staged>) -> Result<()> {
    let mut batch = Batch::new();
    batch.add(
        &STAGE,
        params![
            room_id.to_owned(),
            events.iter().map(|e| e.event_id.clone()).collect::<Vec<_>>(),
            events.iter().map(|e| e.origin.clone()).collect::<Vec<_>>(),
            events.iter().map(|e| e.added_ts).collect::<Vec<_>>(),
            events.into_iter().map(|e| e.event).collect::<Vec<_>>(),
        ],
    );
    pool.commit(batch).await?;
    Ok(())
}

/// How many events of a room wait, and how many of these `origin` has sent.
pub async fn count(pool: &Pool, room_id: &str, origin: &str) -> Result<(i64, i64)> {
    let row = pool.query_opt(&COUNT_STAGED, &[&room_id, &origin]).await?;
    Ok(row.map_or((0, 0), |row| (row.get(0), row.get(1))))
}

/// How many events wait in all rooms, and since when the oldest does (milliseconds).
pub async fn count_all(pool: &Pool) -> Result<(i64, i64)> {
    let row = pool.query_opt(&COUNT_ALL_STAGED, &[]).await?;
    Ok(row.map_or((0, 0), |row| (row.get(0), row.get(1))))
}

/// Events of a room that wait, oldest first: if there are more than `limit`, the oldest of each
/// server that has sent some.
pub async fn list(pool: &Pool, room_id: &str, limit: i64) -> Result<Vec<Staged>> {
    let rows = pool.query(&LIST_STAGED, &[&room_id, &limit]).await?;
    let staged = |row: &Row| Staged {
        id: row.get(0),
        event_id: row.get(1),
        origin: row.get(2),
        added_ts: row.get(3),
        event: row.get(4),
    };
    let mut all: Vec<Staged> = rows.iter().map(staged).collect();
    all.sort_unstable_by_key(|staged| staged.id);
    Ok(all)
}

/// Rooms in which events wait.
pub async fn list_rooms(pool: &Pool, limit: i64) -> Result<Vec<String>> {
    let rows = pool.query(&LIST_STAGED_ROOMS, &[&limit]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Forgets events that have their place, or never will.
pub async fn delete(pool: &Pool, ids: &[i64]) -> Result<()> {
    if !ids.is_empty() {
        pool.execute(&DELETE_STAGED, &[&ids]).await?;
    }
    Ok(())
}
