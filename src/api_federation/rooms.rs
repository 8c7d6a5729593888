//! What servers ask about rooms that they are in.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_federation::{
    Toward,
    answers::{AtEvent, MissingQuery},
};
use chatd_http::{Auth, Reply, Request, Routes, federation_v1, raw};
use ruma_common::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;
use serde_json::json;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::FederationQuery)
        .get(federation_v1("/event/{eventId}"), Auth::Server, event)
        .get(federation_v1("/state/{roomId}"), Auth::Server, state)
        .get(federation_v1("/state_ids/{roomId}"), Auth::Server, state_ids)
        .get(federation_v1("/event_auth/{roomId}/{eventId}"), Auth::Server, event_auth)
        .get(federation_v1("/backfill/{roomId}"), Auth::Server, backfill)
        .get(federation_v1("/timestamp_to_event/{roomId}"), Auth::Server, nearest_event)
        .get(federation_v1("/hierarchy/{roomId}"), Auth::Server, hierarchy)
        .get(
            raw("/_matrix/federation/unstable/rooms/{roomId}/complexity"),
            Auth::Server,
            complexity,
        )
        .post(federation_v1("/get_missing_events/{roomId}"), Auth::Server, missing_events)
}

async fn complexity(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    Reply::json(&app.federation.answers.complexity(&room).await?)
}

async fn event(app: Arc<App>, req: Request) -> Result<Reply> {
    let event: OwnedEventId = req.arg_as("eventId")?;
    Ok(Reply::raw_json(app.federation.answers.event(req.origin()?, &event).await?))
}

/// The event in the query, at which the state is asked for.
fn at_event(req: &Request) -> Result<(OwnedRoomId, OwnedEventId)> {
    #[derive(Deserialize)]
    struct Parameters {
        event_id: OwnedEventId,
    }
    Ok((req.arg_as("roomId")?, req.query::<Parameters>()?.event_id))
}

async fn state(app: Arc<App>, req: Request) -> Result<Reply> {
    let (room, event) = at_event(&req)?;
    let at = AtEvent { origin: req.origin()?, room: &room, event: &event };
    Ok(Reply::json_stream(app.federation.answers.state(at).await?))
}

async fn state_ids(app: Arc<App>, req: Request) -> Result<Reply> {
    let (room, event) = at_event(&req)?;
    let at = AtEvent { origin: req.origin()?, room: &room, event: &event };
    Ok(Reply::raw_json(app.federation.answers.state_ids(at).await?))
}

async fn event_auth(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let event: OwnedEventId = req.arg_as("eventId")?;
    let at = AtEvent { origin: req.origin()?, room: &room, event: &event };
    Ok(Reply::raw_json(app.federation.answers.event_auth(at).await?))
}

async fn backfill(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Parameters {
        #[serde(default)]
        v: Vec<String>,
        limit: u32,
    }
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let Parameters { v, limit } = req.query()?;
    if v.is_empty() {
        return Err(Refusal::missing_param("missing query parameter `v`").into());
    }
    let answers = &app.federation.answers;
    Ok(Reply::raw_json(answers.backfill(req.origin()?, &room, &v, limit).await?))
}

async fn nearest_event(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Parameters {
        ts: i64,
        dir: Toward,
    }
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let Parameters { ts, dir } = req.query()?;
    let found = app.federation.answers.nearest(req.origin()?, &room, ts, dir).await?;
    let found = found.ok_or_else(|| Refusal::not_found("there is no event in that direction"))?;
    Reply::json(&json!({ "event_id": found.event_id, "origin_server_ts": found.origin_ts }))
}

async fn hierarchy(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Parameters {
        #[serde(default)]
        suggested_only: bool,
    }
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let suggested_only = req.query::<Parameters>()?.suggested_only;
    Reply::json(&app.federation.answers.hierarchy(req.origin()?, &room, suggested_only).await?)
}

async fn missing_events(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let query: MissingQuery = req.json()?;
    let answers = &app.federation.answers;
    Ok(Reply::raw_json(answers.missing_events(req.origin()?, &room, &query).await?))
}
