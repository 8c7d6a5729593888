//! Profiles.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Requester, Result, UserNid};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, v3};
use chatd_users::profiles::{self, AVATAR_URL, DISPLAYNAME, Profile};
use ruma_common::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientProfile)
        .get(v3("/profile/{userId}"), Auth::Optional, get)
        .get(v3("/profile/{userId}/{keyName}"), Auth::Optional, get_field)
        .put(v3("/profile/{userId}/{keyName}"), Auth::Guest, set_field)
        .delete(v3("/profile/{userId}/{keyName}"), Auth::Guest, delete_field)
}

async fn get(app: Arc<App>, request: Request) -> Result<Reply> {
    Reply::json(&profile(&app, &request).await?.fields)
}

async fn get_field(app: Arc<App>, request: Request) -> Result<Reply> {
    let name = request.arg("keyName");
    let profile = profile(&app, &request).await?;
    match profile.fields.get(name) {
        Some(value) => Reply::json(&json!({name: value})),
        // Older than fields of one's own, and never an error to lack.
        None if profiles::is_basic(name) => Ok(Reply::empty()),
        None => Err(Refusal::not_found("the profile has no such field").into()),
    }
}

async fn set_field(app: Arc<App>, request: Request) -> Result<Reply> {
    let name = request.arg("keyName");
    profiles::check_name(name)?;
    let mut body: Map<String, Value> = request.json()?;
    let value =
        body.remove(name).ok_or_else(|| Refusal::missing_param(format!("{name} is missing")))?;
    set(&app, &request, value).await
}

async fn delete_field(app: Arc<App>, request: Request) -> Result<Reply> {
    set(&app, &request, Value::Null).await
}

async fn set(app: &App, request: &Request, value: Value) -> Result<Reply> {
    let (who, name) = (request.who()?, request.arg("keyName"));
    let user_id: OwnedUserId = request.arg_as("userId")?;
    check_may_set(app, who, &user_id, name)?;
    let user = app.users.deps.interner.known_users(&[user_id.as_str()]).await?[0];
    let user = user.ok_or_else(unknown_user)?;
    app.users.profiles.set(user, name, value).await?;
    if profiles::is_basic(name) {
        app.rooms.propagate_profile(user).await?;
    }
    Ok(Reply::empty())
}

fn check_may_set(app: &App, who: &Requester, user_id: &UserId, name: &str) -> Result<()> {
    if who.is_admin {
        return Ok(());
    }
    if who.user_id != user_id {
        return Err(Refusal::forbidden("that is the profile of another user").into());
    }
    let config = &app.config.profiles;
    let is_fixed = match name {
        DISPLAYNAME => !config.may_set_displayname,
        AVATAR_URL => !config.may_set_avatar_url,
        _ => false,
    };
    if is_fixed {
        let message = format!("this server does not let users change their {name}");
        return Err(Refusal::forbidden(message).into());
    }
    Ok(())
}

/// The profile that the path names, if the requester may see it.
async fn profile(app: &App, request: &Request) -> Result<Arc<Profile>> {
    if app.config.profiles.require_auth {
        request.who()?;
    }
    let user_id: OwnedUserId = request.arg_as("userId")?;
    let known = app.users.deps.interner.known_users(&[user_id.as_str()]).await?;
    check_may_see(app, request, known[0]).await?;
    if user_id.server_name() != app.config.server_name {
        return app.federation.queries.profile(&user_id).await;
    }
    let profile = app.users.profiles.get(known[0].ok_or_else(unknown_user)?).await?;
    if !profile.is_local {
        return Err(unknown_user());
    }
    Ok(profile)
}

/// Refuses those who share no room with `user`, where the configuration asks for that. Nobody
/// shares one with a user of whom this server has never heard.
async fn check_may_see(app: &App, request: &Request, user: Option<UserNid>) -> Result<()> {
    let Some(who) = request.requester().filter(|_| app.config.profiles.only_shared_rooms) else {
        return Ok(());
    };
    let shares = match user {
        Some(user) => who.user == user || app.users.profiles.share_a_room(who.user, user).await?,
        None => false,
    };
    if shares { Ok(()) } else { Err(Refusal::forbidden("you share no room with that user").into()) }
}

fn unknown_user() -> Error {
    Refusal::not_found("there is no profile of that user").into()
}
