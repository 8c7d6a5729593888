//! Read receipts and read markers. <https://spec.matrix.org/latest/client-server-api/#receipts>

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, Reply, Request, Routes, v3};
use chatd_users::receipts::Kind;
use ruma_common::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientReceipts)
        .post(v3("/rooms/{roomId}/receipt/{receiptType}/{eventId}"), Auth::Guest, receipt)
        .home(Home::Stream(StreamName::Receipts))
        .post(v3("/rooms/{roomId}/read_markers"), Auth::Guest, read_markers)
        .home(Home::Stream(StreamName::Receipts))
}

#[derive(Deserialize)]
struct ReceiptBody {
    thread_id: Option<String>,
}

async fn receipt(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let room: OwnedRoomId = request.arg_as("roomId")?;
    let event: OwnedEventId = request.arg_as("eventId")?;
    let kind = Kind::parse(request.arg("receiptType"))?;
    let ReceiptBody { thread_id } = request.json_or_empty()?;
    app.users.receipts.set(who, &room, kind, &event, thread_id).await?;
    app.users.presence.note_activity(who);
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct Markers {
    #[serde(rename = "m.fully_read")]
    fully_read: Option<OwnedEventId>,
    #[serde(rename = "m.read")]
    read: Option<OwnedEventId>,
    #[serde(rename = "m.read.private")]
    read_private: Option<OwnedEventId>,
}

async fn read_markers(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let room: OwnedRoomId = request.arg_as("roomId")?;
    let markers: Markers = request.json_or_empty()?;
    let wanted = [
        (Kind::Read, markers.read),
        (Kind::ReadPrivate, markers.read_private),
        (Kind::FullyRead, markers.fully_read),
    ];
    for (kind, event) in wanted {
        if let Some(event) = event {
            app.users.receipts.set(who, &room, kind, &event, None).await?;
        }
    }
    app.users.presence.note_activity(who);
    Ok(Reply::empty())
}
