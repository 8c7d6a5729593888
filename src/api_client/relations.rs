//! Events that relate to another one, and lists of threads.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, unstable, v1};
use chatd_rooms::read::{RECURSION_DEPTH, RelationsQuery};
use ruma_common::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;

use crate::{
    App,
    messages::{Dir, limit, token},
    splice::{Object, viewer},
};

pub fn routes() -> Routes<App> {
    let path = |pattern: &str| v1(pattern).or(unstable(pattern));
    Routes::of(RouterName::ClientRooms)
        .get(path("/rooms/{roomId}/relations/{eventId}"), Auth::Guest, relations)
        .get(path("/rooms/{roomId}/relations/{eventId}/{relType}"), Auth::Guest, relations)
        .get(
            path("/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}"),
            Auth::Guest,
            relations,
        )
        .get(
            v1("/rooms/{roomId}/threads")
                .or(unstable("/org.matrix.msc3856/rooms/{roomId}/threads")),
            Auth::Guest,
            threads,
        )
}

const DEFAULT_LIMIT: u64 = 5;
const MOST_EVENTS: u64 = 100;

#[derive(Deserialize)]
struct RelationsParams {
    from: Option<String>,
    to: Option<String>,
    limit: Option<u64>,
    #[serde(default)]
    dir: Dir,
    #[serde(default, alias = "org.matrix.msc3981.recurse")]
    recurse: bool,
}

/// A page of events that relate to an event, of one relation and type if the path names them.
async fn relations(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let (room, event): (OwnedRoomId, OwnedEventId) =
        (req.arg_as("roomId")?, req.arg_as("eventId")?);
    let params: RelationsParams = req.query()?;
    let named = |name| Some(req.arg(name)).filter(|arg| !arg.is_empty()).map(str::to_owned);
    let query = RelationsQuery {
        rel_type: named("relType"),
        kind: named("eventType"),
        from: token("from", params.from.as_deref())?,
        to: token("to", params.to.as_deref())?,
        end: params.dir.into(),
        limit: limit(params.limit, DEFAULT_LIMIT, MOST_EVENTS),
        recurse: params.recurse,
    };
    let page = app.reader.relations(who.user, &room, &event, &query).await?;
    let viewer = viewer(&app, who);
    Ok(Object::new()
        .raw("chunk", |out| page.shown.write_all(out, &page.shown.events, &viewer))
        .optional("prev_batch", query.from.map(|token| token.to_string()))
        .optional("next_batch", page.next.map(|token| token.to_string()))
        .optional("recursion_depth", query.recurse.then_some(RECURSION_DEPTH))
        .reply())
}

#[derive(Deserialize)]
struct ThreadsParams {
    include: Option<String>,
    from: Option<String>,
    limit: Option<u64>,
}

/// Roots of the threads of a room.
async fn threads(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let params: ThreadsParams = req.query()?;
    let only_participated = match params.include.as_deref() {
        None | Some("all") => false,
        Some("participated") => true,
        Some(_) => {
            return Err(Refusal::invalid_param("include is `all` or `participated`").into());
        }
    };
    let from = token("from", params.from.as_deref())?;
    let limit = limit(params.limit, DEFAULT_LIMIT, MOST_EVENTS);
    let page = app.reader.threads(who.user, &room, only_participated, from.as_ref(), limit).await?;
    let viewer = viewer(&app, who);
    Ok(Object::new()
        .raw("chunk", |out| page.shown.write_all(out, &page.shown.events, &viewer))
        .optional("next_batch", page.next.map(|token| token.to_string()))
        .reply())
}
