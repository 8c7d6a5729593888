//! Profiles of this server's users, one row a field.

use chatd_base::UserNid;

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    LIST_PROFILE_FIELDS = "SELECT user_nid, name, value FROM profile_fields
                           WHERE user_nid = ANY($1::int4[])";
    UPSERT_PROFILE_FIELD = "INSERT INTO profile_fields (user_nid, name, value)
                            VALUES ($1, $2, $3)
                            ON CONFLICT (user_nid, name) DO UPDATE SET value = excluded.value";
    DELETE_PROFILE_FIELD = "DELETE FROM profile_fields WHERE user_nid = $1 AND name = $2";
    DELETE_PROFILE = "DELETE FROM profile_fields WHERE user_nid = $1";
}

/// One field of a profile; `value` is JSON.
#[derive(Clone, Debug)]
pub struct Field {
    pub user: UserNid,
    pub name: String,
    pub value: String,
}

/// All fields of all `users`.
pub async fn list(pool: &Pool, users: &[UserNid]) -> Result<Vec<Field>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_PROFILE_FIELDS, &[&users]).await?;
    Ok(rows
        .iter()
        .map(|row| Field { user: UserNid(row.get(0)), name: row.get(1), value: row.get(2) })
        .collect())
}

/// Writes one field.
pub fn upsert(batch: &mut Batch, field: Field) {
    batch.add(&UPSERT_PROFILE_FIELD, params![field.user.0, field.name, field.value]);
}

/// Removes one field.
pub fn delete(batch: &mut Batch, user: UserNid, name: &str) {
    batch.add(&DELETE_PROFILE_FIELD, params![user.0, name.to_owned()]);
}

/// Removes all fields of a user.
pub fn delete_all(batch: &mut Batch, user: UserNid) {
    batch.add(&DELETE_PROFILE, params![user.0]);
}
