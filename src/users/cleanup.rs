//! Removes what has expired and nobody asks for any more: ui-auth sessions and login tokens.

use std::time::Duration;

use chatd_base::{Clock, Stop};
use chatd_storage::{Pool, tokens, uia};

use crate::{logins::ts, uia::session_horizon_ms};

const EVERY: Duration = Duration::from_secs(3600);

/// Until `stop`; safe to run on several instances at once.
pub async fn run(pool: Pool, clock: Clock, stop: Stop) {
    while stop.sleep(EVERY).await {
        let now_ms = clock.now_ms();
        if let Err(error) = remove_expired(&pool, now_ms).await {
            tracing::warn!(%error, "could not remove expired sessions; trying again in an hour");
        }
    }
}

async fn remove_expired(pool: &Pool, now_ms: u64) -> chatd_storage::Result<()> {
    uia::delete_expired(pool, ts(session_horizon_ms(now_ms))).await?;
    tokens::delete_expired_login_tokens(pool, ts(now_ms)).await
}
