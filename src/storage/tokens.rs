//! Access, refresh, login and OpenID tokens, by their SHA-256.

use chatd_base::UserNid;

use crate::{Batch, BatchRows, Pool, Result, params, statement::statements};

statements! {
    GET_ACCESS_TOKEN = "SELECT t.id, t.user_nid, n.user_id, t.device_id, t.valid_until_ts,
                               t.refresh_digest IS NOT NULL AND NOT t.used, u.is_admin, u.is_guest,
                               u.locked
                        FROM access_tokens t
                        JOIN users u ON u.user_nid = t.user_nid
                        JOIN users_nid n ON n.nid = t.user_nid
                        WHERE t.digest = $1 AND NOT u.deactivated";
    MARK_USED = "UPDATE access_tokens SET used = true WHERE id = $1";
    GET_VALIDATED = "SELECT validated_ts FROM access_tokens WHERE id = $1";
    SET_VALIDATED = "UPDATE access_tokens SET validated_ts = $2 WHERE id = $1";
    /// Waits for a deletion of the device that is under way.
    UPSERT_DEVICE = "INSERT INTO devices (user_nid, device_id, display_name) VALUES ($1, $2, $3)
                     ON CONFLICT (user_nid, device_id)
                     DO UPDATE SET display_name = coalesce(devices.display_name,
                                                           excluded.display_name)";
    DELETE_ACCESS_OF_DEVICE = "DELETE FROM access_tokens WHERE user_nid = $1 AND device_id = $2";
    DELETE_REFRESH_OF_DEVICE = "DELETE FROM refresh_tokens WHERE user_nid = $1 AND device_id = $2";
    INSERT_ACCESS_TOKEN = "INSERT INTO access_tokens (digest, user_nid, device_id, valid_until_ts,
                                                      refresh_digest)
                           SELECT $1, user_nid, device_id, $4::int8, $5::bytea FROM devices
                           WHERE user_nid = $2 AND device_id = $3
                           FOR SHARE
                           RETURNING id";
    INSERT_REFRESH_TOKEN = "INSERT INTO refresh_tokens (digest, user_nid, device_id, expires_ts,
                                                        session_ends_ts)
                            SELECT $1, user_nid, device_id, $4::int8, $5::int8 FROM devices
                            WHERE user_nid = $2 AND device_id = $3
                            FOR SHARE";
    GET_REFRESH_TOKEN = "SELECT r.user_nid, n.user_id, r.device_id, r.expires_ts, r.session_ends_ts,
                                EXISTS (SELECT 1 FROM refresh_tokens f WHERE f.digest = r.next_digest
                                        AND f.next_digest IS NOT NULL)
                                OR EXISTS (SELECT 1 FROM access_tokens a
                                           WHERE a.refresh_digest = r.next_digest AND a.used)
                         FROM refresh_tokens r
                         JOIN users_nid n ON n.nid = r.user_nid
                         JOIN users u ON u.user_nid = r.user_nid
                         WHERE r.digest = $1 AND NOT u.deactivated";
    DELETE_UNUSED_ACCESS = "DELETE FROM access_tokens
                            WHERE refresh_digest = (SELECT next_digest FROM refresh_tokens
                                                    WHERE digest = $1)";
    DELETE_UNUSED_REFRESH = "DELETE FROM refresh_tokens
                             WHERE digest = (SELECT next_digest FROM refresh_tokens
                                             WHERE digest = $1)";
    SET_NEXT_REFRESH = "UPDATE refresh_tokens SET next_digest = $2 WHERE digest = $1";
    DELETE_PREVIOUS_REFRESH = "DELETE FROM refresh_tokens WHERE next_digest = $1";
    DELETE_LONG_EXPIRED = "DELETE FROM access_tokens
                           WHERE user_nid = $1 AND device_id = $2 AND valid_until_ts < $3";
    DELETE_ACCESS_TOKEN = "DELETE FROM access_tokens WHERE id = $1";
    INSERT_LOGIN_TOKEN = "INSERT INTO login_tokens (digest, user_nid, expires_ts)
                          VALUES ($1, $2, $3)";
    TAKE_LOGIN_TOKEN = "DELETE FROM login_tokens WHERE digest = $1 RETURNING user_nid, expires_ts";
    INSERT_OPENID_TOKEN = "INSERT INTO openid_tokens (digest, user_nid, expires_ts)
                           VALUES ($1, $2, $3)";
    GET_OPENID_HOLDER = "SELECT n.user_id FROM openid_tokens t
                         JOIN users u ON u.user_nid = t.user_nid
                         JOIN users_nid n ON n.nid = t.user_nid
                         WHERE t.digest = $1 AND t.expires_ts > $2 AND NOT u.deactivated";
    DELETE_EXPIRED_OPENID_TOKENS = "DELETE FROM openid_tokens WHERE expires_ts < $1";
    DELETE_EXPIRED_LOGIN_TOKENS = "DELETE FROM login_tokens WHERE expires_ts < $1";
}

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// A known access token and the account behind it.
#[derive(Clone, Debug)]
pub struct AccessToken {
    pub id: i64,
    pub user: UserNid,
    pub user_id: String,
    pub device_id: Option<String>,
    pub valid_until_ts: Option<i64>,
    /// Its first use must be noted, since that ends the refresh token before it.
    pub first_use_counts: bool,
    pub is_admin: bool,
    pub is_guest: bool,
    pub locked: bool,
}

