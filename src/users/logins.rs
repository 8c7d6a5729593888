//! Sessions: giving tokens to a device, exchanging refresh tokens, and one-time login tokens.

use std::{sync::Arc, time::Duration};

use chatd_base::{Clock, Error, Refusal, Requester, Result, UserNid, token};
use chatd_config::Sessions;
use chatd_storage::{
    Batch, Pool,
    notices::{Notice, Notices},
    tokens::{self, NewRefresh, NewTokens},
};
use ruma_common::UserId;

use crate::{
    Deps,
    accounts::{Account, deactivated},
    devices::{MAX_DEVICE_ID, MAX_DISPLAY_NAME},
    tokens::{Ended, Tokens, digest},
};

/// How long an expired access token is remembered, so that its client learns that it may log in
/// softly.
const REMEMBER_EXPIRED: Duration = Duration::from_secs(24 * 3600);

/// What a client asks for when it logs in.
#[derive(Clone, Debug, Default)]
pub struct LoginRequest {
    /// Made up if absent.
    pub device_id: Option<String>,
    /// Of a new device; cut where it is too long.
    pub display_name: Option<String>,
    /// Whether the client can use refresh tokens.
    pub wants_refresh: bool,
}

/// What it is given.
#[derive(Clone, Debug)]
pub struct Login {
    pub device_id: String,
    pub tokens: GivenTokens,
}

/// Tokens as clients see them.
#[derive(Clone, Debug)]
pub struct GivenTokens {
    pub access_token: String,
    pub refresh_token: Option<String>,
    pub expires_in_ms: Option<u64>,
}

/// Gives tokens out.
pub struct Logins {
    pool: Pool,
    clock: Clock,
    lifetimes: Sessions,
    tokens: Arc<Tokens>,
    notices: Arc<Notices>,
}

impl Logins {
    pub(crate) fn new(deps: &Deps, tokens: &Arc<Tokens>) -> Self {
        Self {
            pool: deps.pool.clone(),
            clock: deps.clock.clone(),
            lifetimes: deps.config.sessions.clone(),
            tokens: tokens.clone(),
            notices: deps.notices.clone(),
        }
    }

    /// Logs a device in: it is made if it is new, its old tokens end. One commit.
    pub async fn create(
        &self,
        user_id: &UserId,
        user: UserNid,
        wanted: LoginRequest,
    ) -> Result<Login> {
        let may_exist = wanted.device_id.is_some();
        let device_id = wanted.device_id.unwrap_or_else(new_device_id);
        if device_id.is_empty() || device_id.chars().count() > MAX_DEVICE_ID {
            return Err(Refusal::invalid_param("the device id is empty or too long").into());
        }
        let session_ends_ms = self.lifetimes.session_lifetime.map(|life| self.after(life));
        let refreshable =
            wanted.wants_refresh && self.lifetimes.refreshable_access_token_lifetime.is_some();
        let (given, new) = self.mint(user_id, user, &device_id, session_ends_ms, refreshable);
        let mut batch = Batch::new();
        let display_name =
            wanted.display_name.map(|name| name.chars().take(MAX_DISPLAY_NAME).collect());
        tokens::insert_login(&mut batch, new, display_name);
        if may_exist {
            let devices = vec![device_id.clone()];
            self.notices.tell(&mut batch, Notice::DevicesEnded { user, devices });
        }
        let outcome = self.pool.commit(batch).await;
        if may_exist {
            self.tokens.forget(user, Ended::Device(&device_id));
        }
        outcome?;
        Ok(Login { device_id, tokens: given })
    }

