//! `rc_federation`: how many requests of one other server are answered at a time, how many may
//! wait, and when a server that asks too often is slowed down.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chatd_base::{Cache, Clock, Error, Refusal, Result};
use chatd_config::FederationRate;
use parking_lot::Mutex;
use ruma_common::{OwnedServerName, ServerName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is known of the requests of each server.
pub(crate) struct Origins {
    rate: FederationRate,
    by_name: Cache<OwnedServerName, Arc<Origin>>,
    clock: Clock,
}

/// The requests of one server.
struct Origin {
    /// When the last ones came; no more than tell whether it asks too often.
    recent: Mutex<VecDeque<u64>>,
    waiting: AtomicUsize,
    running: Arc<Semaphore>,
}

/// The right to be answered; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// One that waits is counted until it does not any more, however that ends.
struct Waiting(Arc<Origin>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Origins {
    /// At most `most` servers are remembered (R8).
    pub(crate) fn new(rate: FederationRate, most: usize, clock: Clock) -> Self {
        Self { rate, by_name: Cache::new("federation_rate_limits", most), clock }
    }

    /// Returns when a request of `origin` may be answered; refuses it with 429 if too many wait.
    pub(crate) async fn turn_of(&self, origin: &ServerName) -> Result<Turn> {
        let origin = self.of(origin);
        if origin.waiting.load(Ordering::Relaxed) >= self.rate.reject_limit {
            metrics::counter!("chatd_http_rate_limited_total", "class" => "federation")
                .increment(1);
            return Err(Refusal::limit_exceeded(self.rate.window_ms.max(1)).into());
        }
        origin.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(origin.clone());
        if self.is_too_often(&origin) {
            tokio::time::sleep(Duration::from_millis(self.rate.sleep_delay_ms)).await;
        }
        let permit = origin.running.clone().acquire_owned().await.map_err(Error::internal)?;
        drop(waiting);
        Ok(Turn { _permit: permit })
    }

    fn of(&self, origin: &ServerName) -> Arc<Origin> {
        let fresh = || {
            Ok::<_, std::convert::Infallible>(Arc::new(Origin {
                recent: Mutex::default(),
                waiting: AtomicUsize::new(0),
                running: Arc::new(Semaphore::new(self.rate.concurrent.max(1))),
            }))
        };
        match self.by_name.get_or_insert_with(&origin.to_owned(), fresh) {
            Ok(origin) => origin,
            Err(never) => match never {},
        }
    }

    /// Counts one request; whether there are more in the window than are answered at once.
    fn is_too_often(&self, origin: &Origin) -> bool {
        let now_ms = self.clock.now_ms();
        let mut recent = origin.recent.lock();
        recent.push_back(now_ms);
        while recent.len() > self.rate.sleep_limit.saturating_add(1) {
            recent.pop_front();
        }
        let in_window = |at: &&u64| now_ms.saturating_sub(**at) < self.rate.window_ms;
        recent.iter().filter(in_window).count() > self.rate.sleep_limit
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use ruma_common::server_name;

    use super::*;

    fn origins(rate: FederationRate) -> Origins {
        Origins::new(rate, 100, Clock::fixed(1_000))
    }

    const RATE: FederationRate = FederationRate {
        window_ms: 1_000,
        sleep_limit: 100,
        sleep_delay_ms: 500,
        reject_limit: 2,
        concurrent: 1,
    };

    #[tokio::test]
    async fn requests_of_one_server_wait_for_each_other_and_too_many_are_refused() {
        let origins = origins(RATE);
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        let first = origins.turn_of(a).await.unwrap();
        let mut second = Box::pin(origins.turn_of(a));
        let mut third = Box::pin(origins.turn_of(a));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        let refused = origins.turn_of(a).await.unwrap_err();
        assert_eq!(refused.errcode(), Some("M_LIMIT_EXCEEDED"));
        assert!(origins.turn_of(b).now_or_never().is_some());
        drop((first, third));
        drop(second.await.unwrap());
        assert!(origins.turn_of(a).now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_server_that_asks_too_often_is_slowed_down() {
        let origins = origins(FederationRate { sleep_limit: 3, ..RATE });
        let a = server_name!("a.example");
        for _ in 0..3 {
            assert!(origins.turn_of(a).now_or_never().unwrap().is_ok());
        }
        assert!(origins.turn_of(a).now_or_never().is_none());
        origins.clock.set_ms(2_500);
        assert!(origins.turn_of(a).now_or_never().unwrap().is_ok());
    }
}
