//! An account and its password.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, Reply, Request, Routes, v3};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    App,
    ui_auth::{self, Lately},
};

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientAccount)
        .get(v3("/account/whoami"), Auth::Guest, whoami)
        .post(v3("/account/password"), Auth::Token, change_password)
        .home(Home::Stream(StreamName::DeviceLists))
        .once()
        .post(v3("/account/deactivate"), Auth::Token, deactivate)
        .home(Home::Stream(StreamName::DeviceLists))
        .once()
}

async fn whoami(_: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let mut answer = json!({"user_id": who.user_id, "is_guest": who.is_guest});
    if let (Some(device_id), Value::Object(members)) = (&who.device_id, &mut answer) {
        members.insert("device_id".to_owned(), device_id.as_str().into());
    }
    Reply::json(&answer)
}

#[derive(Deserialize)]
struct NewPassword {
    new_password: Option<String>,
    #[serde(default = "yes")]
    logout_devices: bool,
}

async fn change_password(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let body: Map<String, Value> = request.json()?;
    if let Some(password) = body.get("new_password").and_then(Value::as_str) {
        app.users.passwords.check_policy(password)?;
    }
    let (new, passed): (NewPassword, _) =
        ui_auth::confirm(&app, &request, body, Lately::DoesNotCount).await?;
    let password =
        new.new_password.ok_or_else(|| Refusal::missing_param("new_password is missing"))?;
    app.users.accounts.set_password(who, &password, new.logout_devices).await?;
    app.users.ui_auth.finish(&passed).await?;
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct Deactivation {
    #[serde(default)]
    erase: bool,
}

async fn deactivate(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let body: Map<String, Value> = request.json_or_empty()?;
    let (Deactivation { erase }, passed) =
        ui_auth::confirm(&app, &request, body, Lately::DoesNotCount).await?;
    app.users.accounts.deactivate(who.user, &who.user_id, erase).await?;
    app.rooms.leave_all(who.user, &who.user_id).await?;
    app.users.ui_auth.finish(&passed).await?;
    Reply::json(&json!({"id_server_unbind_result": "success"}))
}

fn yes() -> bool {
    true
}
