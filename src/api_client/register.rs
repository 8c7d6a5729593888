//! Registration of users and guests.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, LimitClass, Reply, Request, Routes, v1, v3};
use chatd_users::{
    logins::LoginRequest,
    registration::{NewAccount, Registered},
    uia::{Operation, Stage},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{App, login::session_json};

/// Longest local part that is looked at, as other servers have it.
const MAX_USERNAME: usize = 512;

pub fn routes() -> Routes<App> {
    let validity = v1("/register/m.login.registration_token/validity");
    Routes::of(RouterName::ClientRegister)
        .post(v3("/register"), Auth::None, register)
        .once()
        .get(v3("/register/available"), Auth::None, available)
        .get(validity, Auth::None, token_validity)
        .limit(LimitClass::RegistrationTokenValidity)
        .get(v3("/password_policy"), Auth::None, password_policy)
}

#[derive(Deserialize)]
struct Body {
    username: Option<String>,
    password: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
    #[serde(default)]
    inhibit_login: bool,
    #[serde(default)]
    refresh_token: bool,
}

impl Body {
    fn of(members: &Map<String, Value>) -> Result<Self> {
        let body: Self = serde_json::from_value(Value::Object(members.clone()))
            .map_err(|error| Refusal::bad_json(error.to_string()))?;
        if body.username.as_ref().is_some_and(|name| name.len() > MAX_USERNAME) {
            return Err(Refusal::invalid_username("the user name is too long").into());
        }
        Ok(body)
    }

    /// Lower-cased, so that nobody is surprised who types a capital.
    fn localpart(&self) -> Option<String> {
        self.username.as_ref().map(|name| name.to_lowercase())
    }

    fn login(self) -> LoginRequest {
        LoginRequest {
            device_id: self.device_id,
            display_name: self.initial_device_display_name,
            wants_refresh: self.refresh_token,
        }
    }
}

async fn register(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Query {
        kind: Option<String>,
    }
    let address = request.address().map(|address| address.to_string());
    if let Some(address) = &address {
        app.limits.would_allow(LimitClass::Registration, address)?;
    }
    let (registered, body) = match request.query::<Query>()?.kind.as_deref() {
        None | Some("user") => register_user(&app, &request, address.as_deref()).await?,
        Some("guest") => register_guest(&app, &request, address.as_deref()).await?,
        Some(other) => {
            return Err(Refusal::new(400, "M_UNRECOGNIZED", format!("unknown kind {other}")).into());
        }
    };
    let Registered { user, user_id } = registered;
    if body.inhibit_login {
        return Reply::json(&json!({"user_id": user_id, "home_server": user_id.server_name()}));
    }
    let login = app.users.logins.create(&user_id, user, body.login()).await?;
    Reply::json(&session_json(&user_id, login))
}

async fn register_user(
    app: &App,
    request: &Request,
    address: Option<&str>,
) -> Result<(Registered, Body)> {
    if !app.config.registration.enabled {
        return Err(Refusal::forbidden("registration has been disabled").into());
    }
    let members: Map<String, Value> = request.json()?;
    let body = Body::of(&members)?;
    if let Some(password) = &body.password {
        app.users.passwords.check_policy(password)?;
    }
    let registration = &app.users.registration;
    if let Some(localpart) = body.localpart() {
        registration.check_localpart_early(&localpart).await?;
    }
    // Trying registration tokens here is asking about them.
    let stage = members.get("auth").and_then(|auth| auth.get("type")).and_then(Value::as_str);
    if let Some(address) = address.filter(|_| stage == Some(Stage::RegistrationToken.name())) {
        app.limits.check(LimitClass::RegistrationTokenValidity, address)?;
    }
    let path = request.uri().path();
    let operation = Operation { method: request.method().as_str(), path, who: None };
    let passed = app.users.ui_auth.check(registration.flows(), operation, members).await?;
    let mut body = Body::of(&passed.body)?;
    let password = body.password.take();
    let password = password.ok_or_else(|| Refusal::missing_param("password is missing"))?;
    count(app, address)?;
    let new = NewAccount {
        localpart: body.localpart(),
        password: Some(password),
        passed: Some(passed),
        ..NewAccount::default()
    };
    Ok((registration.register(new).await?, body))
}

async fn register_guest(
    app: &App,
    request: &Request,
    address: Option<&str>,
) -> Result<(Registered, Body)> {
    if !app.config.registration.allow_guests {
        let message = "guest access is disabled";
        return Err(Refusal::new(403, "M_GUEST_ACCESS_FORBIDDEN", message).into());
    }
    let members: Map<String, Value> = request.json_or_empty()?;
    // Guests choose nothing but the name of their device.
    let name = Body::of(&members)?.initial_device_display_name;
    let body = Body::of(&Map::new())?;
    count(app, address)?;
    let registered = app.users.registration.register_guest().await?;
    Ok((registered, Body { initial_device_display_name: name, ..body }))
}

/// Counts an account that is about to be made.
fn count(app: &App, address: Option<&str>) -> Result<()> {
    address.map_or(Ok(()), |address| app.limits.check(LimitClass::Registration, address))
}

async fn available(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Query {
        username: String,
    }
    if !app.config.registration.enabled {
        return Err(Refusal::forbidden("registration has been disabled").into());
    }
    let query: Query = request.query()?;
    app.users.registration.check_localpart_early(&query.username).await?;
    Reply::json(&json!({"available": true}))
}

async fn token_validity(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Query {
        token: String,
    }
    if !app.config.registration.enabled {
        return Err(Refusal::forbidden("registration has been disabled").into());
    }
    let query: Query = request.query()?;
    let valid = app.users.ui_auth.is_registration_token_good(&query.token).await?;
    Reply::json(&json!({"valid": valid}))
}

async fn password_policy(app: Arc<App>, _: Request) -> Result<Reply> {
    let policy = &app.config.passwords.login.policy;
    if !policy.enabled {
        return Ok(Reply::empty());
    }
    Reply::json(&json!({
        "m.minimum_length": policy.minimum_length,
        "m.require_digit": policy.require_digit,
        "m.require_symbol": policy.require_symbol,
        "m.require_lowercase": policy.require_lowercase,
        "m.require_uppercase": policy.require_uppercase,
    }))
}
