//! Making rooms.
//!
//! Users of other servers, and whoever is known by an address, are invited when the room is there,
//! by its owner. That may be another instance than this one: a request that is made again gets the
//! room of the first, whoever made that.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use chatd_base::{Refusal, Requester, Result, UserNid};
use chatd_config::RouterName;
use chatd_federation::joining::ByAddress;
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, v3};
use chatd_rooms::{create::CreateRoom, membership::Extra};
use ruma_common::{OwnedRoomId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    App,
    membership::{by_address, limit_invite},
};

const CALL: &str = "client.invite_to_new_room";

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
        .post(v3("/createRoom"), Auth::Token, create)
        .home(Home::AnyRoomOwner)
        .limit(LimitClass::RoomCreation)
}

/// Starts to answer the calls of other instances.
pub fn answer_calls(app: &Arc<App>) {
    let known = Arc::downgrade(app);
    app.users.deps.streams.calls.on(CALL, move |body| answer(known.clone(), body));
}

async fn create(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let body: CreateRoom = req.json_or_empty()?;
    for user in &body.invite {
        limit_invite(&app, who, None, user)?;
    }
    let invitees = invitees(&app, who, &body)?;
    let is_direct = body.is_direct;
    let key = req.key().map(Uuid::from_u128);
    let room_id = app.rooms.create(&who.user_id, body, key).await?;
    for (invitee, number) in invitees.into_iter().zip(1..) {
        // The key of the request is the room's.
        let key = req.key().map(|key| Uuid::from_u128(key.wrapping_add(number)));
        let invite =
            Invite { by: Inviter::of(who), room_id: room_id.clone(), invitee, is_direct, key };
        let here = || invite.make(&app);
        // The room is there: whoever made it is not told to make another.
        if let Err(error) = app.rooms.at_owner(&room_id, CALL, &invite, here).await {
            let invitee = invite.invitee.user();
            tracing::info!(room.id = %room_id, ?invitee, %error, "somebody could not be invited");
        }
    }
    Reply::json(&json!({ "room_id": room_id }))
}

/// Whom a new room invites when it is there.
fn invitees(app: &App, who: &Requester, body: &CreateRoom) -> Result<Vec<Invitee>> {
    let is_far = |user: &&OwnedUserId| user.server_name() != app.config.server_name;
    let far = body.invite.iter().filter(is_far).cloned().map(Invitee::User);
    let addresses = body.invite_3pid.iter().map(|entry| {
        app.limits.check(LimitClass::ThirdPartyInvite, who.user_id.as_str())?;
        let missing = || Refusal::missing_param("`medium` or `address` is missing").into();
        by_address(entry)?.ok_or_else(missing).map(Invitee::Address)
    });
    far.map(Ok).chain(addresses).collect()
}

#[derive(Deserialize, Serialize)]
enum Invitee {
    User(OwnedUserId),
    Address(ByAddress),
}

impl Invitee {
    fn user(&self) -> Option<&UserId> {
        match self {
            Self::User(user) => Some(user),
            Self::Address(_) => None,
        }
    }
}

/// Whoever makes the room, as far as that matters.
#[derive(Deserialize, Serialize)]
struct Inviter {
    user_id: OwnedUserId,
    user: UserNid,
    is_admin: bool,
    is_guest: bool,
}

impl Inviter {
    fn of(who: &Requester) -> Self {
        let Requester { user_id, user, is_admin, is_guest, .. } = who.clone();
        Self { user_id, user, is_admin, is_guest }
    }

    fn requester(&self) -> Requester {
        Requester {
            user_id: self.user_id.clone(),
            user: self.user,
            device_id: None,
            token: 0,
            is_admin: self.is_admin,
            is_guest: self.is_guest,
            address: None,
        }
    }
}

/// An invite that the owner of the room makes.
#[derive(Deserialize, Serialize)]
struct Invite {
    by: Inviter,
    room_id: OwnedRoomId,
    invitee: Invitee,
    is_direct: bool,
    /// The same for each attempt.
    key: Option<Uuid>,
}

impl Invite {
    /// Makes the invite. One that has been made before stays as it is.
    async fn make(&self, app: &App) -> Result<()> {
        let (joining, who) = (&app.federation.joining, self.by.requester());
        match &self.invitee {
            Invitee::User(user) => {
                let extra = Extra { is_direct: self.is_direct, ..Extra::default() };
                joining.invite(&who, user, &self.room_id, extra).await
            }
            Invitee::Address(by) => {
                let limit = |user: &UserId| limit_invite(app, &who, None, user);
                joining.invite_by_address(&who, &self.room_id, by, self.key, limit).await
            }
        }
    }
}

/// Does what another instance asks for.
async fn answer(app: Weak<App>, body: Bytes) -> Result<Vec<u8>> {
    let app = app.upgrade().ok_or_else(|| Refusal::not_owner(String::new()))?;
    let invite: Invite = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("not an invite: {error}")))?;
    invite.make(&app).await?;
    Ok(Vec::new())
}
