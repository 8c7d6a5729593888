//! Sending message events, state and redactions.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, v3};
use chatd_rooms::Draft;
use ruma_common::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Map, json};

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
        .put(v3("/rooms/{roomId}/send/{eventType}/{txnId}"), Auth::Token, send)
        .home(Home::Room("roomId"))
        .limit(LimitClass::Message)
        .put(v3("/rooms/{roomId}/state/{eventType}/{stateKey?}"), Auth::Token, put_state)
        .home(Home::Room("roomId"))
        .limit(LimitClass::Message)
        .put(v3("/rooms/{roomId}/redact/{eventId}/{txnId}"), Auth::Token, redact)
        .home(Home::Room("roomId"))
}

/// Sends a message event. Repeating a transaction id returns the first event's id.
async fn send(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    let device = who.device_id.as_ref().map(|device| device.as_str());
    let kind = req.arg("eventType");
    let mut draft = Draft::message(who.user_id.clone(), kind, req.json()?)
        .transaction(device, req.arg("txnId"));
    let sent = if kind == "m.room.redaction" {
        draft.redacts = draft.content.get("redacts").and_then(|id| id.as_str()?.parse().ok());
        app.rooms.redact(&room_id, draft).await?
    } else {
        app.rooms.send(&room_id, &draft).await?
    };
    app.users.presence.note_activity(who);
    Reply::json(&json!({ "event_id": sent.event_id }))
}

/// Sets a state event. Setting what is set already returns the event that did.
async fn put_state(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    let draft =
        Draft::state(who.user_id.clone(), req.arg("eventType"), req.arg("stateKey"), req.json()?);
    let sent = match far_invite(&app, &draft) {
        Some(user) => app.federation.joining.invite_with(who, &user, &room_id, draft).await?,
        None => app.rooms.put_state(who, &room_id, draft).await?,
    };
    app.users.presence.note_activity(who);
    Reply::json(&json!({ "event_id": sent.event_id }))
}

/// The user of another server whom the event is to invite.
fn far_invite(app: &App, draft: &Draft) -> Option<OwnedUserId> {
    let membership = draft.content.get("membership")?.as_str()?;
    let user = OwnedUserId::try_from(draft.state_key.as_deref()?).ok()?;
    let is_far = user.server_name() != app.config.server_name;
    (draft.kind == "m.room.member" && membership == "invite" && is_far).then_some(user)
}

#[derive(Deserialize)]
struct Redaction {
    reason: Option<String>,
}

/// Strips an event of its content.
async fn redact(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let class = if who.is_admin { LimitClass::AdminRedaction } else { LimitClass::Message };
    app.limits.check(class, who.user_id.as_str())?;
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    let body: Redaction = req.json_or_empty()?;
    let content = body.reason.map(|reason| ("reason".to_owned(), reason.into()));
    let device = who.device_id.as_ref().map(|device| device.as_str());
    let mut draft =
        Draft::message(who.user_id.clone(), "m.room.redaction", Map::from_iter(content))
            .transaction(device, req.arg("txnId"));
    draft.redacts = Some(req.arg_as("eventId")?);
    let sent = app.rooms.redact(&room_id, draft).await?;
    app.users.presence.note_activity(who);
    Reply::json(&json!({ "event_id": sent.event_id }))
}
