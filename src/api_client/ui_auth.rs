//! Asking a user to authenticate again before an operation, with the limit on wrong attempts.

use chatd_base::{Error, Refusal, Result};
use chatd_http::{LimitClass, Request};
use chatd_users::uia::{Operation, Passed, Stage};
use serde_json::{Map, Value};

use crate::App;

/// Whether an operation is covered by an authentication of a short while ago.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lately {
    /// It is, as long as `ui_auth.session_timeout` says.
    Counts,
    /// It is so grave that it always asks.
    DoesNotCount,
}

/// Returns once the requester has proved again who they are; otherwise refuses with 401 and the
/// stages that are missing.
pub async fn confirm(
    app: &App,
    request: &Request,
    body: Map<String, Value>,
    lately: Lately,
) -> Result<Passed> {
    let who = request.who()?;
    if lately == Lately::Counts && app.users.ui_auth.was_passed_lately(who).await? {
        return Ok(Passed { body, ..Passed::default() });
    }
    if !app.config.passwords.login.may_reauthenticate() {
        let message = "there is no way to authenticate again: passwords are switched off";
        return Err(Refusal::forbidden(message).into());
    }
    let key = who.user_id.as_str();
    app.limits.would_allow(LimitClass::LoginFailedAttempts, key)?;
    let path = request.uri().path();
    let operation = Operation { method: request.method().as_str(), path, who: Some(who) };
    let outcome = app.users.ui_auth.check(&[&[Stage::Password]], operation, body).await;
    if outcome.as_ref().err().is_some_and(is_wrong_password) {
        app.limits.check(LimitClass::LoginFailedAttempts, key)?;
    }
    outcome
}

fn is_wrong_password(error: &Error) -> bool {
    matches!(error, Error::Refused(refusal)
        if refusal.status == 401 && refusal.errcode == "M_FORBIDDEN")
}
