//! Servers that do not answer are left alone for a while, by all instances alike: the table
//! `destinations` says until when. Any sign of life ends that.

use std::sync::Arc;

use chatd_base::{Cache, Clock};
use chatd_config::FederationLimits;
use chatd_storage::{
    Pool, Result,
    destinations::{self, Destination, Intervals},
    notices::{Heard, Notice, Notices},
};
use parking_lot::RwLock;
use ruma_common::{OwnedServerName, ServerName};

/// Servers that are remembered (R8).
const CACHE: usize = 20_000;
/// How long what the table says is believed: another instance may have noted something since.
const BELIEVED_MS: u64 = 10_000;

/// Knows which servers are left alone.
pub struct BackOff {
    pool: Pool,
    notices: Arc<Notices>,
    clock: Clock,
    intervals: Intervals,
    known: Arc<Cache<OwnedServerName, Known>>,
    /// Who wants to hear of signs of life.
    ears: Arc<RwLock<Vec<Ear>>>,
}

/// Told of the server that has shown a sign of life, or of none if it may have been any.
type Ear = Box<dyn Fn(Option<&ServerName>) + Send + Sync>;

#[derive(Clone, Copy, Debug)]
struct Known {
    /// `None`: it answers, as far as anybody knows.
    retry_at_ms: Option<u64>,
    read_at_ms: u64,
}

impl BackOff {
    pub(crate) fn new(
        pool: &Pool,
        notices: &Arc<Notices>,
        clock: &Clock,
        limits: &FederationLimits,
    ) -> Self {
        let known = Arc::new(Cache::<OwnedServerName, Known>::new("back_off", CACHE));
        let ears: Arc<RwLock<Vec<Ear>>> = Arc::default();
        let listening = Arc::downgrade(&ears);
        let heard = Arc::downgrade(&known);
        notices.on_heard(move |told| {
            let (Some(known), Some(ears)) = (heard.upgrade(), listening.upgrade()) else { return };
            match told {
                Heard::Notice(Notice::ServerAlive { server }) => {
                    let Ok(server) = OwnedServerName::try_from(server.as_str()) else { return };
                    known.remove(&server);
                    ears.read().iter().for_each(|ear| ear(Some(&server)));
                }
                Heard::Notice(Notice::ServerAway { server }) => {
                    let Ok(server) = OwnedServerName::try_from(server.as_str()) else { return };
                    known.remove(&server);
                }
                Heard::Missed | Heard::Notice(Notice::Everything) => {
                    known.clear();
                    ears.read().iter().for_each(|ear| ear(None));
                }
                Heard::Notice(_) => {}
            }
        });
        let ms = |duration: std::time::Duration| i64::try_from(duration.as_millis());
        let intervals = Intervals {
            first_ms: ms(limits.destination_min_retry_interval).unwrap_or(i64::MAX),
            factor: i64::from(limits.destination_retry_multiplier),
            longest_ms: ms(limits.destination_max_retry_interval).unwrap_or(i64::MAX),
        };
        let (pool, notices, clock) = (pool.clone(), notices.clone(), clock.clone());
        Self { pool, notices, clock, intervals, known, ears }
    }

    /// Adds somebody who wants to know when a server that was left alone has shown signs of life,
    /// here or on another instance; it is told of none if that may have been missed. It must be
    /// quick. Called while the instance is wired.
    pub fn on_life(&self, ear: impl Fn(Option<&ServerName>) + Send + Sync + 'static) {
        self.ears.write().push(Box::new(ear));
    }

    /// Until when the server is left alone, if it is (milliseconds since the epoch).
    pub async fn until(&self, server: &ServerName) -> Result<Option<u64>> {
        let retry_at_ms = self.retry_at(server).await?;
        Ok(retry_at_ms.filter(|until| *until > self.clock.now_ms()))
    }

    /// Takes note that the server does not answer, or is not well. Of attempts that fail at the
    /// same time one counts.
    pub async fn note_failure(&self, server: &ServerName) -> Result<()> {
        let now_ms = i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX);
        let noted = destinations::note_failure(
            &self.pool,
            &self.notices,
            server.as_str(),
            now_ms,
            self.intervals,
        )
        .await?;
        self.learn(server, noted);
        Ok(())
    }

    /// Takes note that the server has shown signs of life: by an answer, or by a request of its
    /// own. Costs nothing if it is known to be well.
    pub async fn note_life(&self, server: &ServerName) -> Result<()> {
        if self.retry_at(server).await?.is_some() {
            destinations::note_life(&self.pool, &self.notices, server.as_str()).await?;
            self.learn(server, None);
            self.ears.read().iter().for_each(|ear| ear(Some(server)));
            tracing::info!(server.name = %server, "the server answers again");
        }
        Ok(())
    }

    /// Also a time that is over: it counts until there is a sign of life.
    async fn retry_at(&self, server: &ServerName) -> Result<Option<u64>> {
        let now_ms = self.clock.now_ms();
        let known = self.known.get(server);
        if let Some(known) = known.filter(|known| now_ms < known.read_at_ms + BELIEVED_MS) {
            return Ok(known.retry_at_ms);
        }
        let read = destinations::get(&self.pool, server.as_str()).await?;
        Ok(self.learn(server, read))
    }

    fn learn(&self, server: &ServerName, read: Option<Destination>) -> Option<u64> {
        let retry_at_ms = read.map(|read| u64::try_from(read.retry_at).unwrap_or(0));
        let known = Known { retry_at_ms, read_at_ms: self.clock.now_ms() };
        self.known.insert(server.to_owned(), known);
        retry_at_ms
    }
}
