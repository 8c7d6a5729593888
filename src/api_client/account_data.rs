//! Account data and tags. <https://spec.matrix.org/latest/client-server-api/#client-config>

use std::sync::Arc;

use chatd_base::{Error, Refusal, Requester, Result};
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, Reply, Request, Routes, v3};
use ruma_common::{OwnedRoomId, OwnedUserId};
use serde_json::{Map, Value, json, value::to_raw_value};

use crate::App;

pub fn routes() -> Routes<App> {
    const GLOBAL: &str = "/user/{userId}/account_data/{type}";
    const ROOM: &str = "/user/{userId}/rooms/{roomId}/account_data/{type}";
    const TAG: &str = "/user/{userId}/rooms/{roomId}/tags/{tag}";
    Routes::of(RouterName::ClientAccountData)
        .get(v3(GLOBAL), Auth::Guest, get_global)
        .put(v3(GLOBAL), Auth::Guest, put_global)
        .home(Home::Stream(StreamName::AccountData))
        .get(v3(ROOM), Auth::Guest, get_room)
        .put(v3(ROOM), Auth::Guest, put_room)
        .home(Home::Stream(StreamName::AccountData))
        .get(v3("/user/{userId}/rooms/{roomId}/tags"), Auth::Guest, get_tags)
        .put(v3(TAG), Auth::Guest, put_tag)
        .home(Home::Stream(StreamName::AccountData))
        .delete(v3(TAG), Auth::Guest, delete_tag)
        .home(Home::Stream(StreamName::AccountData))
}

/// The caller, who must be the user in the path.
pub(crate) fn myself(request: &Request) -> Result<&Arc<Requester>> {
    let who = request.who()?;
    let user: OwnedUserId = request.arg_as("userId")?;
    if user != who.user_id {
        return Err(Refusal::forbidden("this belongs to another user").into());
    }
    Ok(who)
}

async fn get_global(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    if request.arg("type") == "m.push_rules" {
        let rules = app.users.push_rules.content(who.user, &who.user_id).await?;
        return Reply::json(&rules);
    }
    Ok(Reply::raw_json(app.users.account_data.get(who, None, request.arg("type")).await?))
}

async fn put_global(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let content: Map<String, Value> = request.json()?;
    let content = to_raw_value(&content).map_err(Error::internal)?.into();
    app.users.account_data.put(who, None, request.arg("type"), content).await?;
    Ok(Reply::empty())
}

async fn get_room(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let room: OwnedRoomId = request.arg_as("roomId")?;
    let content = app.users.account_data.get(who, Some(&room), request.arg("type")).await?;
    Ok(Reply::raw_json(content))
}

async fn put_room(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let room: OwnedRoomId = request.arg_as("roomId")?;
    let content: Map<String, Value> = request.json()?;
    let content = to_raw_value(&content).map_err(Error::internal)?.into();
    app.users.account_data.put(who, Some(&room), request.arg("type"), content).await?;
    Ok(Reply::empty())
}

async fn get_tags(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let room: OwnedRoomId = request.arg_as("roomId")?;
    let tags = app.users.account_data.tags(who, &room).await?;
    Reply::json(&json!({ "tags": tags }))
}

async fn put_tag(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let room: OwnedRoomId = request.arg_as("roomId")?;
    let content: Map<String, Value> = request.json_or_empty()?;
    app.users.account_data.put_tag(who, &room, request.arg("tag"), content).await?;
    Ok(Reply::empty())
}

async fn delete_tag(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let room: OwnedRoomId = request.arg_as("roomId")?;
    app.users.account_data.delete_tag(who, &room, request.arg("tag")).await?;
    Ok(Reply::empty())
}