/// The access token, unless its account has been deactivated.
pub async fn get(pool: &Pool, digest: &Digest) -> Result<Option<AccessToken>> {
    let row = pool.query_opt(&GET_ACCESS_TOKEN, &[&digest.as_slice()]).await?;
    Ok(row.map(|row| AccessToken {
        id: row.get(0),
        user: UserNid(row.get(1)),
        user_id: row.get(2),
        device_id: row.get(3),
        valid_until_ts: row.get(4),
        first_use_counts: row.get(5),
        is_admin: row.get(6),
        is_guest: row.get(7),
        locked: row.get(8),
    }))
}

/// Notes the first use of a token that came with a refresh token.
pub async fn mark_used(pool: &Pool, id: i64) -> Result<()> {
    pool.execute(&MARK_USED, &[&id]).await?;
    Ok(())
}

/// When the holder of the token last authenticated again, in milliseconds.
pub async fn get_validated(pool: &Pool, id: i64) -> Result<Option<i64>> {
    Ok(pool.query_opt(&GET_VALIDATED, &[&id]).await?.and_then(|row| row.get(0)))
}

/// Notes that the holder of the token has authenticated again.
pub async fn set_validated(pool: &Pool, id: i64, now_ms: i64) -> Result<()> {
    pool.execute(&SET_VALIDATED, &[&id, &now_ms]).await?;
    Ok(())
}

/// Tokens that are to be given to a device.
pub struct NewTokens {
    pub user: UserNid,
    pub device_id: String,
    pub access: Digest,
    pub valid_until_ts: Option<i64>,
    pub refresh: Option<NewRefresh>,
}

/// The refresh token among them.
pub struct NewRefresh {
    pub digest: Digest,
    pub expires_ts: Option<i64>,
    pub session_ends_ts: Option<i64>,
}

/// Makes the device if it is new, ends the tokens that it had, and gives it `tokens`. A device
/// that has a display name keeps it.
pub fn insert_login(batch: &mut Batch, tokens: NewTokens, display_name: Option<String>) {
    let (user, device) = (tokens.user.0, tokens.device_id.clone());
    batch.add(&UPSERT_DEVICE, params![user, device.clone(), display_name]);
    batch.add(&DELETE_ACCESS_OF_DEVICE, params![user, device.clone()]);
    batch.add(&DELETE_REFRESH_OF_DEVICE, params![user, device]);
    insert(batch, tokens);
}

/// Adds the tokens if the device still exists; returns the index of the statement that tells.
fn insert(batch: &mut Batch, tokens: NewTokens) -> usize {
    let (user, device) = (tokens.user.0, tokens.device_id);
    let refresh_digest = tokens.refresh.as_ref().map(|refresh| refresh.digest.to_vec());
    if let Some(refresh) = tokens.refresh {
        batch.add(
            &INSERT_REFRESH_TOKEN,
            params![
                refresh.digest.to_vec(),
                user,
                device.clone(),
                refresh.expires_ts,
                refresh.session_ends_ts,
            ],
        );
    }
    batch.add(
        &INSERT_ACCESS_TOKEN,
        params![tokens.access.to_vec(), user, device, tokens.valid_until_ts, refresh_digest],
    )
}

