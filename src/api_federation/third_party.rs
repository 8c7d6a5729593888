//! Somebody who was invited by an address has come: identity servers and other servers say so.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_federation::joining::Redeemed;
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, federation_v1};
use ruma_common::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::App;

/// Invites of one address that are taken at a time (R8).
const MOST: usize = 50;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::FederationQuery)
        .put(federation_v1("/3pid/onbind"), Auth::None, bound)
        .limit(LimitClass::Binding)
        .put(federation_v1("/exchange_third_party_invite/{roomId}"), Auth::Server, exchange)
        .home(Home::Room("roomId"))
}

#[derive(Deserialize)]
struct Bound {
    #[serde(default)]
    invites: Vec<Value>,
}

async fn bound(app: Arc<App>, req: Request) -> Result<Reply> {
    let Bound { invites } = req.json()?;
    if invites.len() > MOST {
        let message = format!("at most {MOST} invites are taken at a time");
        return Err(Refusal::invalid_param(message).into());
    }
    app.federation.joining.redeem_all(invites).await?;
    Ok(Reply::empty())
}

/// The event as far as the other server can make it.
#[derive(Deserialize)]
struct Unfinished {
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    state_key: OwnedUserId,
    content: Content,
}

#[derive(Deserialize)]
struct Content {
    third_party_invite: Signed,
}

#[derive(Deserialize)]
struct Signed {
    signed: Map<String, Value>,
}

async fn exchange(app: Arc<App>, req: Request) -> Result<Reply> {
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    let event: Unfinished = req.json()?;
    if event.room_id != room_id {
        return Err(Refusal::bad_json("the event belongs to another room").into());
    }
    let signed = event.content.third_party_invite.signed;
    let redeemed = Redeemed { room_id, sender: event.sender, mxid: event.state_key, signed };
    app.federation.joining.exchange_for(req.origin()?, &redeemed).await?;
    Ok(Reply::empty())
}
