//! Making rooms, and who is in them.

use std::sync::Arc;

use chatd_base::{Refusal, Requester, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, v3};
use chatd_rooms::{create::CreateRoom, membership::Extra};
use ruma_common::{OwnedRoomId, OwnedRoomOrAliasId, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
        .post(v3("/createRoom"), Auth::Token, create)
        .home(Home::AnyRoomOwner)
        .limit(LimitClass::RoomCreation)
        .post(v3("/join/{roomIdOrAlias}"), Auth::Token, join)
        .home(Home::Room("roomIdOrAlias"))
        .limit(LimitClass::JoinsLocal)
        .post(v3("/rooms/{roomId}/join"), Auth::Token, join_by_id)
        .home(Home::Room("roomId"))
        .limit(LimitClass::JoinsLocal)
        .post(v3("/knock/{roomIdOrAlias}"), Auth::Token, knock)
        .home(Home::Room("roomIdOrAlias"))
        .limit(LimitClass::JoinsLocal)
        .post(v3("/rooms/{roomId}/leave"), Auth::Token, leave)
        .home(Home::Room("roomId"))
        .post(v3("/rooms/{roomId}/forget"), Auth::Token, forget)
        .post(v3("/rooms/{roomId}/invite"), Auth::Token, invite)
        .home(Home::Room("roomId"))
        .post(v3("/rooms/{roomId}/kick"), Auth::Token, kick)
        .home(Home::Room("roomId"))
        .limit(LimitClass::Message)
        .post(v3("/rooms/{roomId}/ban"), Auth::Token, ban)
        .home(Home::Room("roomId"))
        .limit(LimitClass::Message)
        .post(v3("/rooms/{roomId}/unban"), Auth::Token, unban)
        .home(Home::Room("roomId"))
        .limit(LimitClass::Message)
}

/// Makes a repeat of a request that was carried have one effect.
fn key(req: &Request) -> Option<Uuid> {
    req.key().map(Uuid::from_u128)
}

async fn create(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let body: CreateRoom = req.json_or_empty()?;
    for user in &body.invite {
        limit_invite(&app, who, None, user)?;
    }
    let room_id = app.rooms.create(&who.user_id, body, key(&req)).await?;
    Reply::json(&json!({ "room_id": room_id }))
}

#[derive(Deserialize)]
struct Body {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    user_id: Option<OwnedUserId>,
    reason: Option<String>,
    #[serde(default)]
    medium: Option<Value>,
}

impl Target {
    fn user(&self) -> Result<&UserId> {
        match (&self.user_id, &self.medium) {
            (Some(user), _) => Ok(user),
            (None, Some(_)) => Err(Refusal::unknown(
                "invites by third-party identifiers are not supported by this server",
            )
            .into()),
            (None, None) => Err(Refusal::missing_param("`user_id` is missing").into()),
        }
    }

    fn extra(&self, req: &Request) -> Extra {
        Extra { reason: self.reason.clone(), key: key(req), ..Extra::default() }
    }
}

async fn join(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomOrAliasId = req.arg_as("roomIdOrAlias")?;
    let room_id = app.rooms.resolve(&room).await?;
    join_room(&app, &req, room_id).await
}

async fn join_by_id(app: Arc<App>, req: Request) -> Result<Reply> {
    let room_id = req.arg_as("roomId")?;
    join_room(&app, &req, room_id).await
}

async fn join_room(app: &App, req: &Request, room_id: OwnedRoomId) -> Result<Reply> {
    let body: Body = req.json_or_empty()?;
    let extra = Extra { reason: body.reason, key: key(req), ..Extra::default() };
    app.limits.check(LimitClass::JoinsPerRoom, room_id.as_str())?;
    app.rooms.join(req.who()?, &room_id, extra).await?;
    Reply::json(&json!({ "room_id": room_id }))
}

async fn knock(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomOrAliasId = req.arg_as("roomIdOrAlias")?;
    let body: Body = req.json_or_empty()?;
    let room_id = app.rooms.resolve(&room).await?;
    let extra = Extra { reason: body.reason, key: key(&req), ..Extra::default() };
    app.rooms.knock(req.who()?, &room_id, extra).await?;
    Reply::json(&json!({ "room_id": room_id }))
}

async fn leave(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    let body: Body = req.json_or_empty()?;
    let extra = Extra { reason: body.reason, key: key(&req), ..Extra::default() };
    app.rooms.leave(&who.user_id, &room_id, extra).await?;
    if app.config.rooms.forget_rooms_on_leave {
        app.rooms.forget(who, &room_id).await?;
    }
    Ok(Reply::empty())
}

async fn forget(app: Arc<App>, req: Request) -> Result<Reply> {
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    app.rooms.forget(req.who()?, &room_id).await?;
    Ok(Reply::empty())
}

async fn invite(app: Arc<App>, req: Request) -> Result<Reply> {
    let (who, room_id, body) = target(&req)?;
    let user = body.user()?;
    limit_invite(&app, who, Some(&room_id), user)?;
    app.rooms.invite(who, user, &room_id, body.extra(&req)).await?;
    Ok(Reply::empty())
}

async fn kick(app: Arc<App>, req: Request) -> Result<Reply> {
    let (who, room_id, body) = target(&req)?;
    app.rooms.kick(&who.user_id, body.user()?, &room_id, body.extra(&req)).await?;
    Ok(Reply::empty())
}

async fn ban(app: Arc<App>, req: Request) -> Result<Reply> {
    let (who, room_id, body) = target(&req)?;
    app.rooms.ban(&who.user_id, body.user()?, &room_id, body.extra(&req)).await?;
    Ok(Reply::empty())
}

async fn unban(app: Arc<App>, req: Request) -> Result<Reply> {
    let (who, room_id, body) = target(&req)?;
    app.rooms.unban(&who.user_id, body.user()?, &room_id, body.extra(&req)).await?;
    Ok(Reply::empty())
}

fn target(req: &Request) -> Result<(&Requester, OwnedRoomId, Target)> {
    Ok((req.who()?, req.arg_as("roomId")?, req.json()?))
}

fn limit_invite(app: &App, who: &Requester, room: Option<&RoomId>, user: &UserId) -> Result<()> {
    if let Some(room) = room {
        app.limits.check(LimitClass::InvitesPerRoom, room.as_str())?;
    }
    app.limits.check(LimitClass::InvitesPerUser, user.as_str())?;
    app.limits.check(LimitClass::InvitesPerIssuer, who.user_id.as_str())
}
