//! Logging in and out, and exchanging refresh tokens.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, LimitClass, Reply, Request, Routes, v1, v3};
use chatd_users::{
    accounts::Account,
    logins::{GivenTokens, Login, LoginRequest},
};
use ruma_common::UserId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    App,
    ui_auth::{self, Ignored, Lately},
};

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientLogin)
        .get(v3("/login"), Auth::None, flows)
        .post(v3("/login"), Auth::None, login)
        .once()
        .post(v1("/login/get_token"), Auth::Token, get_token)
        .once()
        .post(v3("/refresh").or(v1("/refresh")), Auth::None, refresh)
        .post(v3("/logout"), Auth::Guest, logout)
        .home(Home::Stream(StreamName::DeviceLists))
        .post(v3("/logout/all"), Auth::Guest, logout_all)
        .home(Home::Stream(StreamName::DeviceLists))
}

async fn flows(app: Arc<App>, _: Request) -> Result<Reply> {
    let mut flows = Vec::new();
    if app.config.passwords.login.may_log_in() {
        flows.push(json!({"type": "m.login.password"}));
    }
    if app.config.sessions.login_via_existing_session.enabled {
        flows.push(json!({"type": "m.login.token", "get_login_token": true}));
    }
    Reply::json(&json!({"flows": flows}))
}

#[derive(Deserialize)]
struct LoginBody {
    #[serde(rename = "type")]
    kind: String,
    identifier: Option<Identifier>,
    /// Before there were identifiers.
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
    #[serde(default)]
    refresh_token: bool,
}

#[derive(Deserialize)]
struct Identifier {
    #[serde(rename = "type")]
    kind: String,
    user: Option<String>,
}

async fn login(app: Arc<App>, request: Request) -> Result<Reply> {
    let body: LoginBody = request.json()?;
    if let Some(address) = request.address() {
        app.limits.check(LimitClass::LoginAddress, &address.to_string())?;
    }
    let account = match body.kind.as_str() {
        "m.login.password" => by_password(&app, &body).await?,
        "m.login.token" => by_token(&app, &body).await?,
        other => return Err(Refusal::unknown(format!("unknown login type {other}")).into()),
    };
    app.limits.check(LimitClass::LoginAccount, &account.user_id.to_lowercase())?;
    let wanted = LoginRequest {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
        wants_refresh: body.refresh_token,
    };
    let user_id = UserId::parse(&account.user_id).map_err(chatd_base::Error::internal)?;
    let login = app.users.logins.create(&user_id, account.user, wanted).await?;
    let mut answer = session_json(&user_id, login);
    if let Some(base_url) = &app.config.public_baseurl {
        let well_known = json!({"m.homeserver": {"base_url": format!("{base_url}/")}});
        answer.insert("well_known".to_owned(), well_known);
    }
    Reply::json(&answer)
}

async fn by_password(app: &App, body: &LoginBody) -> Result<Account> {
    if !app.config.passwords.login.may_log_in() {
        return Err(Refusal::unknown("password login has been disabled").into());
    }
    let name = match &body.identifier {
        Some(identifier) if identifier.kind == "m.id.user" => identifier.user.as_deref(),
        Some(identifier) => {
            let message = format!("identifiers of type {} are not known", identifier.kind);
            return Err(Refusal::unknown(message).into());
        }
        None => body.user.as_deref(),
    };
    let name = name.ok_or_else(|| Refusal::missing_param("identifier.user is missing"))?;
    let password = body.password.as_deref();
    let password = password.ok_or_else(|| Refusal::missing_param("password is missing"))?;
    let key = app.users.accounts.attempts_key(name);
    app.limits.would_allow(LimitClass::LoginFailedAttempts, &key)?;
    let outcome = app.users.accounts.check_password(name, password).await;
    if outcome.as_ref().err().is_some_and(|error| error.errcode() == Some("M_FORBIDDEN")) {
        app.limits.check(LimitClass::LoginFailedAttempts, &key)?;
    }
    outcome
}

async fn by_token(app: &App, body: &LoginBody) -> Result<Account> {
    if !app.config.sessions.login_via_existing_session.enabled {
        return Err(Refusal::unknown("login tokens are switched off").into());
    }
    let token = body.token.as_deref().ok_or_else(|| Refusal::missing_param("token is missing"))?;
    app.users.logins.take_login_token(token).await
}

/// What somebody is told who has logged in or registered.
pub fn session_json(user_id: &UserId, login: Login) -> Map<String, Value> {
    let mut answer = tokens_json(login.tokens);
    answer.insert("user_id".to_owned(), user_id.as_str().into());
    answer.insert("home_server".to_owned(), user_id.server_name().as_str().into());
    answer.insert("device_id".to_owned(), login.device_id.into());
    answer
}

fn tokens_json(tokens: GivenTokens) -> Map<String, Value> {
    let mut answer = Map::new();
    answer.insert("access_token".to_owned(), tokens.access_token.into());
    if let Some(refresh_token) = tokens.refresh_token {
        answer.insert("refresh_token".to_owned(), refresh_token.into());
    }
    if let Some(expires_in_ms) = tokens.expires_in_ms {
        answer.insert("expires_in_ms".to_owned(), expires_in_ms.into());
    }
    answer
}

async fn get_token(app: Arc<App>, request: Request) -> Result<Reply> {
    let config = &app.config.sessions.login_via_existing_session;
    if !config.enabled {
        return Err(Refusal::unrecognized("login tokens are switched off").into());
    }
    let who = request.who()?;
    let body: Map<String, Value> = request.json_or_empty()?;
    if config.require_ui_auth {
        let (Ignored {}, passed) =
            ui_auth::confirm(&app, &request, body, Lately::DoesNotCount).await?;
        app.users.ui_auth.finish(&passed).await?;
    }
    let (token, life) = app.users.logins.create_login_token(who).await?;
    let expires_in_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    Reply::json(&json!({"login_token": token, "expires_in_ms": expires_in_ms}))
}

async fn refresh(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        refresh_token: String,
    }
    let body: Body = request.json()?;
    Reply::json(&tokens_json(app.users.logins.refresh(&body.refresh_token).await?))
}

async fn logout(app: Arc<App>, request: Request) -> Result<Reply> {
    app.users.devices.log_out(request.who()?).await?;
    Ok(Reply::empty())
}

async fn logout_all(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    app.users.devices.delete_all_with(who.user, &who.user_id, |_| ()).await?;
    Ok(Reply::empty())
}
