//! Backups of room keys: versions, and the keys in them.

use chatd_base::UserNid;

use crate::{Batch, BatchRows, Pool, Result, Row, params, statement::statements};

statements! {
    CREATE_VERSION = "INSERT INTO room_key_versions (user_nid, version, algorithm, auth_data)
                      SELECT $1, coalesce(max(version), 0) + 1, $2, $3
                      FROM room_key_versions WHERE user_nid = $1
                      RETURNING version";
    /// `$2` is NULL for the current version.
    GET_VERSION = "SELECT v.version, v.algorithm, v.auth_data, v.etag,
                          (SELECT count(*) FROM room_keys k
                           WHERE k.user_nid = v.user_nid AND k.version = v.version)
                   FROM room_key_versions v
                   WHERE v.user_nid = $1 AND NOT v.is_deleted
                         AND ($2::int8 IS NULL OR v.version = $2)
                   ORDER BY v.version DESC LIMIT 1";
    UPDATE_VERSION = "UPDATE room_key_versions SET auth_data = $3
                      WHERE user_nid = $1 AND version = $2 AND NOT is_deleted";
    DELETE_VERSION = "UPDATE room_key_versions SET is_deleted = true
                      WHERE user_nid = $1 AND version = $2 AND NOT is_deleted";
    DELETE_KEYS_OF_VERSION = "DELETE FROM room_keys WHERE user_nid = $1 AND version = $2";
    /// Locks the version, so that writes to it form a line, and tells which one is current.
    LOCK_VERSION = "SELECT (SELECT max(version) FROM room_key_versions
                            WHERE user_nid = $1 AND NOT is_deleted)
                    FROM room_key_versions v
                    WHERE v.user_nid = $1 AND v.version = $2 AND NOT v.is_deleted FOR UPDATE";
    /// A key replaces another one if it is verified and that one is not; if both are the same in
    /// that, if it starts earlier; then, if it was forwarded less often. Nothing is written unless
    /// the version is the current one. Tells the new etag if anything changed.
    UPSERT_KEYS = "WITH changed AS (
                       INSERT INTO room_keys AS old
                           (user_nid, version, room_id, session_id, first_message_index,
                            forwarded_count, is_verified, session_data)
                       SELECT $1, $2, r, s, i, f, v, d
                       FROM unnest($3::text[], $4::text[], $5::int8[], $6::int8[], $7::bool[],
                                   $8::text[]) AS rows(r, s, i, f, v, d)
                       WHERE $2 = (SELECT max(version) FROM room_key_versions
                                   WHERE user_nid = $1 AND NOT is_deleted)
                       ON CONFLICT (user_nid, version, room_id, session_id) DO UPDATE
                       SET first_message_index = excluded.first_message_index,
                           forwarded_count = excluded.forwarded_count,
                           is_verified = excluded.is_verified,
                           session_data = excluded.session_data
                       WHERE (excluded.is_verified, old.first_message_index, old.forwarded_count)
                             > (old.is_verified, excluded.first_message_index,
                                excluded.forwarded_count)
                       RETURNING 1)
                   UPDATE room_key_versions SET etag = etag + 1
                   WHERE user_nid = $1 AND version = $2 AND EXISTS (SELECT 1 FROM changed)";
    DELETE_KEYS = "WITH changed AS (
                       DELETE FROM room_keys
                       WHERE user_nid = $1 AND version = $2
                             AND ($3::text IS NULL OR room_id = $3)
                             AND ($4::text IS NULL OR session_id = $4)
                       RETURNING 1)
                   UPDATE room_key_versions SET etag = etag + 1
                   WHERE user_nid = $1 AND version = $2 AND EXISTS (SELECT 1 FROM changed)";
    LIST_ROOM_KEYS = "SELECT room_id, session_id, first_message_index, forwarded_count,
                             is_verified, session_data
                      FROM room_keys
                      WHERE user_nid = $1 AND version = $2
                            AND ($3::text IS NULL OR room_id = $3)
                            AND ($4::text IS NULL OR session_id = $4)
                      ORDER BY room_id, session_id";
    DELETE_ALL_VERSIONS = "DELETE FROM room_key_versions WHERE user_nid = $1";
    DELETE_ALL_KEYS = "DELETE FROM room_keys WHERE user_nid = $1";
}

/// One version of a user's backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub version: i64,
    pub algorithm: String,
    /// JSON
    pub auth_data: String,
    pub etag: i64,
    /// Keys in it.
    pub count: i64,
}

fn version(row: &Row) -> Version {
    Version {
        version: row.get(0),
        algorithm: row.get(1),
        auth_data: row.get(2),
        etag: row.get(3),
        count: row.get(4),
    }
}

/// Makes a new version, which becomes the current one. Fails with a unique violation if another
/// request does the same at the same time.
pub async fn create_version(
    pool: &Pool,
    user: UserNid,
    algorithm: &str,
    auth_data: &str,
) -> Result<i64> {
    let row = pool.query_opt(&CREATE_VERSION, &[&user.0, &algorithm, &auth_data]).await?;
    row.map(|row| row.get(0))
        .ok_or_else(|| crate::Error::Corrupt("an INSERT returned no row".to_owned()))
}

