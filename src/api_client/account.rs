//! An account and its password.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Router, v3};
use serde_json::{Map, Value, json};

use crate::{
    App,
    ui_auth::{self, Lately},
};

pub fn router(app: &Arc<App>) -> Router {
    Router::of(RouterName::ClientAccount, app)
        .get(v3("/account/whoami"), Auth::Guest, whoami)
        .post(v3("/account/password"), Auth::Token, change_password)
        .post(v3("/account/deactivate"), Auth::Token, deactivate)
        .done()
}

async fn whoami(_: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let mut answer = json!({"user_id": who.user_id, "is_guest": who.is_guest});
    if let (Some(device_id), Value::Object(members)) = (&who.device_id, &mut answer) {
        members.insert("device_id".to_owned(), device_id.as_str().into());
    }
    Reply::json(&answer)
}

async fn change_password(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let body: Map<String, Value> = request.json()?;
    if let Some(password) = text(&body, "new_password")? {
        app.users.passwords.check_policy(password)?;
    }
    let passed = ui_auth::confirm(&app, &request, body, Lately::DoesNotCount).await?;
    let password = text(&passed.body, "new_password")?
        .ok_or_else(|| Refusal::missing_param("new_password is missing"))?;
    app.users.passwords.check_policy(password)?;
    let log_out_others = flag(&passed.body, "logout_devices", true)?;
    app.users.accounts.set_password(who, password, log_out_others).await?;
    app.users.ui_auth.finish(&passed).await?;
    Ok(Reply::empty())
}

async fn deactivate(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let body: Map<String, Value> = request.json_or_empty()?;
    let passed = ui_auth::confirm(&app, &request, body, Lately::DoesNotCount).await?;
    let erase = flag(&passed.body, "erase", false)?;
    app.users.accounts.deactivate(who.user, &who.user_id, erase).await?;
    app.users.ui_auth.finish(&passed).await?;
    Reply::json(&json!({"id_server_unbind_result": "success"}))
}

fn text<'a>(body: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>> {
    match body.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::bad_json(format!("{name} is not a string")).into()),
    }
}

fn flag(body: &Map<String, Value>, name: &str, default: bool) -> Result<bool> {
    match body.get(name) {
        None => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Refusal::bad_json(format!("{name} is not true or false")).into()),
    }
}
