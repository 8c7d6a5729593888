//! Replacing a room by one of another version.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, v3};
use chatd_rooms::Upgrade;
use ruma_common::OwnedRoomId;
use serde_json::json;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
        .post(v3("/rooms/{roomId}/upgrade"), Auth::Token, upgrade)
        .home(Home::Room("roomId"))
        .limit(LimitClass::RoomCreation)
}

async fn upgrade(app: Arc<App>, req: Request) -> Result<Reply> {
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    let body: Upgrade = req.json()?;
    let new = app.rooms.upgrade(req.who()?, &room_id, &body).await?;
    Reply::json(&json!({ "replacement_room": new }))
}
