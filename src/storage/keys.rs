//! Identity keys, one-time keys and fallback keys of devices, and what `/keys/query` reads.

use chatd_base::UserNid;

use crate::{Batch, BatchRows, Pool, Result, Row, params, statement::statements};

statements! {
    GET_DEVICE_KEYS = "SELECT keys FROM device_keys WHERE user_nid = $1 AND device_id = $2";
    UPSERT_DEVICE_KEYS = "INSERT INTO device_keys (user_nid, device_id, keys) VALUES ($1, $2, $3)
                          ON CONFLICT (user_nid, device_id) DO UPDATE SET keys = excluded.keys";
    LIST_ONE_TIME_KEYS = "SELECT k.algorithm, k.key_id, k.key
                          FROM unnest($3::text[], $4::text[]) AS wanted(algorithm, key_id)
                          JOIN one_time_keys k
                          ON k.user_nid = $1 AND k.device_id = $2
                             AND k.algorithm = wanted.algorithm AND k.key_id = wanted.key_id";
    INSERT_ONE_TIME_KEYS = "INSERT INTO one_time_keys
                                (user_nid, device_id, algorithm, key_id, key, added_ts)
                            SELECT $1, $2, algorithm, key_id, key, $6
                            FROM unnest($3::text[], $4::text[], $5::text[])
                                 AS rows(algorithm, key_id, key)
                            ON CONFLICT DO NOTHING";
    /// A fallback key counts as unused again only if it is another key.
    UPSERT_FALLBACK_KEYS = "INSERT INTO fallback_keys (user_nid, device_id, algorithm, key_id, key)
                            SELECT $1, $2, algorithm, key_id, key
                            FROM unnest($3::text[], $4::text[], $5::text[])
                                 AS rows(algorithm, key_id, key)
                            ON CONFLICT (user_nid, device_id, algorithm)
                            DO UPDATE SET key_id = excluded.key_id, key = excluded.key,
                                          used = fallback_keys.used
                                                 AND fallback_keys.key_id = excluded.key_id
                                                 AND fallback_keys.key = excluded.key";
    /// One-time keys by algorithm, and algorithms with an unused fallback key (count is NULL).
    COUNT_KEYS = "SELECT algorithm, count(*) FROM one_time_keys
                  WHERE user_nid = $1 AND device_id = $2 GROUP BY algorithm
                  UNION ALL
                  SELECT algorithm, NULL FROM fallback_keys
                  WHERE user_nid = $1 AND device_id = $2 AND NOT used";
    /// Each one-time key goes to one caller: rows that another claim has locked are passed over.
    /// A device without one-time keys gives its fallback key.
    CLAIM_KEYS = "WITH wanted AS (SELECT DISTINCT u, d, a
                                  FROM unnest($1::int4[], $2::text[], $3::text[]) AS w(u, d, a)),
                  picked AS MATERIALIZED (
                      SELECT w.u, w.d, w.a, k.key_id
                      FROM wanted w CROSS JOIN LATERAL (
                          SELECT o.key_id FROM one_time_keys o
                          WHERE o.user_nid = w.u AND o.device_id = w.d AND o.algorithm = w.a
                          ORDER BY o.added_ts, o.key_id LIMIT 1 FOR UPDATE SKIP LOCKED) k),
                  taken AS (
                      DELETE FROM one_time_keys o USING picked p
                      WHERE o.user_nid = p.u AND o.device_id = p.d AND o.algorithm = p.a
                            AND o.key_id = p.key_id
                      RETURNING o.user_nid, o.device_id, o.algorithm, o.key_id, o.key),
                  fallen_back AS (
                      UPDATE fallback_keys f SET used = true FROM wanted w
                      WHERE f.user_nid = w.u AND f.device_id = w.d AND f.algorithm = w.a
                            AND NOT EXISTS (SELECT 1 FROM picked p
                                            WHERE p.u = w.u AND p.d = w.d AND p.a = w.a)
                      RETURNING f.user_nid, f.device_id, f.algorithm, f.key_id, f.key)
                  SELECT user_nid, device_id, algorithm, key_id, key FROM taken
                  UNION ALL
                  SELECT user_nid, device_id, algorithm, key_id, key FROM fallen_back";
    /// Everything that `/keys/query` shows of the users, in one statement: 'd' device keys with
    /// the display name, 'm', 's' and 'u' cross-signing keys, 'g' signatures by the user or by
    /// the asking user ($2).
    LIST_KEYS = "SELECT 'd'::\"char\", k.user_nid, k.device_id, k.keys, d.display_name, NULL::int4
                 FROM device_keys k
                 JOIN devices d ON d.user_nid = k.user_nid AND d.device_id = k.device_id
                 WHERE k.user_nid = ANY($1::int4[])
                 UNION ALL
                 SELECT kind, user_nid, '', key, NULL, NULL FROM cross_signing_keys
                 WHERE user_nid = ANY($1::int4[]) AND (kind <> 'u' OR user_nid = $2)
                 UNION ALL
                 SELECT 'g', user_nid, target, signature, key_id, signer FROM key_signatures
                 WHERE user_nid = ANY($1::int4[]) AND (signer = user_nid OR signer = $2)";
    LIST_DEVICES = "SELECT user_nid, device_id FROM devices WHERE user_nid = ANY($1::int4[])";
    DELETE_DEVICE_KEYS = "DELETE FROM device_keys
                          WHERE user_nid = $1 AND device_id = ANY($2::text[])";
    DELETE_ONE_TIME_KEYS = "DELETE FROM one_time_keys
                            WHERE user_nid = $1 AND device_id = ANY($2::text[])";
    DELETE_FALLBACK_KEYS = "DELETE FROM fallback_keys
                            WHERE user_nid = $1 AND device_id = ANY($2::text[])";
    DELETE_SIGNATURES = "DELETE FROM key_signatures
                         WHERE user_nid = $1 AND target = ANY($2::text[])";
}

