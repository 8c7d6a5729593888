//! Removes what has expired and nobody asks for any more: ui-auth sessions, login and OpenID tokens,
//! transaction ids of requests, what instances have done for each other, instances that are gone, and
//! other servers that did not answer.

use std::time::Duration;

use chatd_base::{Clock, Stop};
use chatd_storage::{Pool, destinations, effects, instances, rooms, to_device, tokens, uia};

use crate::{logins::ts, uia::session_horizon_ms};

const EVERY: Duration = Duration::from_secs(3600);
/// How long a repeat of a request is recognised.
const KEEP_TXNS: Duration = Duration::from_secs(24 * 3600);
/// How long it is remembered of a server that it did not answer, after it might have been asked
/// again; and of how many servers, for anybody can name some that do not exist (R8).
const KEEP_SERVERS: Duration = Duration::from_secs(24 * 3600);
const MOST_SERVERS: i64 = 100_000;
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
    let before_ms = before(now_ms, KEEP_TXNS);
    to_device::delete_request_txns(pool, before_ms).await?;
    effects::delete_old(pool, before_ms).await?;
    instances::delete_long_gone(pool).await?;
    destinations::delete_old(pool, before(now_ms, KEEP_SERVERS), MOST_SERVERS).await?;
    while !stop.is_triggered() && rooms::delete_event_txns(pool, before_ms).await? == STEP {}
    Ok(())
}

fn before(now_ms: u64, time: Duration) -> i64 {
    ts(now_ms.saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}
