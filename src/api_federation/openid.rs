//! What third parties ask about users who have given them a token. They need not be servers: the
//! request is not signed. Listeners may have this and nothing else.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, federation_v1};
use serde::Deserialize;
use serde_json::json;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::Openid).get(federation_v1("/openid/userinfo"), Auth::None, user_info)
}

async fn user_info(app: Arc<App>, req: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Parameters {
        access_token: Option<String>,
    }
    let token = req.query::<Parameters>()?.access_token;
    let token = token.ok_or_else(|| Refusal::new(401, "M_MISSING_TOKEN", "a token is missing"))?;
    let user = app.federation.deps.users.openid.holder(&token).await?;
    Reply::json(&json!({ "sub": user }))
}
