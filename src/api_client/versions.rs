//! `/versions`: which releases of the specification this server speaks.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, raw};
use serde_json::json;

use crate::App;

const VERSIONS: &[&str] = &[
    "r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2",
    "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
];

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientVersions).get(
        raw("/_matrix/client/versions"),
        Auth::Optional,
        versions,
    )
}

async fn versions(_: Arc<App>, _: Request) -> Result<Reply> {
    Reply::json(&json!({
        "versions": VERSIONS,
        "unstable_features": {
            "org.matrix.e2e_cross_signing": true,
            "org.matrix.msc2432": true,
            "org.matrix.msc3440.stable": true,
            "org.matrix.msc3771": true,
            "org.matrix.msc3773": true,
            "org.matrix.msc4222": true,
        },
    }))
}
