//! Transactions: what another server sends.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, federation_v1};

use crate::App;

/// Largest transaction: 50 events of 64 KiB, and EDUs.
const MOST_BYTES: usize = 16 * 1024 * 1024;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::FederationSend)
        .put(federation_v1("/send/{txnId}"), Auth::ServerUnlimited, send)
        .body_limit(MOST_BYTES)
}

/// Takes in a transaction. It may come to any instance.
async fn send(app: Arc<App>, request: Request) -> Result<Reply> {
    let inbound = &app.federation.inbound;
    let outcome = inbound.take(request.origin()?, request.arg("txnId"), request.body()).await?;
    Reply::json(&*outcome)
}