/// The version with that number, or the current one.
pub async fn get_version(
    pool: &Pool,
    user: UserNid,
    number: Option<i64>,
) -> Result<Option<Version>> {
    let row = pool.query_opt(&GET_VERSION, &[&user.0, &number]).await?;
    Ok(row.as_ref().map(version))
}

/// Replaces the `auth_data`; false if there is no such version.
pub async fn set_auth_data(
    pool: &Pool,
    user: UserNid,
    number: i64,
    auth_data: &str,
) -> Result<bool> {
    Ok(pool.execute(&UPDATE_VERSION, &[&user.0, &number, &auth_data]).await? > 0)
}

/// Deletes a version with all its keys; false if there is no such version.
pub async fn delete_version(pool: &Pool, user: UserNid, number: i64) -> Result<bool> {
    let mut batch = Batch::new();
    let locked = batch.add(&LOCK_VERSION, params![user.0, number]);
    batch.add(&DELETE_VERSION, params![user.0, number]);
    batch.add(&DELETE_KEYS_OF_VERSION, params![user.0, number]);
    let rows = pool.commit(batch).await?;
    Ok(!rows.of(locked).is_empty())
}

/// A key in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomKey {
    pub room_id: String,
    pub session_id: String,
    pub first_message_index: i64,
    pub forwarded_count: i64,
    pub is_verified: bool,
    /// JSON
    pub session_data: String,
}

/// What became of a change of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done {
        etag: i64,
        count: i64,
    },
    /// The version does not exist, or is not the current one, which is told if there is one.
    NotCurrent {
        current: Option<i64>,
    },
}

/// Puts keys into version `number`, which must be the current one. `keys` must not name a session
/// twice.
pub async fn upsert(
    pool: &Pool,
    user: UserNid,
    number: i64,
    keys: Vec<RoomKey>,
) -> Result<Outcome> {
    let (mut rooms, mut sessions, mut firsts) = (vec![], vec![], vec![]);
    let (mut forwarded, mut verified, mut data) = (vec![], vec![], vec![]);
    for key in keys {
        rooms.push(key.room_id);
        sessions.push(key.session_id);
        firsts.push(key.first_message_index);
        forwarded.push(key.forwarded_count);
        verified.push(key.is_verified);
        data.push(key.session_data);
    }
    let mut batch = Batch::new();
    let locked = batch.add(&LOCK_VERSION, params![user.0, number]);
    batch.add(
        &UPSERT_KEYS,
        params![user.0, number, rooms, sessions, firsts, forwarded, verified, data],
    );
    let now = batch.add(&GET_VERSION, params![user.0, Some(number)]);
    let current = batch.add(&GET_VERSION, params![user.0, None::<i64>]);
    let rows = pool.commit(batch).await?;
    let is_current = rows.of(locked).first().and_then(|row| row.get(0)) == Some(number);
    Ok(if is_current { done(&rows, now, current) } else { not_current(&rows, current) })
}

/// Removes keys of a version, all of them or those of a room or a session.
pub async fn delete(
    pool: &Pool,
    user: UserNid,
    number: i64,
    room_id: Option<&str>,
    session_id: Option<&str>,
) -> Result<Outcome> {
    let mut batch = Batch::new();
    batch.add(&LOCK_VERSION, params![user.0, number]);
    let (room_id, session_id) = (room_id.map(str::to_owned), session_id.map(str::to_owned));
    batch.add(&DELETE_KEYS, params![user.0, number, room_id, session_id]);
    let now = batch.add(&GET_VERSION, params![user.0, Some(number)]);
    let current = batch.add(&GET_VERSION, params![user.0, None::<i64>]);
    let rows = pool.commit(batch).await?;
    Ok(done(&rows, now, current))
}

fn done(rows: &BatchRows, now: usize, current: usize) -> Outcome {
    match rows.of(now).first().map(version) {
        Some(version) => Outcome::Done { etag: version.etag, count: version.count },
        None => not_current(rows, current),
    }
}

fn not_current(rows: &BatchRows, current: usize) -> Outcome {
    Outcome::NotCurrent { current: rows.of(current).first().map(|row| version(row).version) }
}

/// Keys of a version, all of them or those of a room or a session; `None` if there is no such
/// version.
pub async fn list(
    pool: &Pool,
    user: UserNid,
    number: i64,
    room_id: Option<&str>,
    session_id: Option<&str>,
) -> Result<Option<Vec<RoomKey>>> {
    let mut batch = Batch::new();
    let known = batch.add(&GET_VERSION, params![user.0, Some(number)]);
    let (room_id, session_id) = (room_id.map(str::to_owned), session_id.map(str::to_owned));
    let listed = batch.add(&LIST_ROOM_KEYS, params![user.0, number, room_id, session_id]);
    let rows = pool.commit(batch).await?;
    if rows.of(known).is_empty() {
        return Ok(None);
    }
    let key = |row: &Row| RoomKey {
        room_id: row.get(0),
        session_id: row.get(1),
        first_message_index: row.get(2),
        forwarded_count: row.get(3),
        is_verified: row.get(4),
        session_data: row.get(5),
    };
    Ok(Some(rows.of(listed).iter().map(key).collect()))
}

/// Deletes every backup of a user (deactivation).
pub fn delete_all(batch: &mut Batch, user: UserNid) {
    batch.add(&DELETE_ALL_VERSIONS, params![user.0]);
    batch.add(&DELETE_ALL_KEYS, params![user.0]);
}
