//! An account and its password.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Requester, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Router, v3};
use chatd_rooms::membership::Extra;
use futures::{StreamExt, stream};
use ruma_common::RoomId;
use serde_json::{Map, Value, json};

use crate::{
    App,
    ui_auth::{self, Lately},
};

/// Rooms that a closed account leaves at the same time.
const LEAVES_AT_ONCE: usize = 8;

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
    app.rooms.leave_all(who.user, &who.user_id).await?;
    app.users.ui_auth.finish(&passed).await?;
    leave_rooms(&app, who).await?;
    Reply::json(&json!({"id_server_unbind_result": "success"}))
}

/// Takes a closed account out of its rooms. A room that cannot be left is logged and does not
/// keep the user in the others.
async fn leave_rooms(app: &App, who: &Requester) -> Result<()> {
    let rooms = app.reader.joined_rooms(who.user).await?;
    stream::iter(rooms)
        .for_each_concurrent(LEAVES_AT_ONCE, async |(_, room)| {
            let left = match RoomId::parse(&room) {
                Ok(id) => app.rooms.leave(&who.user_id, &id, Extra::default()).await,
                Err(error) => Err(Error::internal(error)),
            };
            if let Err(error) = left {
                tracing::warn!(room.id = %room, %error, "a closed account could not leave a room");
            }
        })
        .await;
    Ok(())
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
