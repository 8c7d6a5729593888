//! State and members of rooms, as far as they are read.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, v3};
use chatd_rooms::{
    client_event::{self, Extras},
    read::{MembersQuery, State},
};
use ruma_common::OwnedRoomId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    App,
    messages::token,
    splice::{Object, viewer},
};

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
        .get(v3("/rooms/{roomId}/state"), Auth::Guest, state)
        .get(v3("/rooms/{roomId}/state/{eventType}/{stateKey?}"), Auth::Guest, state_entry)
        .get(v3("/rooms/{roomId}/members"), Auth::Guest, members)
        .get(v3("/rooms/{roomId}/joined_members"), Auth::Guest, joined_members)
        .get(v3("/joined_rooms"), Auth::Guest, joined_rooms)
}

/// All state of a room.
async fn state(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let (_, events) = app.reader.state(who.user, &room).await?;
    let viewer = viewer(&app, who);
    let mut out = Vec::with_capacity(events.len() * 512);
    client_event::write_array(&mut out, events.iter().map(|event| &**event), |out, event| {
        client_event::write(out, event, &viewer, &Extras::default());
    });
    Ok(Reply::raw_json(out))
}

#[derive(Deserialize)]
struct StateParams {
    format: Option<String>,
}

/// The content of one entry of the state, or the event that set it.
async fn state_entry(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let params: StateParams = req.query()?;
    let whole = match params.format.as_deref() {
        None | Some("content") => false,
        Some("event") => true,
        Some(_) => return Err(Refusal::invalid_param("format is `content` or `event`").into()),
    };
    let (kind, key) = (req.arg("eventType"), req.arg("stateKey"));
    let (_, event) = app.reader.state_entry(who.user, &room, kind, key).await?;
    if whole {
        let viewer = viewer(&app, who);
        return Ok(Reply::raw_json(client_event::to_json(&event, &viewer, &Extras::default())));
    }
    Ok(Reply::raw_json(event.content.get().to_owned()))
}

#[derive(Deserialize)]
struct MembersParams {
    at: Option<String>,
    membership: Option<String>,
    not_membership: Option<String>,
}

/// Member events of a room.
async fn members(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let params: MembersParams = req.query()?;
    let query = MembersQuery {
        at: token("at", params.at.as_deref())?,
        membership: params.membership,
        not_membership: params.not_membership,
    };
    let state: State = app.reader.members(who.user, &room, &query).await?;
    let viewer = viewer(&app, who);
    let events = state.1.iter().map(|event| &**event);
    let reply = Object::new()
        .raw("chunk", |out| {
            client_event::write_array(out, events, |out, event| {
                client_event::write(out, event, &viewer, &Extras::default());
            });
        })
        .reply();
    Ok(reply)
}

/// Profiles of the joined members of a room.
async fn joined_members(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let members = app.reader.joined_members(who.user, &room).await?;
    let joined: Map<String, Value> = members
        .into_iter()
        .map(|(user, profile)| {
            let members =
                [("display_name", profile.displayname), ("avatar_url", profile.avatar_url)];
            let shown = members
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), Value::String(value?))))
                .collect();
            (user, Value::Object(shown))
        })
        .collect();
    Reply::json(&json!({ "joined": joined }))
}

/// Rooms that the requester is in.
async fn joined_rooms(app: Arc<App>, req: Request) -> Result<Reply> {
    let rooms = app.reader.joined_rooms(req.who()?.user).await?;
    let ids: Vec<String> = rooms.into_iter().map(|(_, id)| id).collect();
    Reply::json(&json!({ "joined_rooms": ids }))
}
