//! Removes what has expired and nobody asks for any more: ui-auth sessions, login and OpenID tokens,
//! transaction ids of requests, what instances have done for each other, and instances that are
//! gone.

use std::time::Duration;

use chatd_base::{Clock, Stop};
use chatd_storage::{Pool, effects, instances, rooms, to_device, tokens, uia};

use crate::{logins::ts, uia::session_horizon_ms};

const EVERY: Duration = Duration::from_secs(3600);
/// How long a repeat of a request is recognised.
const KEEP_TXNS: Duration = Duration::from_secs(24 * 3600);
/// Rows that one statement removes at most.
const STEP: u64 = 10_000;

/// Until `stop`; safe to run on several instances at once.
pub async fn run(pool: Pool, clock: Clock, stop: Stop) {
    while stop.sleep(EVERY).await {
        let now_ms = clock.now_ms();
        if let Err(error) = remove_expired(&pool, now_ms, &stop).await {
            tracing::warn!(%error, "could not remove what has expired; trying again in an hour");
        }
    }
}

async fn remove_expired(pool: &Pool, now_ms: u64, stop: &Stop) -> chatd_storage::Result<()> {
    uia::delete_expired(pool, ts(session_horizon_ms(now_ms))).await?;
    tokens::delete_expired_login_tokens(pool, ts(now_ms)).await?;
    tokens::delete_expired_openid_tokens(pool, ts(now_ms)).await?;
    let keep_ms = u64::try_from(KEEP_TXNS.as_millis()).unwrap_or(u64::MAX);
    let before_ms = ts(now_ms.saturating_sub(keep_ms));
    to_device::delete_request_txns(pool, before_ms).await?;
    effects::delete_old(pool, before_ms).await?;
    instances::delete_long_gone(pool).await?;
    while !stop.is_triggered() && rooms::delete_event_txns(pool, before_ms).await? == STEP {}
    Ok(())
}
