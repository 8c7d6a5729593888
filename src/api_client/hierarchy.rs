//! The tree of a space.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_federation::queries::HierarchyQuery;
use chatd_http::{Auth, LimitClass, Reply, Request, Routes, v1};
use ruma_common::OwnedRoomId;
use serde::Deserialize;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientRooms)
        .get(v1("/rooms/{roomId}/hierarchy"), Auth::Guest, hierarchy)
        .limit(LimitClass::Hierarchy)
}

#[derive(Deserialize)]
struct Params {
    #[serde(default)]
    suggested_only: bool,
    limit: Option<usize>,
    max_depth: Option<usize>,
    from: Option<String>,
}

/// A page of the rooms below a room.
async fn hierarchy(app: Arc<App>, req: Request) -> Result<Reply> {
    let room: OwnedRoomId = req.arg_as("roomId")?;
    let Params { suggested_only, limit, max_depth, from } = req.query()?;
    if limit == Some(0) {
        return Err(Refusal::invalid_param("`limit` has to be greater than zero").into());
    }
    let query = HierarchyQuery { suggested_only, limit, max_depth, from };
    Reply::json(&app.federation.queries.hierarchy(req.who()?, &room, &query).await?)
}
