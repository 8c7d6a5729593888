//! `/_synapse/admin/v1/register`: whoever knows `registration_shared_secret` makes accounts, as
//! `chatd register-user` and Synapse's own tool do.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, raw};
use chatd_users::{logins::LoginRequest, registration::NewAccount};
use serde::Deserialize;
use serde_json::json;

use crate::{
    App,
    mac::{self, Claim},
};

/// Longest user name and password, in bytes.
const MAX_BYTES: usize = 512;
const USER_TYPES: [&str; 2] = ["support", "bot"];

pub fn routes() -> Routes<App> {
    let path = || raw("/_synapse/admin/v1/register");
    Routes::of(RouterName::Admin)
        .get(path(), Auth::None, give_nonce)
        .post(path(), Auth::None, register)
        .once()
}

async fn give_nonce(app: Arc<App>, _: Request) -> Result<Reply> {
    shared_secret(&app)?;
    let nonce = app.nonces.give().ok_or_else(|| Refusal::limit_exceeded(60_000))?;
    Reply::json(&json!({ "nonce": nonce }))
}

#[derive(Deserialize)]
struct Body {
    nonce: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(default)]
    admin: bool,
    displayname: Option<String>,
    user_type: Option<String>,
    mac: Option<String>,
    #[serde(default)]
    inhibit_login: bool,
}

async fn register(app: Arc<App>, request: Request) -> Result<Reply> {
    let body: Body = request.json()?;
    let log_in = !body.inhibit_login;
    let made = app.users.registration.register(checked(&app, body)?).await?;
    let mut answer = json!({"user_id": made.user_id, "home_server": app.config.server_name});
    if log_in {
        let device = LoginRequest::default();
        let login = app.users.logins.create(&made.user_id, made.user, device).await?;
        answer["access_token"] = login.tokens.access_token.into();
        answer["device_id"] = login.device_id.into();
    }
    Reply::json(&answer)
}

/// The account that is asked for, by somebody who knows the secret. Uses the nonce up.
fn checked(app: &App, body: Body) -> Result<NewAccount> {
    let secret = shared_secret(app)?;
    let nonce = required(body.nonce.as_deref(), "nonce")?;
    if !app.nonces.take(nonce) {
        return Err(Refusal::unknown("unrecognised nonce").into());
    }
    let claim = Claim {
        nonce,
        username: text(body.username.as_deref(), "username")?,
        password: text(body.password.as_deref(), "password")?,
        admin: body.admin,
        user_type: body.user_type.as_deref(),
    };
    let mac = required(body.mac.as_deref(), "mac")?;
    if claim.user_type.is_some_and(|user_type| !USER_TYPES.contains(&user_type)) {
        return Err(Refusal::unknown("invalid user type").into());
    }
    if !mac::is_right(secret, &claim, mac) {
        return Err(Refusal::new(403, "M_UNKNOWN", "HMAC incorrect").into());
    }
    Ok(NewAccount {
        localpart: Some(claim.username.to_lowercase()),
        password: Some(claim.password.to_owned()),
        admin: claim.admin,
        displayname: body.displayname,
        user_type: body.user_type,
        passed: None,
    })
}

fn shared_secret(app: &App) -> Result<&str> {
    match &app.config.registration.shared_secret {
        Some(secret) => Ok(secret.expose()),
        None => Err(Refusal::unknown("shared secret registration is not enabled").into()),
    }
}

fn required<'a>(value: Option<&'a str>, name: &str) -> Result<&'a str> {
    value.ok_or_else(|| Error::from(Refusal::bad_json(format!("{name} must be specified"))))
}

/// A value that takes part in the MAC: bounded, and without the byte that separates its parts.
fn text<'a>(value: Option<&'a str>, name: &str) -> Result<&'a str> {
    let value = required(value, name)?;
    if value.is_empty() || value.len() > MAX_BYTES || value.contains('\0') {
        return Err(Refusal::unknown(format!("invalid {name}")).into());
    }
    Ok(value)
}
