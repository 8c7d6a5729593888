//! Asking a user to authenticate again before an operation, with the limit on wrong attempts.

use chatd_base::{Error, Refusal, Result};
use chatd_http::{LimitClass, Request};
use chatd_users::uia::{Operation, Passed, Stage};
use serde::{Deserialize, de::DeserializeOwned};
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

/// A body of which nothing but `auth` matters.
#[derive(Deserialize)]
pub struct Ignored {}

/// Returns what is to be done once the requester has proved again who they are; otherwise refuses
/// with 401 and the stages that are missing. A body of the wrong shape is refused before anything
/// is asked.
pub async fn confirm<T: DeserializeOwned>(
    app: &App,
    request: &Request,
    body: Map<String, Value>,
    lately: Lately,
) -> Result<(T, Passed)> {
    if !only_resumes(&body) {
        parse::<T>(&body)?;
    }
    let passed = ask(app, request, body, lately).await?;
    Ok((parse(&passed.body)?, passed))
}

/// Whether the body only goes on with a session, which has kept what is to be done.
pub fn only_resumes(body: &Map<String, Value>) -> bool {
    let session = body.get("auth").and_then(|auth| auth.get("session"));
    body.len() == 1 && session.is_some_and(Value::is_string)
}

fn parse<T: DeserializeOwned>(body: &Map<String, Value>) -> Result<T> {
    T::deserialize(body).map_err(|error| {
        let message = error.to_string();
        if message.starts_with("missing field") {
            Refusal::missing_param(message).into()
        } else {
            Refusal::bad_json(message).into()
        }
    })
}

async fn ask(
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
    let key = app.users.accounts.attempts_key(who.user_id.as_str());
    app.limits.would_allow(LimitClass::LoginFailedAttempts, &key)?;
    let path = request.uri().path();
    let operation = Operation { method: request.method().as_str(), path, who: Some(who) };
    let outcome = app.users.ui_auth.check(&[&[Stage::Password]], operation, body).await;
    if outcome.as_ref().err().is_some_and(is_wrong_password) {
        app.limits.check(LimitClass::LoginFailedAttempts, &key)?;
    }
    outcome
}

fn is_wrong_password(error: &Error) -> bool {
    matches!(error, Error::Refused(refusal)
        if refusal.status == 401 && refusal.errcode == "M_FORBIDDEN")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_body_with_nothing_but_a_session_goes_on_with_it() {
        let table = [
            (json!({"auth": {"session": "s"}}), true),
            (json!({"auth": {"type": "m.login.dummy"}}), false),
            (json!({"auth": {"session": "s"}, "devices": []}), false),
            (json!({}), false),
        ];
        for (body, expected) in table {
            let Value::Object(body) = body else { unreachable!() };
            assert_eq!(only_resumes(&body), expected, "{body:?}");
        }
    }
}
