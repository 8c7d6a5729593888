//! How far each writer of each stream has got, and the ids that a commit takes.
//!
//! A stream's sequence goes up by [`POSITION_BLOCK`]. A commit takes one value of it in its
//! first statement ([`begin`]), and its rows have the positions `value + 0`, `value + 1` … in
//! SQL: `currval('stream_<name>') + offset`. So ids are taken inside the commit, in one round
//! trip, and the order of commits of one writer is the order of its positions (R2).
//!
//! A commit says where its writer stands and which process sends it. So of two processes of one
//! name only the later one can write (R6), and a commit whose answer was lost either has happened
//! when [`fate`] returns, or never will once another has followed.

use chatd_base::{Position, WriterId};

use crate::{Batch, BatchRows, Error, Pool, Result, Row, params, statement::statements};

/// Most rows that one commit may put on a stream.
pub const POSITION_BLOCK: i64 = 10_000;

statements! {
    BEGIN_COMMIT = "SELECT chatd_begin_commit($1::int2, $2::int2, $3::int8, $4::int8, $5::text)";
    SET_POSITION = "INSERT INTO stream_positions (stream, writer, position, base)
                    VALUES ($1, $2, currval($3::text::regclass) + $4::int8,
                            currval($3::text::regclass))
                    ON CONFLICT (stream, writer)
                    DO UPDATE SET position = excluded.position, base = excluded.base";
    LIST_POSITIONS = "SELECT stream, writer, position FROM stream_positions WHERE NOT retired";
    LIST_RETIRED = "SELECT stream, writer, position FROM stream_positions WHERE retired";
    RETIRE = "UPDATE stream_positions SET retired = true
              WHERE writer = $1 AND stream <> ALL($2::int2[]) AND NOT retired";
    FATE = "SELECT stands_at, began_at FROM chatd_fate($1::int2, $2::int2, $3::int8)";
    CATCH_UP = "SELECT s, w, stood_at, stands_at FROM unnest($1::int2[], $2::int2[]) AS t(s, w),
                       LATERAL chatd_catch_up(s, w)";
    /// A writer that is new to a stream begins where the furthest one is.
    REGISTER = "INSERT INTO stream_positions (stream, writer, position)
                SELECT s, $2, coalesce((SELECT max(position) FROM stream_positions p
                                        WHERE p.stream = s), 0)
                FROM unnest($1::int2[]) AS s
                ON CONFLICT (stream, writer) DO UPDATE
                SET retired = false,
                    position = greatest(stream_positions.position, excluded.position)
                WHERE stream_positions.retired
                RETURNING stream";
    TAKE_SEAT = "SELECT seat_writer, seat_term FROM chatd_take_seat($1::text)";
    GET_TERM = "SELECT term FROM writers WHERE nid = $1";
}

/// A stream as storage knows it: its number in `stream_positions` and its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId {
    pub number: i16,
    pub sequence: &'static str,
}

/// The stream of room events, which room owners write.
pub const EVENTS: StreamId = StreamId { number: 1, sequence: "stream_events" };

/// The right to write as an instance: held by the last process that took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub writer: WriterId,
    /// Goes up with each process.
    pub term: i64,
}

/// Takes the seat of the instance called `name`, which is numbered if it is new. On return
/// nothing that an earlier process of that name has sent is under way, or will be accepted.
pub async fn take_seat(pool: &Pool, name: &str) -> Result<Seat> {
    let row = pool.query_opt(&TAKE_SEAT, &[&name]).await?;
    row.map(|row| Seat { writer: WriterId(row.get(0)), term: row.get(1) })
        .ok_or_else(|| Error::Corrupt(format!("the writer {name} could not be numbered")))
}

/// Whether no other process has taken the seat.
pub async fn is_seated(pool: &Pool, seat: Seat) -> Result<bool> {
    let row = pool.query_opt(&GET_TERM, &[&seat.writer.0]).await?;
    Ok(row.is_some_and(|row| row.get::<_, i64>(0) == seat.term))
}

/// Starts a commit on `stream`, where the writer stands at `after`; must come before statements
/// that use `currval`. The index of the result is for [`base_of`].
pub fn begin(batch: &mut Batch, stream: StreamId, seat: Seat, after: Position) -> usize {
    batch.add(
        &BEGIN_COMMIT,
        params![stream.number, seat.writer.0, seat.term, after.0, stream.sequence],
    )
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
    Ok(rows.iter().map(known).collect())
}

/// A row of the list.
pub(crate) fn known(row: &Row) -> (i16, WriterId, Position) {
    (row.get(0), WriterId(row.get(1)), Position(row.get(2)))
}

/// Where a writer is in the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub position: Position,
    /// First position of its last commit. What is further was no commit of it, but [`catch_up`].
    pub base: Position,
}

/// Where the writer stands, after any commit of it that is under way. Tells what became of a
/// commit whose answer was lost.
pub async fn fate(pool: &Pool, stream: StreamId, seat: Seat) -> Result<Standing> {
    let row = pool.query_opt(&FATE, &[&stream.number, &seat.writer.0, &seat.term]).await?;
    Ok(row.map_or_else(Standing::default, |row| Standing {
        position: Position(row.get(0)),
        base: Position(row.get(1)),
    }))
}

/// A writer that was moved to where the furthest writer of its stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub stream: i16,
    pub writer: WriterId,
    pub stood_at: Position,
    pub stands_at: Position,
}

/// Moves writers that stand still to where the furthest of their streams are (R5). Passes over no
/// row: a commit that is under way ends first, and later ones are further. Says nothing of writers
/// that have never written. `who` must be sorted.
pub async fn catch_up(pool: &Pool, who: &[(i16, WriterId)]) -> Result<Vec<Step>> {
    let (streams, writers): (Vec<i16>, Vec<i16>) =
        who.iter().map(|(stream, writer)| (*stream, writer.0)).unzip();
    let rows = pool.query(&CATCH_UP, &[&streams, &writers]).await?;
    let step = |row: &Row| Step {
        stream: row.get(0),
        writer: WriterId(row.get(1)),
        stood_at: Position(row.get(2)),
        stands_at: Position(row.get(3)),
    };
    Ok(rows.iter().map(step).collect())
}

/// Takes the writer out of all streams but these: it has written there as another process, and
/// its rows are all at or below where the others are or will be.
pub async fn retire(pool: &Pool, but: &[StreamId], writer: WriterId) -> Result<()> {
    let but: Vec<i16> = but.iter().map(|stream| stream.number).collect();
    pool.execute(&RETIRE, &[&writer.0, &but]).await?;
    Ok(())
}

/// Makes the writer known as one of `streams`, at the position of the furthest. Returns whether it
/// was new to any of them: then it must not write before everybody knows of it, since a token that
/// does not name a writer covers all of its rows below the others.
pub async fn register(pool: &Pool, streams: &[StreamId], writer: WriterId) -> Result<bool> {
    let streams: Vec<i16> = streams.iter().map(|stream| stream.number).collect();
    Ok(!pool.query(&REGISTER, &[&streams, &writer.0]).await?.is_empty())
}
