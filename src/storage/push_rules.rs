//! Push rules that differ from the server's defaults.

use std::collections::BTreeMap;

use chatd_base::UserNid;

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    UPSERT_PUSH_RULES = "INSERT INTO push_rules (user_nid, pos, rules)
                         SELECT u, currval('stream_push_rules') + o, r
                         FROM unnest($1::int4[], $2::int8[], $3::text[]) AS rows(u, o, r)
                         ON CONFLICT (user_nid)
                         DO UPDATE SET pos = excluded.pos, rules = excluded.rules";

    LIST_PUSH_RULES = "SELECT user_nid, rules FROM push_rules WHERE user_nid = ANY($1::int4[])";
}

/// Writes (user, offset, rules) at `currval + offset`; of several for a user the last counts.
pub fn upsert(batch: &mut Batch, rows: Vec<(UserNid, i64, &str)>) {
    let last: BTreeMap<i32, (i64, &str)> =
        rows.into_iter().map(|(user, offset, rules)| (user.0, (offset, rules))).collect();
    let users: Vec<i32> = last.keys().copied().collect();
    let offsets: Vec<i64> = last.values().map(|(offset, _)| *offset).collect();
    let rules: Vec<String> = last.values().map(|(_, rules)| (*rules).to_owned()).collect();
    batch.add(&UPSERT_PUSH_RULES, params![users, offsets, rules]);
}

/// Rules of those `users` who have changed theirs.
pub async fn list(pool: &Pool, users: &[UserNid]) -> Result<Vec<(UserNid, String)>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_PUSH_RULES, &[&users]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}
