//! Servers that do not answer, and when they are tried again: the same for all instances.

use crate::{
    Pool, Result, Row,
    notices::{Notice, Notices},
    params,
    statement::statements,
};

statements! {
    LIST_DESTINATIONS = "SELECT server, failing_since, retry_at, interval_ms FROM destinations";
    GET_DESTINATION = "SELECT server, failing_since, retry_at, interval_ms FROM destinations
                       WHERE server = $1";
    /// Of attempts that fail at the same time one counts.
    NOTE_FAILURE = "
        INSERT INTO destinations (server, failing_since, retry_at, interval_ms)
        VALUES ($1, $2::int8, $2::int8 + $3::int8, $3::int8)
        ON CONFLICT (server) DO UPDATE
        SET interval_ms = least(destinations.interval_ms * $4::int8, $5::int8),
            retry_at = excluded.failing_since + least(destinations.interval_ms * $4::int8, $5::int8)
        WHERE destinations.retry_at <= excluded.failing_since
        RETURNING server, failing_since, retry_at, interval_ms";
    /// Tells the others, if the failure that has just been noted is the first.
    TELL_FIRST_FAILURE = "SELECT pg_notify('chatd', $1::text) FROM destinations
                          WHERE server = $2 AND failing_since = $3 AND interval_ms = $4";
    DELETE_DESTINATION = "DELETE FROM destinations WHERE server = $1 RETURNING server";
    DELETE_OLD_DESTINATIONS = "
        DELETE FROM destinations
        WHERE retry_at < $1 OR server IN (SELECT server FROM destinations
                                          ORDER BY failing_since, server OFFSET $2)";
}

/// A server that does not answer. Times are milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub server: String,
    pub failing_since: i64,
    /// It is left alone until then.
    pub retry_at: i64,
    /// The time between the last two attempts.
    pub interval_ms: i64,
}

/// How long a server that does not answer is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    pub first_ms: i64,
    /// The factor by which each interval is longer than the one before.
    pub factor: i64,
    pub longest_ms: i64,
}

fn destination(row: &Row) -> Destination {
    Destination {
        server: row.get(0),
        failing_since: row.get(1),
        retry_at: row.get(2),
        interval_ms: row.get(3),
    }
}

/// All that do not answer.
pub async fn list(pool: &Pool) -> Result<Vec<Destination>> {
    Ok(pool.query(&LIST_DESTINATIONS, &[]).await?.iter().map(destination).collect())
}

/// The server, if it does not answer.
pub async fn get(pool: &Pool, server: &str) -> Result<Option<Destination>> {
    Ok(pool.query_opt(&GET_DESTINATION, &[&server]).await?.as_ref().map(destination))
}

/// Takes note that an attempt has failed, and says until when the server is left alone. The other
/// instances are told of the first failure: what they believe of the server decides whether a sign
/// of life is one.
pub async fn note_failure(
    pool: &Pool,
    notices: &Notices,
    server: &str,
    now_ms: i64,
    intervals: Intervals,
) -> Result<Option<Destination>> {
    let Intervals { first_ms, factor, longest_ms } = intervals;
    let mut batch = crate::Batch::new();
    let noted =
        batch.add(&NOTE_FAILURE, params![server.to_owned(), now_ms, first_ms, factor, longest_ms]);
    if let Some(text) = notices.text(&Notice::ServerAway { server: server.to_owned() }) {
        batch.add(&TELL_FIRST_FAILURE, params![text, server.to_owned(), now_ms, first_ms]);
    }
    let rows = pool.commit(batch).await?;
    match rows.of(noted).first() {
        Some(row) => Ok(Some(destination(row))),
        None => get(pool, server).await,
    }
}

/// Takes note that the server has shown signs of life, and tells the other instances.
pub async fn note_life(pool: &Pool, notices: &Notices, server: &str) -> Result<()> {
    let mut batch = crate::Batch::new();
    batch.add(&DELETE_DESTINATION, params![server.to_owned()]);
    notices.tell(&mut batch, Notice::ServerAlive { server: server.to_owned() });
    pool.commit(batch).await?;
    Ok(())
}

/// Forgets servers that might have been asked since `before_ms` and were not: whoever is owed
/// something, or is asked for something, is tried again when the time has come. Of the others all
/// but `most` are forgotten, those that have failed for long last.
pub async fn delete_old(pool: &Pool, before_ms: i64, most: i64) -> Result<u64> {
    pool.execute(&DELETE_OLD_DESTINATIONS, &[&before_ms, &most]).await
}
