//! Presence. <https://spec.matrix.org/latest/client-server-api/#presence>

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, v3};
use chatd_users::presence::parse_state;
use ruma_common::OwnedUserId;
use serde::Deserialize;

use crate::{App, account_data::myself};

pub fn routes() -> Routes<App> {
    const STATUS: &str = "/presence/{userId}/status";
    Routes::of(RouterName::ClientPresence)
        .get(v3(STATUS), Auth::Guest, get_status)
        .put(v3(STATUS), Auth::Guest, set_status)
        .home(Home::Stream(StreamName::Presence))
        .limit(LimitClass::PresencePerUser)
}

async fn get_status(app: Arc<App>, request: Request) -> Result<Reply> {
    let user: OwnedUserId = request.arg_as("userId")?;
    Reply::json(&app.users.presence.get(request.who()?, &user).await?)
}

#[derive(Deserialize)]
struct Status {
    presence: String,
    status_msg: Option<String>,
}

async fn set_status(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let status: Status = request.json()?;
    let state = parse_state(&status.presence)?;
    app.users.presence.set(who, state, status.status_msg).await?;
    Ok(Reply::empty())
}
