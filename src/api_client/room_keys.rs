//! Backups of room keys.
//! <https://spec.matrix.org/latest/client-server-api/#server-side-key-backups>

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, v3};
use chatd_users::key_backups::{BackedUpKey, Rooms, Scope, Sessions};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::App;

const BODY_LIMIT: usize = 16 * 1024 * 1024;
const VERSION: &str = "/room_keys/version/{version}";
const ALL: &str = "/room_keys/keys";
const ROOM: &str = "/room_keys/keys/{roomId}";
const SESSION: &str = "/room_keys/keys/{roomId}/{sessionId}";

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRoomKeys)
        .post(v3("/room_keys/version"), Auth::Token, create)
        .get(v3("/room_keys/version"), Auth::Token, info)
        .get(v3(VERSION), Auth::Token, info)
        .put(v3(VERSION), Auth::Token, update)
        .delete(v3(VERSION), Auth::Token, delete)
        .put(v3(ALL), Auth::Token, put_all)
        .body_limit(BODY_LIMIT)
        .put(v3(ROOM), Auth::Token, put_room)
        .body_limit(BODY_LIMIT)
        .put(v3(SESSION), Auth::Token, put_session)
        .get(v3(ALL), Auth::Token, get_all)
        .get(v3(ROOM), Auth::Token, get_room)
        .get(v3(SESSION), Auth::Token, get_session)
        .delete(v3(ALL), Auth::Token, delete_keys)
        .delete(v3(ROOM), Auth::Token, delete_keys)
        .delete(v3(SESSION), Auth::Token, delete_keys)
}

#[derive(Deserialize)]
struct Backup {
    algorithm: String,
    auth_data: Map<String, Value>,
    version: Option<String>,
}

async fn create(app: Arc<App>, request: Request) -> Result<Reply> {
    let user = request.who()?.user;
    let body: Backup = request.json()?;
    let version = app.users.key_backups.create(user, &body.algorithm, &body.auth_data).await?;
    Reply::json(&json!({ "version": version }))
}

async fn info(app: Arc<App>, request: Request) -> Result<Reply> {
    let version = Some(request.arg("version")).filter(|version| !version.is_empty());
    Reply::json(&app.users.key_backups.info(request.who()?.user, version).await?)
}

async fn update(app: Arc<App>, request: Request) -> Result<Reply> {
    let user = request.who()?.user;
    let version = request.arg("version");
    let body: Backup = request.json()?;
    if body.version.is_some_and(|other| other != version) {
        return Err(Refusal::invalid_param("version in the body is another one").into());
    }
    app.users.key_backups.update(user, version, &body.algorithm, &body.auth_data).await?;
    Ok(Reply::empty())
}

async fn delete(app: Arc<App>, request: Request) -> Result<Reply> {
    app.users.key_backups.delete(request.who()?.user, request.arg("version")).await?;
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct Which {
    version: String,
}

async fn put_all(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        rooms: Rooms,
    }
    let Body { rooms } = request.json()?;
    put(&app, &request, rooms).await
}

async fn put_room(app: Arc<App>, request: Request) -> Result<Reply> {
    let sessions: Sessions = request.json()?;
    put(&app, &request, [(request.arg("roomId").to_owned(), sessions)].into()).await
}

async fn put_session(app: Arc<App>, request: Request) -> Result<Reply> {
    let key: BackedUpKey = request.json()?;
    let sessions = Sessions { sessions: [(request.arg("sessionId").to_owned(), key)].into() };
    put(&app, &request, [(request.arg("roomId").to_owned(), sessions)].into()).await
}

async fn put(app: &App, request: &Request, rooms: Rooms) -> Result<Reply> {
    let Which { version } = request.query()?;
    let user = request.who()?.user;
    Reply::json(&app.users.key_backups.put_keys(user, &version, rooms).await?)
}

/// What the path names; arguments that it lacks are empty.
fn scope(request: &Request) -> Scope<'_> {
    let arg = |name| Some(request.arg(name)).filter(|value| !value.is_empty());
    Scope { room: arg("roomId"), session: arg("sessionId") }
}

async fn get(app: &App, request: &Request) -> Result<Rooms> {
    let Which { version } = request.query()?;
    app.users.key_backups.get_keys(request.who()?.user, &version, scope(request)).await
}

async fn get_all(app: Arc<App>, request: Request) -> Result<Reply> {
    Reply::json(&json!({ "rooms": get(&app, &request).await? }))
}

async fn get_room(app: Arc<App>, request: Request) -> Result<Reply> {
    let mut rooms = get(&app, &request).await?;
    Reply::json(&rooms.remove(request.arg("roomId")).unwrap_or_default())
}

async fn get_session(app: Arc<App>, request: Request) -> Result<Reply> {
    let mut rooms = get(&app, &request).await?;
    let sessions = rooms.remove(request.arg("roomId"));
    match sessions.and_then(|mut room| room.sessions.remove(request.arg("sessionId"))) {
        Some(key) => Reply::json(&key),
        None => Err(Refusal::not_found("no room keys found").into()),
    }
}

async fn delete_keys(app: Arc<App>, request: Request) -> Result<Reply> {
    let Which { version } = request.query()?;
    let user = request.who()?.user;
    Reply::json(&app.users.key_backups.delete_keys(user, &version, scope(&request)).await?)
}
