//! Stored filters. <https://spec.matrix.org/latest/client-server-api/#filtering>

use std::sync::Arc;

use chatd_base::{Error, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, v3};
use chatd_sync::filter::Filter;
use serde_json::{Map, Value, json, value::to_raw_value};

use crate::{App, account_data::myself};

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientSync).post(v3("/user/{userId}/filter"), Auth::Guest, create).get(
        v3("/user/{userId}/filter/{filterId}"),
        Auth::Guest,
        get,
    )
}

async fn create(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    let filter: Map<String, Value> = request.json()?;
    let filter = to_raw_value(&filter).map_err(Error::internal)?;
    // So that every stored filter is one that a sync can use.
    Filter::from_json(filter.get())?;
    let id = app.users.filters.create(who.user, &filter).await?;
    Reply::json(&json!({ "filter_id": id.to_string() }))
}

async fn get(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = myself(&request)?;
    Reply::json(&app.users.filters.get(who.user, request.arg("filterId")).await?)
}
