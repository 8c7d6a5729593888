//! Who is in rooms.

use std::sync::Arc;

use chatd_base::{Refusal, Requester, Result};
use chatd_config::RouterName;
use chatd_federation::joining::{ByAddress, Found, Redeemed};
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, v3};
use chatd_rooms::membership::Extra;
use ruma_common::{OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
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

#[derive(Deserialize)]
struct Body {
    reason: Option<String>,
    /// What an identity server has signed for somebody who was invited by an address.
    third_party_signed: Option<Signed>,
}

#[derive(Deserialize)]
struct Signed {
    sender: OwnedUserId,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Signed {
    fn by(self, who: &Requester, room_id: &RoomId) -> Redeemed {
        let Self { sender, rest: mut signed } = self;
        signed.insert("sender".to_owned(), sender.as_str().into());
        Redeemed { room_id: room_id.to_owned(), sender, mxid: who.user_id.clone(), signed }
    }
}

#[derive(Deserialize)]
struct Target {
    user_id: Option<OwnedUserId>,
    reason: Option<String>,
}

impl Target {
    fn user(&self) -> Result<&UserId> {
        let missing = || Refusal::missing_param("`user_id` is missing").into();
        self.user_id.as_deref().ok_or_else(missing)
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
    if let Some(signed) = body.third_party_signed {
        app.federation.joining.redeem_here(&signed.by(req.who()?, &room_id)).await?;
    }
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
    let (who, room_id, body): (_, OwnedRoomId, Value) =
        (req.who()?, req.arg_as("roomId")?, req.json()?);
    if let Some(by) = by_address(&body)? {
        app.limits.check(LimitClass::InvitesPerRoom, room_id.as_str())?;
        app.limits.check(LimitClass::ThirdPartyInvite, who.user_id.as_str())?;
        let limit = |user: &UserId| limit_invite(&app, who, None, user);
        app.federation.joining.invite_by_address(who, &room_id, &by, key(&req), limit).await?;
        return Ok(Reply::empty());
    }
    let body: Target = serde_json::from_value(body).map_err(odd)?;
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

/// Whom an invite is for, if it names an address.
pub(crate) fn by_address(body: &Value) -> Result<Option<ByAddress>> {
    let names = |all: [&str; 2]| all.iter().all(|name| body.get(name).is_some());
    if !names(["medium", "address"]) {
        return Ok(None);
    }
    if !names(["id_server", "id_access_token"]) {
        let message = "`id_server` and `id_access_token` are needed to invite an address";
        return Err(Refusal::missing_param(message).into());
    }
    let by = ByAddress::deserialize(body).map_err(odd)?;
    Ok(Some(by))
}

fn odd(error: serde_json::Error) -> Refusal {
    Refusal::bad_json(error.to_string())
}

fn target(req: &Request) -> Result<(&Requester, OwnedRoomId, Target)> {
    Ok((req.who()?, req.arg_as("roomId")?, req.json()?))
}

pub(crate) fn limit_invite(
    app: &App,
    who: &Requester,
    room: Option<&RoomId>,
    user: &UserId,
) -> Result<()> {
    if let Some(room) = room {
        app.limits.check(LimitClass::InvitesPerRoom, room.as_str())?;
    }
    app.limits.check(LimitClass::InvitesPerUser, user.as_str())?;
    app.limits.check(LimitClass::InvitesPerIssuer, who.user_id.as_str())
}