/// A one-time or fallback key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub algorithm: String,
    pub key_id: String,
    /// JSON: a string, or an object with signatures.
    pub key: String,
}

fn columns(keys: &[Key]) -> (Vec<String>, Vec<String>, Vec<String>) {
    let column = |of: fn(&Key) -> &String| keys.iter().map(|key| of(key).clone()).collect();
    (column(|key| &key.algorithm), column(|key| &key.key_id), column(|key| &key.key))
}

/// The identity keys that a device has uploaded.
pub async fn get_device_keys(pool: &Pool, user: UserNid, device: &str) -> Result<Option<String>> {
    let row = pool.query_opt(&GET_DEVICE_KEYS, &[&user.0, &device]).await?;
    Ok(row.map(|row| row.get(0)))
}

/// Replaces the identity keys of a device.
pub fn set_device_keys(batch: &mut Batch, user: UserNid, device: &str, keys: &str) {
    batch.add(&UPSERT_DEVICE_KEYS, params![user.0, device.to_owned(), keys.to_owned()]);
}

/// Those of `wanted` (by algorithm and id) that the device has uploaded and nobody has claimed.
pub async fn list_one_time_keys(
    pool: &Pool,
    user: UserNid,
    device: &str,
    wanted: &[Key],
) -> Result<Vec<Key>> {
    let (algorithms, ids, _) = columns(wanted);
    let rows = pool.query(&LIST_ONE_TIME_KEYS, &[&user.0, &device, &algorithms, &ids]).await?;
    let key = |row: &Row| Key { algorithm: row.get(0), key_id: row.get(1), key: row.get(2) };
    Ok(rows.iter().map(key).collect())
}

