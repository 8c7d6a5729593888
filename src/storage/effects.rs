//! What this instance has done for others, each by a key that is committed together with the
//! effect: whoever has not heard the answer asks again, of any instance, and gets the same.

use chatd_base::{Position, WriterId};
use uuid::Uuid;

use crate::{Batch, Pool, Result, params, positions::StreamId, statement::statements};

statements! {
    INSERT_POSITIONS = "INSERT INTO effects (key, writer, position)
                        SELECT key, $2, currval($3::text::regclass) + $4::int8
                        FROM unnest($1::uuid[]) AS key";
    INSERT_RESULTS = "INSERT INTO effects (key, result)
                      SELECT * FROM unnest($1::uuid[], $2::text[])";
    GET_EFFECT = "SELECT writer, position, result FROM effects WHERE key = $1";
    DELETE_OLD_EFFECTS = "DELETE FROM effects WHERE added_ts < $1";
}

/// What an earlier request with the same key has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Who has put rows on a stream, and where the commit of them ends.
    pub at: Option<(WriterId, Position)>,
    /// What was made.
    pub result: Option<String>,
}

/// Commits keys with rows of `writer`, the last of which is at `currval + last`. A key that is
/// there already fails the batch (unique violation).
pub fn insert_positions(
    batch: &mut Batch,
    stream: StreamId,
    writer: WriterId,
    last: i64,
    keys: Vec<Uuid>,
) {
    if !keys.is_empty() {
        batch.add(&INSERT_POSITIONS, params![keys, writer.0, stream.sequence, last]);
    }
}

/// Commits keys with what was made. One that is there already fails the batch (unique violation).
pub fn insert_results(batch: &mut Batch, results: Vec<(Uuid, String)>) {
    if !results.is_empty() {
        let (keys, results): (Vec<Uuid>, Vec<String>) = results.into_iter().unzip();
        batch.add(&INSERT_RESULTS, params![keys, results]);
    }
}

/// What the request with this key has done, if it has.
pub async fn get(pool: &Pool, key: Uuid) -> Result<Option<Effect>> {
    let row = pool.query_opt(&GET_EFFECT, &[&key]).await?;
    Ok(row.map(|row| {
        let (writer, position): (Option<i16>, Option<i64>) = (row.get(0), row.get(1));
        Effect {
            at: writer.zip(position).map(|(w, p)| (WriterId(w), Position(p))),
            result: row.get(2),
        }
    }))
}

/// Forgets what was done before `before_ms`.
pub async fn delete_old(pool: &Pool, before_ms: i64) -> Result<u64> {
    pool.execute(&DELETE_OLD_EFFECTS, &[&before_ms]).await
}
