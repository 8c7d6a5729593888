//! User-interactive authentication that is under way, and registration tokens.

use chatd_base::UserNid;

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    INSERT_SESSION = "INSERT INTO uia_sessions (session, created_ts, method, path, body, user_nid)
                      VALUES ($1, $2, $3, $4, $5, $6)";
    GET_SESSION = "SELECT s.created_ts, s.method, s.path, s.body, s.user_nid, s.registration_token,
                          ARRAY(SELECT stage FROM uia_stages t WHERE t.session = s.session)
                   FROM uia_sessions s WHERE s.session = $1";
    INSERT_STAGE = "INSERT INTO uia_stages (session, stage)
                    SELECT session, $2::text FROM uia_sessions WHERE session = $1
                    ON CONFLICT DO NOTHING";
    DELETE_SESSION = "DELETE FROM uia_sessions WHERE session = $1";
    DELETE_EXPIRED_SESSIONS = "DELETE FROM uia_sessions WHERE created_ts < $1";
    /// The row lock makes reservations of one token happen one after the other.
    LOCK_REGISTRATION_TOKEN = "SELECT 1 FROM registration_tokens WHERE token = $1 FOR UPDATE";
    RESERVE_REGISTRATION_TOKEN =
        "UPDATE uia_sessions s SET registration_token = r.token
         FROM registration_tokens r
         WHERE s.session = $1 AND r.token = $2
           AND (r.expires_ts IS NULL OR r.expires_ts > $3)
           AND (r.uses_allowed IS NULL
                OR r.uses_allowed > r.completed + (SELECT count(*) FROM uia_sessions o
                                                   WHERE o.registration_token = r.token
                                                     AND o.session <> s.session
                                                     AND o.created_ts > $4))
         RETURNING 1";
    IS_REGISTRATION_TOKEN_GOOD =
        "SELECT 1 FROM registration_tokens r
         WHERE r.token = $1 AND (r.expires_ts IS NULL OR r.expires_ts > $2)
           AND (r.uses_allowed IS NULL
                OR r.uses_allowed > r.completed + (SELECT count(*) FROM uia_sessions o
                                                   WHERE o.registration_token = r.token
                                                     AND o.created_ts > $3))";
    USE_REGISTRATION_TOKEN = "SELECT chatd_use_registration_token($1::text)";
}

/// One session.
#[derive(Clone, Debug)]
pub struct Session {
    pub created_ts: i64,
    pub method: String,
    pub path: String,
    /// JSON body of the first request, without secrets.
    pub body: String,
    /// Who asked; `None` for registration.
    pub user: Option<UserNid>,
    pub registration_token: Option<String>,
    /// Stages that are done.
    pub completed: Vec<String>,
}

/// Starts a session.
pub async fn insert(pool: &Pool, id: &str, session: &Session) -> Result<()> {
    let user = session.user.map_or(0, |user| user.0);
    pool.execute(
        &INSERT_SESSION,
        &[&id, &session.created_ts, &session.method, &session.path, &session.body, &user],
    )
    .await?;
    Ok(())
}

/// The session and the stages that are done.
pub async fn get(pool: &Pool, id: &str) -> Result<Option<Session>> {
    let row = pool.query_opt(&GET_SESSION, &[&id]).await?;
    Ok(row.map(|row| Session {
        created_ts: row.get(0),
        method: row.get(1),
        path: row.get(2),
        body: row.get(3),
        user: Some(UserNid(row.get(4))).filter(|user| user.0 != 0),
        registration_token: row.get(5),
        completed: row.get(6),
    }))
}

/// Notes that a stage is done.
pub async fn insert_stage(pool: &Pool, id: &str, stage: &str) -> Result<()> {
    pool.execute(&INSERT_STAGE, &[&id, &stage]).await?;
    Ok(())
}

/// Ends a session, as part of what it was for.
pub fn delete(batch: &mut Batch, id: &str) {
    batch.add(&DELETE_SESSION, params![id.to_owned()]);
}

/// Removes sessions that began before `before_ms`.
pub async fn delete_expired(pool: &Pool, before_ms: i64) -> Result<()> {
    pool.execute(&DELETE_EXPIRED_SESSIONS, &[&before_ms]).await?;
    Ok(())
}

/// Reserves one use of the registration token for the session; false if there is none left.
/// Sessions that began before `since_ms` reserve nothing any more.
pub async fn reserve_registration_token(
    pool: &Pool,
    id: &str,
    token: &str,
    now_ms: i64,
    since_ms: i64,
) -> Result<bool> {
    let mut batch = Batch::new();
    batch.add(&LOCK_REGISTRATION_TOKEN, params![token.to_owned()]);
    let reserved = batch.add(
        &RESERVE_REGISTRATION_TOKEN,
        params![id.to_owned(), token.to_owned(), now_ms, since_ms],
    );
    Ok(!pool.commit(batch).await?.of(reserved).is_empty())
}

/// Whether somebody could register with the token now.
pub async fn is_registration_token_good(
    pool: &Pool,
    token: &str,
    now_ms: i64,
    since_ms: i64,
) -> Result<bool> {
    let row = pool.query_opt(&IS_REGISTRATION_TOKEN_GOOD, &[&token, &now_ms, &since_ms]).await?;
    Ok(row.is_some())
}

/// Takes one use of the token; a token without one fails the batch
/// ([`crate::Error::is_token_used_up`]).
pub fn use_registration_token(batch: &mut Batch, token: &str) {
    batch.add(&USE_REGISTRATION_TOKEN, params![token.to_owned()]);
}
