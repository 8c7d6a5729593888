//! End-to-end keys: upload, query, claim, changes, cross-signing.
//! <https://spec.matrix.org/latest/client-server-api/#end-to-end-encryption>

use std::{sync::Arc, time::Duration};

use chatd_base::{Refusal, Result};
use chatd_config::{RouterName, StreamName};
use chatd_federation::queries::Claims;
use chatd_http::{Auth, Home, Reply, Request, Routes, v3};
use chatd_sync::token::SyncToken;
use chatd_users::{
    cross_signing::{NewKeys, NewSignatures},
    key_query::Wanted,
    keys::Upload,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    App,
    ui_auth::{self, Lately},
};

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientKeys)
        .post(v3("/keys/upload"), Auth::Guest, upload)
        .home(Home::Stream(StreamName::DeviceLists))
        .post(v3("/keys/upload/{deviceId}"), Auth::Guest, upload)
        .home(Home::Stream(StreamName::DeviceLists))
        .post(v3("/keys/query"), Auth::Guest, query)
        .post(v3("/keys/claim"), Auth::Guest, claim)
        .get(v3("/keys/changes"), Auth::Guest, changes)
        .post(v3("/keys/device_signing/upload"), Auth::Token, device_signing)
        .home(Home::Stream(StreamName::DeviceLists))
        .post(v3("/keys/signatures/upload"), Auth::Token, signatures)
        .home(Home::Stream(StreamName::DeviceLists))
}

/// How long other servers are waited for, in milliseconds.
#[derive(Deserialize)]
struct Patience(u64);

impl Default for Patience {
    fn default() -> Self {
        Self(10_000)
    }
}

impl From<Patience> for Duration {
    fn from(patience: Patience) -> Self {
        Self::from_millis(patience.0)
    }
}

async fn upload(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let named = request.arg("deviceId");
    if !named.is_empty() && who.device_id.as_ref().is_none_or(|own| own.as_str() != named) {
        return Err(Refusal::invalid_param("the device in the path is another one").into());
    }
    let upload: Upload = request.json_or_empty()?;
    let counts = app.users.keys.upload(who, upload).await?;
    Reply::json(&json!({ "one_time_key_counts": counts.one_time }))
}

async fn query(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        device_keys: Wanted,
        #[serde(default)]
        timeout: Patience,
    }
    let Body { device_keys, timeout } = request.json()?;
    let who = request.who()?;
    let mut answer = app.users.keys.query(who, &device_keys).await?;
    app.federation.queries.keys(who, &device_keys, timeout.into(), &mut answer).await?;
    Reply::json(&answer)
}

async fn claim(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        one_time_keys: Claims,
        #[serde(default)]
        timeout: Patience,
    }
    let Body { one_time_keys, timeout } = request.json()?;
    let mut claimed = app.users.keys.claim(&one_time_keys).await?;
    let (elsewhere, failures) = app.federation.queries.claim(&one_time_keys, timeout.into()).await;
    claimed.extend(elsewhere);
    Reply::json(&json!({ "one_time_keys": claimed, "failures": failures }))
}

async fn changes(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Query {
        from: String,
        to: String,
    }
    let query: Query = request.query()?;
    let from = SyncToken::from_client(&query.from)?;
    let to = SyncToken::from_client(&query.to)?;
    let (changed, left) = app.sync.device_changes(request.who()?.user, &from, &to).await?;
    Reply::json(&json!({ "changed": changed, "left": left }))
}

async fn device_signing(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let body: Map<String, Value> = request.json()?;
    if !ui_auth::only_resumes(&body) {
        let new: NewKeys = request.json()?;
        if !app.users.keys.must_confirm(who, &new).await? {
            app.users.keys.set_cross_signing(who, new).await?;
            return Ok(Reply::empty());
        }
    }
    let (new, passed) = ui_auth::confirm(&app, &request, body, Lately::DoesNotCount).await?;
    app.users.keys.set_cross_signing(who, new).await?;
    app.users.ui_auth.finish(&passed).await?;
    Ok(Reply::empty())
}

async fn signatures(app: Arc<App>, request: Request) -> Result<Reply> {
    let new: NewSignatures = request.json()?;
    let elsewhere = app.federation.queries.master_keys(new.keys()).await;
    let failures = app.users.keys.add_signatures(request.who()?, &new, &elsewhere).await?;
    Reply::json(&json!({ "failures": failures }))
}
