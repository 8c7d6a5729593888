//! User-interactive authentication: an operation that must be confirmed is refused with the
//! stages that are missing, until the client has passed them. What has been passed is in the
//! database, so that any instance can go on.

use std::{sync::Arc, time::Duration};

use chatd_base::{Clock, Error, Refusal, Requester, Result, token};
use chatd_storage::{Batch, Pool, tokens, uia};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Deps, accounts::Accounts, logins::ts};

/// How long a session can be gone on with.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Largest body that is kept for a client that later sends only `auth`.
const MAX_KEPT_BODY: usize = 16 * 1024;
/// Members of a body that are never stored.
const SECRETS: &[&str] = &["password", "new_password"];

/// One thing that a client can prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Dummy,
    Password,
    RegistrationToken,
}

impl Stage {
    /// The name that clients use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dummy => "m.login.dummy",
            Self::Password => "m.login.password",
            Self::RegistrationToken => "m.login.registration_token",
        }
    }
}

/// What is to be confirmed.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Absent for registration.
    pub who: Option<&'a Requester>,
}

/// An operation that has been confirmed.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// Session to end with the operation.
    pub session: Option<String>,
    /// Registration token to use up with the operation.
    pub registration_token: Option<String>,
    /// The body without `auth`; that of the first request if the last one had nothing else.
    pub body: Map<String, Value>,
}