/// A known refresh token.
#[derive(Clone, Debug)]
pub struct RefreshToken {
    pub user: UserNid,
    pub user_id: String,
    pub device_id: String,
    pub expires_ts: Option<i64>,
    pub session_ends_ts: Option<i64>,
    /// What it was exchanged for has been used already.
    pub is_spent: bool,
}

/// The refresh token, unless its account has been deactivated.
pub async fn get_refresh(pool: &Pool, digest: &Digest) -> Result<Option<RefreshToken>> {
    let row = pool.query_opt(&GET_REFRESH_TOKEN, &[&digest.as_slice()]).await?;
    Ok(row.map(|row| RefreshToken {
        user: UserNid(row.get(0)),
        user_id: row.get(1),
        device_id: row.get(2),
        expires_ts: row.get(3),
        session_ends_ts: row.get(4),
        is_spent: row.get(5),
    }))
}

/// Exchanges the refresh token `old` for `tokens`. What an earlier exchange of `old` gave out
/// ends; so do the predecessor of `old` and access tokens that expired before `expired_before`.
/// False if the device has gone meanwhile.
pub async fn exchange_refresh(
    pool: &Pool,
    old: &Digest,
    tokens: NewTokens,
    expired_before: i64,
) -> Result<bool> {
    let mut batch = Batch::new();
    let next = tokens.refresh.as_ref().map(|refresh| refresh.digest.to_vec());
    batch.add(&DELETE_UNUSED_ACCESS, params![old.to_vec()]);
    batch.add(&DELETE_UNUSED_REFRESH, params![old.to_vec()]);
    batch.add(&SET_NEXT_REFRESH, params![old.to_vec(), next]);
    batch.add(&DELETE_PREVIOUS_REFRESH, params![old.to_vec()]);
    batch.add(
        &DELETE_LONG_EXPIRED,
        params![tokens.user.0, tokens.device_id.clone(), expired_before],
    );
    let inserted = insert(&mut batch, tokens);
    let rows: BatchRows = pool.commit(batch).await?;
    Ok(!rows.of(inserted).is_empty())
}

/// Ends one access token that belongs to no device.
pub fn delete(batch: &mut Batch, id: i64) {
    batch.add(&DELETE_ACCESS_TOKEN, params![id]);
}

/// Stores a one-time token for logging in.
pub async fn insert_login_token(
    pool: &Pool,
    digest: &Digest,
    user: UserNid,
    expires_ts: i64,
) -> Result<()> {
    pool.execute(&INSERT_LOGIN_TOKEN, &[&digest.as_slice(), &user.0, &expires_ts]).await?;
    Ok(())
}

/// Uses a one-time token up; returns whose it was and when it expires.
pub async fn take_login_token(pool: &Pool, digest: &Digest) -> Result<Option<(UserNid, i64)>> {
    let row = pool.query_opt(&TAKE_LOGIN_TOKEN, &[&digest.as_slice()]).await?;
    Ok(row.map(|row| (UserNid(row.get(0)), row.get(1))))
}

/// Stores a token by which a user shows who they are.
pub async fn insert_openid_token(
    pool: &Pool,
    digest: &Digest,
    user: UserNid,
    expires_ts: i64,
) -> Result<()> {
    pool.execute(&INSERT_OPENID_TOKEN, &[&digest.as_slice(), &user.0, &expires_ts]).await?;
    Ok(())
}

/// Whose such a token is, if it is good at `now_ms` and its account has not been deactivated.
pub async fn get_openid_holder(
    pool: &Pool,
    digest: &Digest,
    now_ms: i64,
) -> Result<Option<String>> {
    let row = pool.query_opt(&GET_OPENID_HOLDER, &[&digest.as_slice(), &now_ms]).await?;
    Ok(row.map(|row| row.get(0)))
}

/// Removes such tokens when they have expired.
pub async fn delete_expired_openid_tokens(pool: &Pool, now_ms: i64) -> Result<()> {
    pool.execute(&DELETE_EXPIRED_OPENID_TOKENS, &[&now_ms]).await?;
    Ok(())
}

/// Removes one-time tokens that nobody has used in time.
pub async fn delete_expired_login_tokens(pool: &Pool, now_ms: i64) -> Result<()> {
    pool.execute(&DELETE_EXPIRED_LOGIN_TOKENS, &[&now_ms]).await?;
    Ok(())
}
