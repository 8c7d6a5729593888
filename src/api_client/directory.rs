//! Aliases of rooms, and whether the directory shows a room.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Home, Reply, Request, Routes, unstable, v3};
use ruma_common::{OwnedRoomAliasId, OwnedRoomId};
use serde::Deserialize;
use serde_json::json;

use crate::App;

pub fn routes() -> Routes<App> {
    let aliases =
        v3("/rooms/{roomId}/aliases").or(unstable("/org.matrix.msc2432/rooms/{roomId}/aliases"));
    Routes::of(RouterName::ClientDirectory)
        .get(v3("/directory/room/{roomAlias}"), Auth::None, get_alias)
        .put(v3("/directory/room/{roomAlias}"), Auth::Token, put_alias)
        .home(Home::RoomInBody("room_id"))
        .delete(v3("/directory/room/{roomAlias}"), Auth::Token, delete_alias)
        .home(Home::Room("roomAlias"))
        .get(aliases, Auth::Guest, list_aliases)
        .get(v3("/directory/list/room/{roomId}"), Auth::None, get_visibility)
        .put(v3("/directory/list/room/{roomId}"), Auth::Token, put_visibility)
        .home(Home::Room("roomId"))
}

/// The room behind an alias.
async fn get_alias(app: Arc<App>, req: Request) -> Result<Reply> {
    let alias: OwnedRoomAliasId = req.arg_as("roomAlias")?;
    Reply::json(&app.federation.queries.alias(&alias).await?)
}

#[derive(Deserialize)]
struct AliasBody {
    room_id: OwnedRoomId,
}

/// Gives a room an alias.
async fn put_alias(app: Arc<App>, req: Request) -> Result<Reply> {
    let alias: OwnedRoomAliasId = req.arg_as("roomAlias")?;
    let body: AliasBody = req.json()?;
    app.rooms.add_alias(req.who()?, &alias, &body.room_id).await?;
    Ok(Reply::empty())
}

async fn delete_alias(app: Arc<App>, req: Request) -> Result<Reply> {
    let alias: OwnedRoomAliasId = req.arg_as("roomAlias")?;
    app.rooms.remove_alias(req.who()?, &alias).await?;
    Ok(Reply::empty())
}

/// Local aliases of a room.
async fn list_aliases(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let aliases = app.reader.aliases(req.who()?.user, &room).await?;
    Reply::json(&json!({ "aliases": aliases }))
}

/// Whether the directory shows a room.
async fn get_visibility(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let word = if app.reader.is_published(&room).await? { "public" } else { "private" };
    Reply::json(&json!({ "visibility": word }))
}

#[derive(Deserialize)]
struct VisibilityBody {
    visibility: Option<String>,
}

async fn put_visibility(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let body: VisibilityBody = req.json_or_empty()?;
    let is_public = match body.visibility.as_deref() {
        None | Some("public") => true,
        Some("private") => false,
        Some(_) => {
            return Err(Refusal::invalid_param("visibility is `public` or `private`").into());
        }
    };
    app.rooms.publish(req.who()?, &room, is_public).await?;
    Ok(Reply::empty())
}
