//! Filters of users.

use chatd_base::UserNid;
use uuid::Uuid;

use crate::{Pool, Result, statement::statements};

statements! {
    /// The same filter keeps its id. Two requests that make one at the same time may collide on
    /// the id; the later one inserts nothing and tries again.
    INTERN_FILTER = "WITH made AS (
                         INSERT INTO filters (user_nid, id, digest, filter)
                         SELECT $1, (SELECT coalesce(max(id) + 1, 0) FROM filters WHERE user_nid = $1),
                                $2, $3
                         WHERE NOT EXISTS (SELECT 1 FROM filters
                                           WHERE user_nid = $1 AND digest = $2)
                         ON CONFLICT DO NOTHING RETURNING id)
                     SELECT id FROM made
                     UNION ALL
                     SELECT id FROM filters WHERE user_nid = $1 AND digest = $2";
    GET_FILTER = "SELECT filter FROM filters WHERE user_nid = $1 AND id = $2";
}

/// Attempts to get an id while other requests take them.
const ATTEMPTS: usize = 20;

/// The id of a filter of `user`, made if it is new. `digest` stands for `filter`.
pub async fn intern(pool: &Pool, user: UserNid, digest: Uuid, filter: &str) -> Result<i64> {
    for _ in 0..ATTEMPTS {
        if let Some(row) = pool.query_opt(&INTERN_FILTER, &[&user.0, &digest, &filter]).await? {
            return Ok(row.get(0));
        }
    }
    Err(crate::Error::Corrupt("a filter could not be numbered".to_owned()))
}

/// The filter with that id.
pub async fn get(pool: &Pool, user: UserNid, id: i64) -> Result<Option<String>> {
    let row = pool.query_opt(&GET_FILTER, &[&user.0, &id]).await?;
    Ok(row.map(|row| row.get(0)))
}
