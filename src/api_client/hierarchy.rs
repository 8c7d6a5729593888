//! The tree of a space, and what there is to know of a room before one enters it.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_federation::queries::HierarchyQuery;
use chatd_http::{Auth, LimitClass, Reply, Request, Routes, unstable, v1};
use ruma_common::{OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName};
use serde::Deserialize;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
        .get(v1("/rooms/{roomId}/hierarchy"), Auth::Guest, hierarchy)
        .limit(LimitClass::Hierarchy)
        .get(
            v1("/room_summary/{roomIdOrAlias}")
                .or(unstable("/im.nheko.summary/rooms/{roomIdOrAlias}/summary")),
            Auth::Optional,
            summary,
        )
        .limit(LimitClass::Hierarchy)
}

#[derive(Deserialize)]
struct Params {
    #[serde(default)]
    suggested_only: bool,
    limit: Option<usize>,
    max_depth: Option<usize>,
    from: Option<String>,
    #[serde(default, alias = "org.matrix.msc4235.via")]
    via: Vec<OwnedServerName>,
}

/// A page of the rooms below a room.
async fn hierarchy(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let Params { suggested_only, limit, max_depth, from, via } = req.query()?;
    if limit == Some(0) {
        return Err(Refusal::invalid_param("`limit` has to be greater than zero").into());
    }
    let query = HierarchyQuery { suggested_only, limit, max_depth, from, via };
    Reply::json(&app.federation.queries.hierarchy(req.who()?, &room, &query).await?)
}

/// One room, which the caller need not be in.
async fn summary(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Params {
        #[serde(default)]
        via: Vec<OwnedServerName>,
    }
    let room: OwnedRoomOrAliasId = req.arg_as("roomIdOrAlias")?;
    let via = req.query::<Params>()?.via;
    let who = req.requester().map(|who| &**who);
    Reply::json(&app.federation.queries.summary(who, &room, via).await?)
}