/// Adds one-time keys; ids that are there already keep their key.
pub fn insert_one_time_keys(
    batch: &mut Batch,
    user: UserNid,
    device: &str,
    keys: &[Key],
    now_ms: i64,
) {
    let (algorithms, ids, json) = columns(keys);
    batch.add(
        &INSERT_ONE_TIME_KEYS,
        params![user.0, device.to_owned(), algorithms, ids, json, now_ms],
    );
}

/// Replaces the fallback keys of the algorithms in `keys`, of which there must be one each.
pub fn set_fallback_keys(batch: &mut Batch, user: UserNid, device: &str, keys: &[Key]) {
    let (algorithms, ids, json) = columns(keys);
    batch.add(&UPSERT_FALLBACK_KEYS, params![user.0, device.to_owned(), algorithms, ids, json]);
}

/// (algorithm, number of one-time keys), or (algorithm, `None`) for an unused fallback key.
pub async fn count(pool: &Pool, user: UserNid, device: &str) -> Result<Vec<(String, Option<i64>)>> {
    let rows = pool.query(&COUNT_KEYS, &[&user.0, &device]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Takes one key for each (user, device, algorithm), in one statement. No two callers get the
/// same one-time key. The index of the result is for [`claimed`].
pub fn claim(batch: &mut Batch, wanted: &[(UserNid, String, String)]) -> usize {
    let users: Vec<i32> = wanted.iter().map(|(user, ..)| user.0).collect();
    let (devices, algorithms): (Vec<String>, Vec<String>) =
        wanted.iter().map(|(_, device, algorithm)| (device.clone(), algorithm.clone())).unzip();
    batch.add(&CLAIM_KEYS, params![users, devices, algorithms])
}

/// What a claim that has been made took: it is gone for good.
pub fn claimed(rows: &BatchRows, claim: usize) -> Vec<(UserNid, String, Key)> {
    let claimed = |row: &Row| {
        let key = Key { algorithm: row.get(2), key_id: row.get(3), key: row.get(4) };
        (UserNid(row.get(0)), row.get(1), key)
    };
    rows.of(claim).iter().map(claimed).collect()
}

/// One row of what `/keys/query` shows of a user.
#[derive(Clone, Debug)]
pub enum KeyRow {
    Device {
        device_id: String,
        keys: String,
        display_name: Option<String>,
    },
    /// 'm' master, 's' self-signing, 'u' user-signing.
    CrossSigning {
        kind: u8,
        key: String,
    },
    /// A signature on a device's keys or on a cross-signing key.
    Signature {
        target: String,
        signer: UserNid,
        key_id: String,
        signature: String,
    },
}

/// Keys and signatures of `users` as `asking` may see them.
pub async fn list(
    pool: &Pool,
    users: &[UserNid],
    asking: UserNid,
) -> Result<Vec<(UserNid, KeyRow)>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_KEYS, &[&users, &asking.0]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(1)), key_row(row))).collect())
}

fn key_row(row: &Row) -> KeyRow {
    match row.get::<_, i8>(0).to_ne_bytes()[0] {
        b'd' => {
            KeyRow::Device { device_id: row.get(2), keys: row.get(3), display_name: row.get(4) }
        }
        b'g' => KeyRow::Signature {
            target: row.get(2),
            signature: row.get(3),
            key_id: row.get(4),
            signer: UserNid(row.get(5)),
        },
        kind => KeyRow::CrossSigning { kind, key: row.get(3) },
    }
}

/// All devices of `users`, with keys or without.
pub async fn list_devices(pool: &Pool, users: &[UserNid]) -> Result<Vec<(UserNid, String)>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_DEVICES, &[&users]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}

/// Removes everything that belongs to devices which are being deleted: keys and signatures on
/// them.
pub fn delete_devices(batch: &mut Batch, user: UserNid, devices: &[String]) {
    for statement in
        [&DELETE_DEVICE_KEYS, &DELETE_ONE_TIME_KEYS, &DELETE_FALLBACK_KEYS, &DELETE_SIGNATURES]
    {
        batch.add(statement, params![user.0, devices.to_vec()]);
    }
}