    /// Exchanges a refresh token for new tokens. It stays good until one of these is used, so a
    /// client that did not get the answer can ask again.
    pub async fn refresh(&self, refresh_token: &str) -> Result<GivenTokens> {
        let unknown = || -> Error {
            let refusal = Refusal::unknown_token("the refresh token is not known");
            refusal.with("soft_logout", false).into()
        };
        if !token::has_valid_checksum(refresh_token) {
            return Err(unknown());
        }
        let old = digest(refresh_token);
        let known = tokens::get_refresh(&self.pool, &old).await?.ok_or_else(unknown)?;
        let now = ts(self.clock.now_ms());
        if known.is_spent {
            return Err(Refusal::forbidden("the refresh token has been used").into());
        }
        if [known.expires_ts, known.session_ends_ts].iter().flatten().any(|end| *end < now) {
            return Err(Refusal::forbidden("the refresh token has expired").into());
        }
        let user_id = <&UserId>::try_from(known.user_id.as_str()).map_err(Error::internal)?;
        let ends_ms = known.session_ends_ts.and_then(|end| u64::try_from(end).ok());
        let (given, new) = self.mint(user_id, known.user, &known.device_id, ends_ms, true);
        let expired_before = now - ts(ms(REMEMBER_EXPIRED));
        if !tokens::exchange_refresh(&self.pool, &old, new, expired_before).await? {
            return Err(unknown());
        }
        Ok(given)
    }

    /// A token that logs the requester in once, on another device.
    pub async fn create_login_token(&self, who: &Requester) -> Result<(String, Duration)> {
        let secret = token::access_token(who.user_id.localpart());
        let life = self.lifetimes.login_via_existing_session.token_timeout;
        let expires_ts = ts(self.after(life));
        tokens::insert_login_token(&self.pool, &digest(&secret), who.user, expires_ts).await?;
        Ok((secret, life))
    }

    /// Uses a login token up; returns whose it was. Refuses with 403.
    pub async fn take_login_token(&self, secret: &str) -> Result<Account> {
        let refused = || Error::from(Refusal::forbidden("the login token is not valid"));
        if !token::has_valid_checksum(secret) {
            return Err(refused());
        }
        let taken = tokens::take_login_token(&self.pool, &digest(secret)).await?;
        let (user, expires_ts) = taken.ok_or_else(refused)?;
        if expires_ts < ts(self.clock.now_ms()) {
            return Err(refused());
        }
        let account = chatd_storage::accounts::get(&self.pool, user).await?.ok_or_else(refused)?;
        if account.deactivated {
            return Err(deactivated().into());
        }
        Ok(account)
    }

    /// Makes tokens up, with the ends that the configuration gives them.
    fn mint(
        &self,
        user_id: &UserId,
        user: UserNid,
        device_id: &str,
        session_ends_ms: Option<u64>,
        refreshable: bool,
    ) -> (GivenTokens, NewTokens) {
        let lifetimes = &self.lifetimes;
        let life = if refreshable {
            lifetimes.refreshable_access_token_lifetime
        } else {
            lifetimes.nonrefreshable_access_token_lifetime
        };
        let end_of = |life: Option<Duration>| earlier(life.map(|l| self.after(l)), session_ends_ms);
        let valid_until_ms = end_of(life);
        let access_token = token::access_token(user_id.localpart());
        let refresh_token = refreshable.then(|| token::refresh_token(user_id.localpart()));
        let new = NewTokens {
            user,
            device_id: device_id.to_owned(),
            access: digest(&access_token),
            valid_until_ts: valid_until_ms.map(ts),
            refresh: refresh_token.as_ref().map(|refresh| NewRefresh {
                digest: digest(refresh),
                expires_ts: end_of(lifetimes.refresh_token_lifetime).map(ts),
                session_ends_ts: session_ends_ms.map(ts),
            }),
        };
        let now_ms = self.clock.now_ms();
        let expires_in_ms = valid_until_ms.map(|until| until.saturating_sub(now_ms));
        (GivenTokens { access_token, refresh_token, expires_in_ms }, new)
    }

    fn after(&self, life: Duration) -> u64 {
        self.clock.now_ms().saturating_add(ms(life))
    }
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds as PostgreSQL keeps them.
pub(crate) fn ts(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn new_device_id() -> String {
    token::random_letters(10).to_ascii_uppercase()
}
