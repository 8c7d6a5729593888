//! What servers ask about users, aliases and the directory of this one.

use std::{collections::BTreeMap, sync::Arc};

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_federation::ListingQuery;
use chatd_http::{Auth, Reply, Request, Routes, federation_v1};
use ruma_common::{OwnedRoomAliasId, OwnedUserId};
use serde::Deserialize;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::FederationQuery)
        .get(federation_v1("/query/directory"), Auth::Server, directory)
        .get(federation_v1("/query/profile"), Auth::Server, profile)
        .get(federation_v1("/user/devices/{userId}"), Auth::Server, devices)
        .post(federation_v1("/user/keys/query"), Auth::Server, device_keys)
        .post(federation_v1("/user/keys/claim"), Auth::Server, claim_keys)
        .once()
        .get(federation_v1("/publicRooms"), Auth::Server, public_rooms)
        .post(federation_v1("/publicRooms"), Auth::Server, search_public_rooms)
}

async fn directory(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Parameters {
        room_alias: OwnedRoomAliasId,
    }
    let alias = req.query::<Parameters>()?.room_alias;
    Reply::json(&app.federation.answers.directory(&alias).await?)
}

async fn profile(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Parameters {
        user_id: OwnedUserId,
        field: Option<String>,
    }
    let Parameters { user_id, field } = req.query()?;
    Reply::json(&app.federation.answers.profile(&user_id, field.as_deref()).await?)
}

async fn devices(app: Arc<App>, req: Request) -> Result<Reply> {
    let user: OwnedUserId = req.arg_as("userId")?;
    Reply::json(&app.federation.answers.devices(&user).await?)
}

async fn device_keys(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        device_keys: BTreeMap<OwnedUserId, Vec<String>>,
    }
    let body: Body = req.json()?;
    Reply::json(&app.federation.answers.device_keys(body.device_keys).await?)
}

async fn claim_keys(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        one_time_keys: BTreeMap<OwnedUserId, BTreeMap<String, String>>,
    }
    let body: Body = req.json()?;
    Reply::json(&app.federation.answers.claim_keys(body.one_time_keys).await?)
}

async fn public_rooms(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Parameters {
        limit: Option<usize>,
        since: Option<String>,
    }
    let Parameters { limit, since } = req.query()?;
    let query = ListingQuery { limit, since, ..ListingQuery::default() };
    Reply::json(&app.federation.answers.public_rooms(query).await?)
}

async fn search_public_rooms(app: Arc<App>, req: Request) -> Result<Reply> {
    let query = req.json_or_empty()?;
    Reply::json(&app.federation.answers.public_rooms(query).await?)
}
