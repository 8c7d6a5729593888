//! Accounts of this server's users.

use chatd_base::UserNid;

use crate::{Batch, Pool, Result, Row, params, statement::statements};

statements! {
    LIST_ACCOUNTS_BY_LOCALPART = "SELECT u.user_nid, n.user_id, u.password_hash, u.created_ts,
                                         u.is_admin, u.is_guest, u.deactivated, u.erased, u.locked,
                                         u.user_type
                                  FROM users u JOIN users_nid n ON n.nid = u.user_nid
                                  WHERE lower(u.localpart) = lower($1) LIMIT 16";
    GET_ACCOUNT = "SELECT u.user_nid, n.user_id, u.password_hash, u.created_ts,
                          u.is_admin, u.is_guest, u.deactivated, u.erased, u.locked, u.user_type
                   FROM users u JOIN users_nid n ON n.nid = u.user_nid
                   WHERE u.user_nid = $1";
    LIST_LOCAL_USERS = "SELECT user_nid FROM users WHERE user_nid = ANY($1::int4[])";
    INSERT_ACCOUNT = "INSERT INTO users (user_nid, localpart, password_hash, created_ts, is_admin,
                                         is_guest, user_type)
                      VALUES ($1, $2, $3, $4, $5, $6, $7)";
    SET_PASSWORD = "UPDATE users SET password_hash = $2 WHERE user_nid = $1";
    DEACTIVATE = "UPDATE users SET deactivated = true, erased = erased OR $2, password_hash = NULL
                  WHERE user_nid = $1";
    DELETE_PUSH_RULES = "DELETE FROM push_rules WHERE user_nid = $1";
    DELETE_ACCOUNT_DATA = "DELETE FROM account_data WHERE user_nid = $1";
    DELETE_FILTERS = "DELETE FROM filters WHERE user_nid = $1";
    DELETE_PRESENCE = "DELETE FROM presence WHERE user_nid = $1";
    DELETE_LOGIN_TOKENS = "DELETE FROM login_tokens WHERE user_nid = $1";
    DELETE_CROSS_SIGNING_KEYS = "DELETE FROM cross_signing_keys WHERE user_nid = $1";
    DELETE_KEY_SIGNATURES = "DELETE FROM key_signatures WHERE user_nid = $1";
    /// Closed accounts that are still in rooms or invited to some.
    LIST_CLOSED_IN_ROOMS = "SELECT u.user_nid, n.user_id
                            FROM users u JOIN users_nid n ON n.nid = u.user_nid
                            WHERE u.deactivated
                              AND EXISTS (SELECT FROM memberships m WHERE m.user_nid = u.user_nid
                                          AND m.membership IN ('j', 'i', 'k'))
                            LIMIT $1";
}

/// One account.
#[derive(Clone, Debug)]
pub struct Account {
    pub user: UserNid,
    pub user_id: String,
    /// Absent if the account cannot log in with a password.
    pub password_hash: Option<String>,
    pub created_ts: i64,
    pub is_admin: bool,
    pub is_guest: bool,
    pub deactivated: bool,
    pub erased: bool,
    pub locked: bool,
    pub user_type: Option<String>,
}

fn account(row: &Row) -> Account {
    Account {
        user: UserNid(row.get(0)),
        user_id: row.get(1),
        password_hash: row.get(2),
        created_ts: row.get(3),
        is_admin: row.get(4),
        is_guest: row.get(5),
        deactivated: row.get(6),
        erased: row.get(7),
        locked: row.get(8),
        user_type: row.get(9),
    }
}

/// Accounts whose local part is `localpart` but for case: usually one, several only in databases
/// that allowed upper-case names once.
pub async fn list_by_localpart(pool: &Pool, localpart: &str) -> Result<Vec<Account>> {
    let rows = pool.query(&LIST_ACCOUNTS_BY_LOCALPART, &[&localpart]).await?;
    Ok(rows.iter().map(account).collect())
}

/// The account of `user`, if it is one of this server.
pub async fn get(pool: &Pool, user: UserNid) -> Result<Option<Account>> {
    Ok(pool.query_opt(&GET_ACCOUNT, &[&user.0]).await?.as_ref().map(account))
}

/// Those of `users` who have an account here, deactivated ones included.
pub async fn list_existing(pool: &Pool, users: &[UserNid]) -> Result<Vec<UserNid>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_LOCAL_USERS, &[&users]).await?;
    Ok(rows.iter().map(|row| UserNid(row.get(0))).collect())
}

/// An account that is to be made.
pub struct NewAccount {
    pub user: UserNid,
    pub localpart: String,
    pub password_hash: Option<String>,
    pub created_ts: i64,
    pub is_admin: bool,
    pub is_guest: bool,
    pub user_type: Option<String>,
}

/// Makes an account; one that exists fails the batch (unique violation).
pub fn insert(batch: &mut Batch, new: NewAccount) {
    batch.add(
        &INSERT_ACCOUNT,
        params![
            new.user.0,
            new.localpart,
            new.password_hash,
            new.created_ts,
            new.is_admin,
            new.is_guest,
            new.user_type,
        ],
    );
}

/// Replaces the password's hash.
pub fn set_password(batch: &mut Batch, user: UserNid, hash: &str) {
    batch.add(&SET_PASSWORD, params![user.0, hash.to_owned()]);
}

/// Closes the account for good, with everything of it that nobody else sees; its name stays taken.
pub fn deactivate(batch: &mut Batch, user: UserNid, erase: bool) {
    batch.add(&DEACTIVATE, params![user.0, erase]);
    for statement in [
        &DELETE_PUSH_RULES,
        &DELETE_ACCOUNT_DATA,
        &DELETE_FILTERS,
        &DELETE_PRESENCE,
        &DELETE_LOGIN_TOKENS,
        &DELETE_CROSS_SIGNING_KEYS,
        &DELETE_KEY_SIGNATURES,
    ] {
        batch.add(statement, params![user.0]);
    }
    crate::room_keys::delete_all(batch, user);
}

/// At most `limit` closed accounts that have not left all their rooms.
pub async fn list_closed_in_rooms(pool: &Pool, limit: i64) -> Result<Vec<(UserNid, String)>> {
    let rows = pool.query(&LIST_CLOSED_IN_ROOMS, &[&limit]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}