/// The member `auth` of a request.
#[derive(Debug, Default, Deserialize)]
struct Auth {
    #[serde(rename = "type")]
    stage: Option<String>,
    session: Option<String>,
    identifier: Option<Identifier>,
    /// Before there were identifiers.
    user: Option<String>,
    password: Option<String>,
    /// Of `m.login.registration_token`.
    token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Identifier {
    user: Option<String>,
}

/// Sessions of user-interactive authentication.
pub struct UiAuth {
    pool: Pool,
    clock: Clock,
    accounts: Arc<Accounts>,
    /// How long having passed once counts for other operations.
    timeout_ms: u64,
}

impl UiAuth {
    pub(crate) fn new(deps: &Deps, accounts: &Arc<Accounts>) -> Self {
        let timeout = deps.config.sessions.ui_auth.session_timeout;
        Self {
            pool: deps.pool.clone(),
            clock: deps.clock.clone(),
            accounts: accounts.clone(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Whether the requester has authenticated lately enough not to be asked again
    /// (`ui_auth.session_timeout`).
    pub async fn was_passed_lately(&self, who: &Requester) -> Result<bool> {
        if self.timeout_ms == 0 {
            return Ok(false);
        }
        let last = tokens::get_validated(&self.pool, who.token).await?;
        let since = self.clock.now_ms().saturating_sub(self.timeout_ms);
        Ok(last.is_some_and(|last| last > ts(since)))
    }

    /// Returns once all stages of one of `flows` have been passed for this very operation;
    /// otherwise refuses with 401 and what is missing.
    pub async fn check(
        &self,
        flows: &[&[Stage]],
        operation: Operation<'_>,
        mut body: Map<String, Value>,
    ) -> Result<Passed> {
        let auth: Auth = match body.remove("auth") {
            None | Some(Value::Null) => Auth::default(),
            Some(auth) => serde_json::from_value(auth)
                .map_err(|error| Refusal::bad_json(format!("auth: {error}")))?,
        };
        let mut attempt = self.resume(&auth, operation, body).await?;
        let mut failure = None;
        if let Some(name) = &auth.stage {
            let stage = flows.iter().copied().flatten().find(|stage| stage.name() == name);
            let stage = *stage.ok_or_else(|| {
                Refusal::unknown(format!("{name} is not a stage of this operation"))
            })?;
            failure = self.pass(stage, &auth, operation, &mut attempt).await?;
        }
        let done = &attempt.known.completed;
        let is_passed =
            |flow: &&[Stage]| flow.iter().all(|stage| done.iter().any(|name| name == stage.name()));
        if failure.is_none() && flows.iter().any(is_passed) {
            return self.passed(attempt, operation).await;
        }
        let session = self.keep(&mut attempt).await?;
        Err(question(flows, &session, &attempt.known.completed, failure).into())
    }

    /// Ends a session whose operation was done without it being part of a commit.
    pub async fn finish(&self, passed: &Passed) -> Result<()> {
        if let Some(session) = &passed.session {
            let mut batch = Batch::new();
            uia::delete(&mut batch, session);
            self.pool.commit(batch).await?;
        }
        Ok(())
    }

    /// Whether somebody could register with `token` now.
    pub async fn is_registration_token_good(&self, token: &str) -> Result<bool> {
        let (now, since) = self.now_and_since();
        Ok(uia::is_registration_token_good(&self.pool, token, now, since).await?)
    }

    /// The session that the client names, or one that is not stored yet.
    async fn resume(
        &self,
        auth: &Auth,
        operation: Operation<'_>,
        body: Map<String, Value>,
    ) -> Result<Attempt> {
        let user = operation.who.map(|who| who.user);
        let (now, since) = self.now_and_since();
        let Some(id) = &auth.session else {
            let known = uia::Session {
                created_ts: now,
                method: operation.method.to_owned(),
                path: operation.path.to_owned(),
                body: kept(&body),
                user,
                registration_token: None,
                completed: Vec::new(),
            };
            return Ok(Attempt { id: None, known, body, unsaved: None });
        };
        let known = uia::get(&self.pool, id).await?.filter(|known| known.created_ts > since);
        let known = known.ok_or_else(|| Refusal::unknown("there is no such session"))?;
        let asked = (operation.method, operation.path, user);
        if (known.method.as_str(), known.path.as_str(), known.user) != asked {
            let message = "the session was begun for another operation";
            return Err(Refusal::forbidden(message).into());
        }
        let body = if body.is_empty() {
            serde_json::from_str(&known.body).map_err(Error::internal)?
        } else {
            body
        };
        Ok(Attempt { id: Some(id.clone()), known, body, unsaved: None })
    }

    /// Tries one stage; returns why it failed.
    async fn pass(
        &self,
        stage: Stage,
        auth: &Auth,
        operation: Operation<'_>,
        attempt: &mut Attempt,
    ) -> Result<Option<Refusal>> {
        if attempt.known.completed.iter().any(|done| done == stage.name()) {
            return Ok(None);
        }
        let failure = match stage {
            Stage::Dummy => None,
            Stage::Password => self.check_password(auth, operation.who).await?,
            Stage::RegistrationToken => self.reserve(auth, attempt).await?,
        };
        if failure.is_none() {
            attempt.known.completed.push(stage.name().to_owned());
            attempt.unsaved = Some(stage);
        }
        Ok(failure)
    }

    async fn check_password(
        &self,
        auth: &Auth,
        who: Option<&Requester>,
    ) -> Result<Option<Refusal>> {
        let Some(who) = who else { return Ok(Some(Refusal::forbidden("nobody is logged in"))) };
        let Some(password) = &auth.password else {
            return Ok(Some(Refusal::missing_param("auth.password is missing")));
        };
        let named = auth.identifier.as_ref().and_then(|id| id.user.as_deref());
        let name = named.or(auth.user.as_deref()).unwrap_or(who.user_id.as_str());
        match self.accounts.check_password(name, password).await {
            Ok(account) if account.user == who.user => Ok(None),
            Ok(_) => Ok(Some(Refusal::forbidden("that is another user"))),
            Err(Error::Refused(refusal)) if refusal.status == 403 => Ok(Some(*refusal)),
            Err(error) => Err(error),
        }
    }

    /// Reserves a use of the registration token, so that nobody who has passed this stage is
    /// refused later.
    async fn reserve(&self, auth: &Auth, attempt: &mut Attempt) -> Result<Option<Refusal>> {
        let Some(wanted) = &auth.token else {
            return Ok(Some(Refusal::missing_param("auth.token is missing")));
        };
        let (now, since) = self.now_and_since();
        let id = self.keep(attempt).await?;
        if !uia::reserve_registration_token(&self.pool, &id, wanted, now, since).await? {
            let message = "the registration token is not valid";
            return Ok(Some(Refusal::new(401, "M_UNAUTHORIZED", message)));
        }
        attempt.known.registration_token = Some(wanted.clone());
        Ok(None)
    }

    /// Stores the session if it is new, and the stage that has just been passed.
    async fn keep(&self, attempt: &mut Attempt) -> Result<String> {
        let id = match attempt.id.take() {
            Some(id) => id,
            None => {
                let id = token::random_letters(24);
                uia::insert(&self.pool, &id, &attempt.known).await?;
                id
            }
        };
        attempt.id = Some(id.clone());
        if let Some(stage) = attempt.unsaved.take() {
            uia::insert_stage(&self.pool, &id, stage.name()).await?;
        }
        Ok(id)
    }

    async fn passed(&self, attempt: Attempt, operation: Operation<'_>) -> Result<Passed> {
        if let (Some(id), Some(stage)) = (&attempt.id, attempt.unsaved) {
            // Kept, so that a client whose operation fails now need not prove it again.
            uia::insert_stage(&self.pool, id, stage.name()).await?;
        }
        if let Some(who) = operation.who.filter(|_| self.timeout_ms > 0) {
            tokens::set_validated(&self.pool, who.token, ts(self.clock.now_ms())).await?;
        }
        Ok(Passed {
            session: attempt.id,
            registration_token: attempt.known.registration_token,
            body: attempt.body,
        })
    }

    /// Now, and when the oldest session that still counts began.
    fn now_and_since(&self) -> (i64, i64) {
        let now_ms = self.clock.now_ms();
        (ts(now_ms), ts(session_horizon_ms(now_ms)))
    }
}

/// A session while one request looks at it.
struct Attempt {
    /// Absent until it is stored.
    id: Option<String>,
    known: uia::Session,
    body: Map<String, Value>,
    /// Passed by this request.
    unsaved: Option<Stage>,
}

/// Sessions that began before this have ended.
pub(crate) fn session_horizon_ms(now_ms: u64) -> u64 {
    now_ms.saturating_sub(u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX))
}

/// What is stored of a body: no secrets, and nothing large.
fn kept(body: &Map<String, Value>) -> String {
    let mut body = body.clone();
    body.retain(|name, _| !SECRETS.contains(&name.as_str()));
    let text = Value::Object(body).to_string();
    if text.len() > MAX_KEPT_BODY { "{}".to_owned() } else { text }
}

/// 401 with the flows, and with what went wrong if a stage failed.
fn question(
    flows: &[&[Stage]],
    session: &str,
    completed: &[String],
    failure: Option<Refusal>,
) -> Refusal {
    let flows: Vec<Value> = flows
        .iter()
        .map(|flow| json!({"stages": flow.iter().map(|stage| stage.name()).collect::<Vec<_>>()}))
        .collect();
    let base = match failure {
        Some(failure) => Refusal::new(401, failure.errcode, failure.message),
        None => Refusal::new(401, "", "more authentication is needed"),
    };
    base.with("flows", flows)
        .with("params", json!({}))
        .with("session", session)
        .with("completed", completed.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_kept() {
        let Value::Object(body) = json!({"username": "a", "password": "p", "new_password": "q"})
        else {
            unreachable!()
        };
        assert_eq!(kept(&body), r#"{"username":"a"}"#);
        let large = Map::from_iter([("a".to_owned(), json!("x".repeat(20_000)))]);
        assert_eq!(kept(&large), "{}");
    }

    #[test]
    fn a_question_has_no_errcode_and_a_failure_has() {
        let flows: &[&[Stage]] = &[&[Stage::RegistrationToken, Stage::Dummy]];
        let asked = question(flows, "s", &[], None).to_json();
        assert_eq!(asked["flows"][0]["stages"][0], "m.login.registration_token");
        assert_eq!((asked.get("errcode"), asked["session"].as_str()), (None, Some("s")));
        let failed = question(flows, "s", &[], Some(Refusal::forbidden("no")));
        assert_eq!(
            (failed.status, failed.to_json()["errcode"].as_str()),
            (401, Some("M_FORBIDDEN"))
        );
    }
}
