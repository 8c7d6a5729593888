//! Making rooms, and who is in them.

use std::sync::Arc;

use chatd_base::{Refusal, Requester, Result};
use chatd_config::RouterName;
use chatd_federation::joining::Found;
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, v3};
use chatd_rooms::{create::CreateRoom, membership::Extra};
use ruma_common::{OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, OwnedUserId, RoomId, UserId};
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
    let far = far_invites(&app, &body);
    let is_direct = body.is_direct;
    let room_id = app.rooms.create(&who.user_id, body, key(&req)).await?;
    for user in far {
        let extra = Extra { is_direct, ..Extra::default() };
        // The room is there: whoever made it is not told to make another.
        if let Err(error) = app.federation.joining.invite(who, &user, &room_id, extra).await {
            tracing::info!(room.id = %room_id, %user, %error, "a user could not be invited");
        }
    }
    Reply::json(&json!({ "room_id": room_id }))
}

/// Users of other servers whom a new room is to invite.
fn far_invites(app: &App, body: &CreateRoom) -> Vec<OwnedUserId> {
    let is_far = |user: &&OwnedUserId| user.server_name() != app.config.server_name;
    body.invite.iter().filter(is_far).cloned().collect()
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

/// Servers that may know the room.
#[derive(Default, Deserialize)]
struct Via {
    #[serde(default)]
    via: Vec<String>,
    /// The older name.
    #[serde(default)]
    server_name: Vec<String>,
}

impl Via {
    fn of(req: &Request) -> Result<Vec<OwnedServerName>> {
        let Self { via, server_name } = req.query()?;
        let names = if via.is_empty() { server_name } else { via };
        names
            .iter()
            .map(|name| {
                OwnedServerName::try_from(name.as_str()).map_err(|_| {
                    Refusal::invalid_param(format!("{name} is not the name of a server")).into()
                })
            })
            .collect()
    }
}

async fn join(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomOrAliasId = req.arg_as("roomIdOrAlias")?;
    let found = app.federation.joining.find(&room, Via::of(&req)?).await?;
    join_room(&app, &req, found).await
}

async fn join_by_id(app: Arc<App>, req: Request) -> Result<Reply> {
    let found = Found { room_id: req.arg_as("roomId")?, servers: Via::of(&req)? };
    join_room(&app, &req, found).await
}

async fn join_room(app: &App, req: &Request, found: Found) -> Result<Reply> {
    let body: Body = req.json_or_empty()?;
    let extra = Extra { reason: body.reason, key: key(req), ..Extra::default() };
    let Found { room_id, servers } = found;
    app.limits.check(LimitClass::JoinsPerRoom, room_id.as_str())?;
    if !app.rooms.owner.is_in(&room_id).await? {
        app.limits.check(LimitClass::JoinsRemote, req.who()?.user_id.as_str())?;
    }
    app.federation.joining.join(req.who()?, &room_id, &servers, extra).await?;
    Reply::json(&json!({ "room_id": room_id }))
}

async fn knock(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomOrAliasId = req.arg_as("roomIdOrAlias")?;
    let body: Body = req.json_or_empty()?;
    let Found { room_id, servers } = app.federation.joining.find(&room, Via::of(&req)?).await?;
    let extra = Extra { reason: body.reason, key: key(&req), ..Extra::default() };
    app.federation.joining.knock(req.who()?, &room_id, &servers, extra).await?;
    Reply::json(&json!({ "room_id": room_id }))
}

async fn leave(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    let body: Body = req.json_or_empty()?;
    let extra = Extra { reason: body.reason, key: key(&req), ..Extra::default() };
    app.federation.joining.leave(who, &room_id, extra).await?;
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
    app.federation.joining.invite(who, user, &room_id, body.extra(&req)).await?;
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
