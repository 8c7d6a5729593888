//! Events of other servers that were accepted and wait for those that they refer to.

use crate::{Batch, Pool, Result, Row, params, statement::statements};

statements! {
    STAGE = "INSERT INTO inbound_events (room_id, event_id, origin, added_ts, event)
             SELECT $1, * FROM unnest($2::text[], $3::text[], $4::int8[], $5::text[])
             ON CONFLICT (room_id, event_id) DO NOTHING";
    COUNT_STAGED = "SELECT count(*) FROM (SELECT 1 FROM inbound_events WHERE room_id = $1 LIMIT $2) AS s";
    LIST_STAGED = "SELECT id, event_id, origin, added_ts, event FROM inbound_events
                   WHERE room_id = $1 ORDER BY id LIMIT $2";
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

/// How many events of a room wait; `limit` if there are more.
pub async fn count(pool: &Pool, room_id: &str, limit: i64) -> Result<i64> {
    let row = pool.query_opt(&COUNT_STAGED, &[&room_id, &limit]).await?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// How many events wait in all rooms, and since when the oldest does (milliseconds).
pub async fn count_all(pool: &Pool) -> Result<(i64, i64)> {
    let row = pool.query_opt(&COUNT_ALL_STAGED, &[]).await?;
    Ok(row.map_or((0, 0), |row| (row.get(0), row.get(1))))
}

/// Events of a room that wait, oldest first.
pub async fn list(pool: &Pool, room_id: &str, limit: i64) -> Result<Vec<Staged>> {
    let rows = pool.query(&LIST_STAGED, &[&room_id, &limit]).await?;
    let staged = |row: &Row| Staged {
        id: row.get(0),
        event_id: row.get(1),
        origin: row.get(2),
        added_ts: row.get(3),
        event: row.get(4),
    };
    Ok(rows.iter().map(staged).collect())
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
