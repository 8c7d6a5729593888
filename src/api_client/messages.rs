//! Timelines: pages of messages, one event, an event with its surroundings.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, v1, v3};
use chatd_rooms::{
    client_event,
    filter::EventFilter,
    read::{End, MessagesQuery, RoomToken, Toward},
};
use ruma_common::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;
use serde_json::json;

use crate::{
    App,
    splice::{Object, viewer},
};

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
        .get(v3("/rooms/{roomId}/messages"), Auth::Guest, messages)
        .get(v3("/rooms/{roomId}/event/{eventId}"), Auth::Guest, event)
        .get(v3("/rooms/{roomId}/context/{eventId}"), Auth::Guest, context)
        .get(v3("/events/{eventId}"), Auth::Guest, event_without_room)
        .get(v1("/rooms/{roomId}/timestamp_to_event"), Auth::Guest, nearest_event)
}

/// Most events that one page may have.
const MOST_EVENTS: u64 = 1000;
const DEFAULT_LIMIT: u64 = 10;

#[derive(Deserialize)]
struct MessagesParams {
    dir: Dir,
    from: Option<String>,
    to: Option<String>,
    limit: Option<u64>,
    filter: Option<String>,
}

/// Direction of a page, as clients write it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub enum Dir {
    #[default]
    #[serde(rename = "b")]
    Backwards,
    #[serde(rename = "f")]
    Forwards,
}

impl From<Dir> for End {
    fn from(dir: Dir) -> Self {
        match dir {
            Dir::Backwards => Self::Newest,
            Dir::Forwards => Self::Oldest,
        }
    }
}

/// Reads a token of the parameter `name`.
pub fn token(name: &str, text: Option<&str>) -> Result<Option<RoomToken>> {
    let parse = |text| {
        RoomToken::from_pagination(text)
            .map_err(|_| Refusal::invalid_param(format!("{name} is not a token")).into())
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

/// A limit as a number of events.
pub fn limit(wanted: Option<u64>, default: u64, most: u64) -> usize {
    usize::try_from(wanted.unwrap_or(default).min(most)).unwrap_or(usize::MAX)
}

/// A page of a room's timeline.
async fn messages(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let params: MessagesParams = req.query()?;
    let filter = EventFilter::from_query(params.filter.as_deref())?;
    let query = MessagesQuery {
        from: token("from", params.from.as_deref())?,
        to: token("to", params.to.as_deref())?,
        end: params.dir.into(),
        limit: limit(params.limit.or(filter.limit), DEFAULT_LIMIT, MOST_EVENTS),
        filter,
    };
    let page = app.federation.history.messages(who.user, &room, query).await?;
    let viewer = viewer(&app, who);
    let mut answer = Object::new();
    answer
        .raw("chunk", |out| page.shown.write_all(out, &page.shown.events, &viewer))
        .member("start", &page.start.to_string())
        .optional("end", page.end.map(|end| end.to_string()));
    if !page.state.is_empty() {
        answer.raw("state", |out| page.shown.write_all(out, &page.state, &viewer));
    }
    Ok(answer.reply())
}

/// One event.
async fn event(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let (room, event): (OwnedRoomId, OwnedEventId) =
        (req.arg_as("roomId")?, req.arg_as("eventId")?);
    let shown = app.federation.history.event(who.user, &room, &event).await?;
    let mut out = Vec::new();
    for event in &shown.events {
        shown.write(&mut out, event, &viewer(&app, who));
    }
    Ok(Reply::raw_json(out))
}

/// One event of whatever room.
async fn event_without_room(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let event: OwnedEventId = req.arg_as("eventId")?;
    let shown = app.reader.event(who.user, None, &event).await?;
    let mut out = Vec::new();
    for event in &shown.events {
        shown.write(&mut out, event, &viewer(&app, who));
    }
    Ok(Reply::raw_json(out))
}

#[derive(Deserialize)]
struct NearestParams {
    ts: i64,
    dir: Toward,
}

/// The event that is nearest to a time.
async fn nearest_event(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let NearestParams { ts, dir } = req.query()?;
    let found = app.federation.queries.nearest_event(req.who()?, &room, ts, dir).await?;
    let found = found.ok_or_else(|| Refusal::not_found("there is no event in that direction"))?;
    Reply::json(&json!({ "event_id": found.event_id, "origin_server_ts": found.origin_ts }))
}

#[derive(Deserialize)]
struct ContextParams {
    limit: Option<u64>,
    filter: Option<String>,
}

/// An event, those around it, and the state behind them.
async fn context(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let (room, event): (OwnedRoomId, OwnedEventId) =
        (req.arg_as("roomId")?, req.arg_as("eventId")?);
    let params: ContextParams = req.query()?;
    let filter = EventFilter::from_query(params.filter.as_deref())?;
    let limit = limit(params.limit.or(filter.limit), DEFAULT_LIMIT, MOST_EVENTS);
    let history = &app.federation.history;
    let context = history.context(who.user, &room, &event, limit, &filter).await?;
    let (shown, viewer) = (&context.shown, viewer(&app, who));
    let state = context.state.iter().map(|event| &**event);
    let reply = Object::new()
        .member("start", &context.start.to_string())
        .member("end", &context.end.to_string())
        .raw("event", |out| shown.write(out, &context.event, &viewer))
        .raw("events_before", |out| shown.write_all(out, &context.before, &viewer))
        .raw("events_after", |out| shown.write_all(out, &context.after, &viewer))
        .raw("state", |out| {
            client_event::write_array(out, state, |out, event| shown.write(out, event, &viewer));
        })
        .reply();
    Ok(reply)
}
