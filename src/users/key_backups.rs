//! Backups of room keys. Only the current version takes keys; which of two keys for a session
//! stays is decided by the statement that writes them.

use std::collections::BTreeMap;

use chatd_base::{Error, Refusal, Result, UserNid};
use chatd_storage::room_keys::{self, Outcome, RoomKey, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::Deps;

/// Most keys in one request (R8).
const MAX_KEYS: usize = 50_000;
const CREATE_ATTEMPTS: usize = 5;

/// A key as clients send and get it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BackedUpKey {
    pub first_message_index: u32,
    pub forwarded_count: u32,
    pub is_verified: bool,
    pub session_data: Map<String, Value>,
}

/// Keys by session, as clients send and get them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Sessions {
    pub sessions: BTreeMap<String, BackedUpKey>,
}

/// Keys by room.
pub type Rooms = BTreeMap<String, Sessions>;

/// Which keys of a version.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    pub room: Option<&'a str>,
    pub session: Option<&'a str>,
}

/// Key backups of this server's users.
pub struct KeyBackups {
    deps: Deps,
}

impl KeyBackups {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self { deps: deps.clone() }
    }

    /// Makes a new, empty backup, which becomes the current one.
    pub async fn create(
        &self,
        user: UserNid,
        algorithm: &str,
        auth_data: &Map<String, Value>,
    ) -> Result<String> {
        let auth_data = Value::Object(auth_data.clone()).to_string();
        for _ in 0..CREATE_ATTEMPTS {
            match room_keys::create_version(&self.deps.pool, user, algorithm, &auth_data).await {
                Err(error) if error.is_unique_violation() => {}
                outcome => return Ok(outcome?.to_string()),
            }
        }
        Err(Error::internal("a backup version could not be numbered"))
    }

    /// A version as clients see it, or (`None`) the current one; refuses with 404.
    pub async fn info(&self, user: UserNid, version: Option<&str>) -> Result<Value> {
        let found = self.find(user, version).await?;
        let auth_data: Value = serde_json::from_str(&found.auth_data).map_err(Error::internal)?;
        Ok(json!({
            "version": found.version.to_string(),
            "algorithm": found.algorithm,
            "auth_data": auth_data,
            "etag": found.etag.to_string(),
            "count": found.count,
        }))
    }

    async fn find(&self, user: UserNid, version: Option<&str>) -> Result<Version> {
        let number = version.map(parse_version).transpose()?;
        let found = room_keys::get_version(&self.deps.pool, user, number).await?;
        found.ok_or_else(unknown_version)
    }

    /// Replaces the `auth_data` of a version, whose algorithm cannot change.
    pub async fn update(
        &self,
        user: UserNid,
        version: &str,
        algorithm: &str,
        auth_data: &Map<String, Value>,
    ) -> Result<()> {
        let found = self.find(user, Some(version)).await?;
        if found.algorithm != algorithm {
            return Err(Refusal::invalid_param("the algorithm cannot be changed").into());
        }
        let auth_data = Value::Object(auth_data.clone()).to_string();
        let pool = &self.deps.pool;
        if room_keys::set_auth_data(pool, user, found.version, &auth_data).await? {
            Ok(())
        } else {
            Err(unknown_version())
        }
    }

    /// Deletes a version with its keys.
    pub async fn delete(&self, user: UserNid, version: &str) -> Result<()> {
        let number = parse_version(version)?;
        if room_keys::delete_version(&self.deps.pool, user, number).await? {
            Ok(())
        } else {
            Err(unknown_version())
        }
    }

    /// Puts keys into the current version; returns etag and count.
    pub async fn put_keys(&self, user: UserNid, version: &str, rooms: Rooms) -> Result<Value> {
        let mut rows = Vec::new();
        for (room_id, sessions) in rooms {
            for (session_id, key) in sessions.sessions {
                rows.push(RoomKey {
                    room_id: room_id.clone(),
                    session_id,
                    first_message_index: key.first_message_index.into(),
                    forwarded_count: key.forwarded_count.into(),
                    is_verified: key.is_verified,
                    session_data: Value::Object(key.session_data).to_string(),
                });
            }
        }
        if rows.len() > MAX_KEYS {
            return Err(Refusal::too_large("too many keys in one request").into());
        }
        let number = parse_version(version)?;
        match room_keys::upsert(&self.deps.pool, user, number, rows).await? {
            Outcome::Done { etag, count } => Ok(done(etag, count)),
            Outcome::NotCurrent { current: Some(current) } => Err(wrong_version(current)),
            Outcome::NotCurrent { current: None } => Err(unknown_version()),
        }
    }

    /// Keys of a version by room and session.
    pub async fn get_keys(&self, user: UserNid, version: &str, scope: Scope<'_>) -> Result<Rooms> {
        let number = parse_version(version)?;
        let pool = &self.deps.pool;
        let found = room_keys::list(pool, user, number, scope.room, scope.session).await?;
        let mut rooms = Rooms::new();
        for key in found.ok_or_else(unknown_version)? {
            let shown = BackedUpKey {
                first_message_index: u32::try_from(key.first_message_index).unwrap_or(u32::MAX),
                forwarded_count: u32::try_from(key.forwarded_count).unwrap_or(u32::MAX),
                is_verified: key.is_verified,
                session_data: serde_json::from_str(&key.session_data).map_err(Error::internal)?,
            };
            rooms.entry(key.room_id).or_default().sessions.insert(key.session_id, shown);
        }
        Ok(rooms)
    }

    /// Removes keys of a version; returns etag and count.
    pub async fn delete_keys(
        &self,
        user: UserNid,
        version: &str,
        scope: Scope<'_>,
    ) -> Result<Value> {
        let number = parse_version(version)?;
        let pool = &self.deps.pool;
        match room_keys::delete(pool, user, number, scope.room, scope.session).await? {
            Outcome::Done { etag, count } => Ok(done(etag, count)),
            Outcome::NotCurrent { .. } => Err(unknown_version()),
        }
    }
}

fn done(etag: i64, count: i64) -> Value {
    json!({ "etag": etag.to_string(), "count": count })
}

/// Versions are numbers; another text names none.
fn parse_version(version: &str) -> Result<i64> {
    version.parse().map_err(|_| unknown_version())
}

fn unknown_version() -> Error {
    Refusal::not_found("unknown backup version").into()
}

fn wrong_version(current: i64) -> Error {
    Refusal::new(403, "M_WRONG_ROOM_KEYS_VERSION", "this is not the current backup version")
        .with("current_version", current.to_string())
        .into()
}
