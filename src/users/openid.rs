//! Tokens by which a user shows a third party who they are. They are good for that alone, for an
//! hour, and as often as somebody asks.

use std::time::Duration;

use chatd_base::{Clock, Refusal, Requester, Result, token};
use chatd_storage::{Pool, tokens};

use crate::{Deps, logins::ts, tokens::digest};

/// How long a token is good.
pub const LIFE: Duration = Duration::from_secs(3_600);

/// Gives the tokens out, and knows whose they are.
pub struct OpenId {
    pool: Pool,
    clock: Clock,
}

impl OpenId {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self { pool: deps.pool.clone(), clock: deps.clock.clone() }
    }

    /// A new token of the requester, which is good for [`LIFE`].
    pub async fn request(&self, who: &Requester) -> Result<String> {
        let secret = token::openid_token();
        let life_ms = u64::try_from(LIFE.as_millis()).unwrap_or(u64::MAX);
        let expires_ts = ts(self.clock.now_ms() + life_ms);
        tokens::insert_openid_token(&self.pool, &digest(&secret), who.user, expires_ts).await?;
        Ok(secret)
    }

    /// Whose token it is. Refuses those that are not known, have expired, or are of users who are
    /// deactivated. They are looked up by their digest: how long that takes tells nothing of them.
    pub async fn holder(&self, secret: &str) -> Result<String> {
        let unknown = || Refusal::unknown_token("the token is not known, or has expired");
        if !token::has_valid_checksum(secret) {
            return Err(unknown().into());
        }
        let now = ts(self.clock.now_ms());
        let holder = tokens::get_openid_holder(&self.pool, &digest(secret), now).await?;
        holder.ok_or_else(|| unknown().into())
    }
}
