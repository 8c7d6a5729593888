//! `/.well-known/matrix`: where clients and other servers find this one.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, HeaderValue, Reply, Request, Routes, header, raw};
use serde_json::{Value, json};

use crate::App;

/// Port that other servers use where the server's name has none.
const HTTPS: u16 = 443;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::WellKnown)
        .get(raw("/.well-known/matrix/client"), Auth::None, client)
        .get(raw("/.well-known/matrix/server"), Auth::None, server)
}

async fn client(app: Arc<App>, _: Request) -> Result<Reply> {
    let base_url = app.config.public_baseurl.as_deref().ok_or_else(not_configured)?;
    let mut body = app.config.extra_well_known_client_content.clone();
    body.insert("m.homeserver".to_owned(), json!({"base_url": format!("{base_url}/")}));
    answer(&Value::Object(body))
}

async fn server(app: Arc<App>, _: Request) -> Result<Reply> {
    if !app.config.serve_server_wellknown {
        return Err(not_configured());
    }
    let name = &app.config.server_name;
    answer(&json!({"m.server": format!("{}:{}", name.host(), name.port().unwrap_or(HTTPS))}))
}

/// Both documents may be kept for an hour.
fn answer(body: &Value) -> Result<Reply> {
    let caching = HeaderValue::from_static("public, max-age=3600");
    Ok(Reply::json(body)?.with_header(header::CACHE_CONTROL, caching))
}

fn not_configured() -> Error {
    Refusal::not_found("this document is not configured").into()
}
