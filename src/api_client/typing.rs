//! Typing notifications.
//! <https://spec.matrix.org/latest/client-server-api/#typing-notifications>

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, Reply, Request, Routes, v3};
use ruma_common::OwnedRoomId;
use serde::Deserialize;

use crate::{App, account_data::myself};

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientTyping)
        .put(v3("/rooms/{roomId}/typing/{userId}"), Auth::Guest, typing)
        .home(Home::Stream(StreamName::Typing))
}

#[derive(Deserialize)]
struct Body {
    typing: bool,
    timeout: Option<u64>,
}

const DEFAULT_TIMEOUT_MS: u64 = 30_000;

async fn typing(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let room: OwnedRoomId = request.arg_as("roomId")?;
    let body: Body = request.json()?;
    let timeout_ms = body.typing.then(|| body.timeout.unwrap_or(DEFAULT_TIMEOUT_MS));
    app.users.typing.set(who, &room, timeout_ms).await?;
    app.users.presence.note_activity(who);
    Ok(Reply::empty())
}
