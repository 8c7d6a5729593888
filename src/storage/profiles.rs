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
    UPSERT_PROFILE_CHANGE = "INSERT INTO profile_changes (user_nid) VALUES ($1)
                             ON CONFLICT (user_nid)
                             DO UPDATE SET version = profile_changes.version + 1";
    LIST_PROFILE_CHANGES = "SELECT c.user_nid, u.user_id, c.version FROM profile_changes c
                            JOIN users_nid u ON u.nid = c.user_nid
                            WHERE ($1::int4 IS NULL OR c.user_nid = $1)
                            ORDER BY c.user_nid LIMIT $2";
    DELETE_PROFILE_CHANGE = "DELETE FROM profile_changes WHERE user_nid = $1 AND version = $2";
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

/// Notes, with the change itself, that the user's rooms are to hear of it.
pub fn note_change(batch: &mut Batch, user: UserNid) {
    batch.add(&UPSERT_PROFILE_CHANGE, params![user.0]);
}

/// A profile that may not have reached all rooms of its user.
#[derive(Clone, Debug)]
pub struct Change {
    pub user: UserNid,
    pub user_id: String,
    pub version: i64,
}

/// Up to `limit` profiles that rooms are to hear of: all, or that of one user.
pub async fn list_changes(pool: &Pool, user: Option<UserNid>, limit: i64) -> Result<Vec<Change>> {
    let user = user.map(|user| user.0);
    let rows = pool.query(&LIST_PROFILE_CHANGES, &[&user, &limit]).await?;
    let change = |row: &tokio_postgres::Row| Change {
        user: UserNid(row.get(0)),
        user_id: row.get(1),
        version: row.get(2),
    };
    Ok(rows.iter().map(change).collect())
}

/// Forgets a change that has reached all rooms, unless a later one has followed.
pub async fn delete_change(pool: &Pool, change: &Change) -> Result<()> {
    pool.execute(&DELETE_PROFILE_CHANGE, &[&change.user.0, &change.version]).await?;
    Ok(())
}
