//! The directory of published rooms.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_federation::queries::RoomListQuery;
use chatd_http::{Auth, Reply, Request, Routes, v3};
use chatd_rooms::read::{ListingPage, ListingQuery};
use ruma_common::{OwnedServerName, ServerName};
use serde::Deserialize;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientDirectory)
        .get(v3("/publicRooms"), Auth::Optional, get_public_rooms)
        .post(v3("/publicRooms"), Auth::Guest, post_public_rooms)
}

#[derive(Deserialize)]
struct Params {
    limit: Option<usize>,
    since: Option<String>,
    server: Option<OwnedServerName>,
}

/// The directory, unfiltered.
async fn get_public_rooms(app: Arc<App>, req: Request) -> Result<Reply> {
    if !app.config.rooms.allow_public_rooms_without_auth {
        req.who()?;
    }
    let params: Params = req.query()?;
    if let Some(server) = elsewhere(&app, params.server) {
        return answer_of(&app, &server, &req.query()?).await;
    }
    let query =
        ListingQuery { limit: params.limit, since: params.since, ..ListingQuery::default() };
    answer(&app, query).await
}

/// What the filter lets through.
async fn post_public_rooms(app: Arc<App>, req: Request) -> Result<Reply> {
    let params: Params = req.query()?;
    if let Some(server) = elsewhere(&app, params.server) {
        return answer_of(&app, &server, &req.json_or_empty()?).await;
    }
    answer(&app, req.json_or_empty()?).await
}

async fn answer(app: &App, mut query: ListingQuery) -> Result<Reply> {
    // Clients write 0 for "no limit".
    query.limit = query.limit.filter(|limit| *limit > 0);
    if !app.config.rooms.enable_room_list_search {
        return Reply::json(&ListingPage::default());
    }
    Reply::json(&app.reader.listings(&query).await?)
}

/// The server whose directory is wanted, if that is not this one.
fn elsewhere(app: &App, server: Option<OwnedServerName>) -> Option<OwnedServerName> {
    server.filter(|server| *server != app.config.server_name)
}

/// What the directory of another server has.
async fn answer_of(app: &App, server: &ServerName, query: &RoomListQuery) -> Result<Reply> {
    if !app.config.rooms.enable_room_list_search {
        return Reply::json(&ListingPage::default());
    }
    Reply::json(&app.federation.queries.room_list(server, query).await?)
}
