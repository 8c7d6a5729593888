//! Messages from device to device.
//! <https://spec.matrix.org/latest/client-server-api/#send-to-device-messaging>

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, Reply, Request, Routes, v3};
use chatd_users::to_device::Messages;
use serde::Deserialize;

use crate::App;

/// Largest request: keys for a large room go to many devices at once.
const BODY_LIMIT: usize = 8 * 1024 * 1024;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientToDevice)
        .put(v3("/sendToDevice/{eventType}/{txnId}"), Auth::Guest, send)
        .home(Home::Stream(StreamName::ToDevice))
        .body_limit(BODY_LIMIT)
}

#[derive(Deserialize)]
struct Body {
    messages: Messages,
}

async fn send(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let Body { messages } = request.json()?;
    let (kind, txn_id) = (request.arg("eventType"), request.arg("txnId"));
    app.users.to_device.send(who, kind, txn_id, messages).await?;
    Ok(Reply::empty())
}
