//! What other servers are told of the software that runs here.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, federation_v1};
use serde_json::json;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::FederationQuery).get(federation_v1("/version"), Auth::None, version)
}

async fn version(_: Arc<App>, _: Request) -> Result<Reply> {
    let server = json!({ "name": "chatd", "version": env!("CARGO_PKG_VERSION") });
    Reply::json(&json!({ "server": server }))
}
