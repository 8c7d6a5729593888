//! How far each writer of each stream has got, and the ids that a commit takes.
//!
//! A stream's sequence goes up by [`POSITION_BLOCK`]. A commit takes one value of it in its
//! first statement ([`begin`]), and its rows have the positions `value + 0`, `value + 1` … in
//! SQL: `currval('stream_<name>') + offset`. So ids are taken inside the commit, in one round
//! trip, and the order of commits of one writer is the order of its positions (R2).

use chatd_base::{Position, WriterId};

use crate::{Batch, BatchRows, Error, Pool, Result, params, statement::statements};

/// Most rows that one commit may put on a stream.
pub const POSITION_BLOCK: i64 = 10_000;

statements! {
    /// Takes the writer's lock, so that whoever later asks what became of this commit waits for
    /// it, and then the block of positions.
    BEGIN_COMMIT = "SELECT nextval($1::text::regclass)
                    FROM (SELECT pg_advisory_xact_lock($2::int4, $3::int4)) AS locked";
    SET_POSITION = "INSERT INTO stream_positions (stream, writer, position)
                    VALUES ($1, $2, currval($3::text::regclass) + $4::int8)
                    ON CONFLICT (stream, writer) DO UPDATE SET position = excluded.position";
    LIST_POSITIONS = "SELECT stream, writer, position FROM stream_positions";
    /// Waits for a commit of this writer that is still under way.
    LOCK_WRITER = "SELECT pg_advisory_xact_lock($1::int4, $2::int4)";
    GET_POSITION = "SELECT position FROM stream_positions WHERE stream = $1 AND writer = $2";
    INTERN_WRITER = "WITH made AS (INSERT INTO writers (name) SELECT $1
                                   WHERE NOT EXISTS (SELECT 1 FROM writers WHERE name = $1)
                                   ON CONFLICT DO NOTHING RETURNING nid)
                     SELECT nid FROM made UNION ALL SELECT nid FROM writers WHERE name = $1";
}

/// A stream as storage knows it: its number in `stream_positions` and its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId {
    pub number: i16,
    pub sequence: &'static str,
}

/// The stream of room events, which room owners write.
pub const EVENTS: StreamId = StreamId { number: 1, sequence: "stream_events" };

/// Number of the instance called `name`, made if it is new.
pub async fn intern_writer(pool: &Pool, name: &str) -> Result<WriterId> {
    for _ in 0..20 {
        if let Some(row) = pool.query_opt(&INTERN_WRITER, &[&name]).await? {
            return Ok(WriterId(row.get(0)));
        }
    }
    Err(Error::Corrupt(format!("the writer {name} could not be numbered")))
}

/// Starts a commit of `writer` on `stream`; must come before statements that use `currval`.
/// The index of the result is for [`base_of`].
pub fn begin(batch: &mut Batch, stream: StreamId, writer: WriterId) -> usize {
    batch
        .add(&BEGIN_COMMIT, params![stream.sequence, i32::from(stream.number), i32::from(writer.0)])
}

/// First position of a commit that has been made.
pub fn base_of(rows: &BatchRows, begun: usize) -> Result<Position> {
    rows.of(begun)
        .first()
        .map(|row| Position(row.get(0)))
        .ok_or_else(|| Error::Corrupt("a commit took no position".to_owned()))
}

/// Ends a commit: the writer's position is that of the last of its `count` rows.
pub fn advance(batch: &mut Batch, stream: StreamId, writer: WriterId, count: usize) {
    debug_assert!(count > 0 && count as i64 <= POSITION_BLOCK);
    let last = i64::try_from(count).unwrap_or(POSITION_BLOCK) - 1;
    batch.add(&SET_POSITION, params![stream.number, writer.0, stream.sequence, last]);
}

/// All positions: (stream number, writer, position).
pub async fn list(pool: &Pool) -> Result<Vec<(i16, WriterId, Position)>> {
    let rows = pool.query(&LIST_POSITIONS, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), WriterId(row.get(1)), Position(row.get(2)))).collect())
}

/// The writer's durable position, after any commit of it that is under way. Tells what became of
/// a commit whose answer was lost.
pub async fn settled(pool: &Pool, stream: StreamId, writer: WriterId) -> Result<Position> {
    let mut batch = Batch::new();
    batch.add(&LOCK_WRITER, params![i32::from(stream.number), i32::from(writer.0)]);
    let read = batch.add(&GET_POSITION, params![stream.number, writer.0]);
    let rows = pool.commit(batch).await?;
    Ok(rows.of(read).first().map_or(Position(0), |row| Position(row.get(0))))
}
