//! Tokens by which a user shows a third party who they are.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, LimitClass, Reply, Request, Routes, v3};
use chatd_users::openid;
use ruma_common::OwnedUserId;
use serde_json::json;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientAccount)
        .post(v3("/user/{userId}/openid/request_token"), Auth::Token, request_token)
        .limit(LimitClass::OpenId)
}

async fn request_token(app: Arc<App>, req: Request) -> Result<Reply> {
    let who = req.who()?;
    let user: OwnedUserId = req.arg_as("userId")?;
    if user != who.user_id {
        return Err(Refusal::forbidden("tokens are given to the user whose they are").into());
    }
    Reply::json(&json!({
        "access_token": app.users.openid.request(who).await?,
        "token_type": "Bearer",
        "matrix_server_name": app.config.server_name,
        "expires_in": openid::LIFE.as_secs(),
    }))
}
