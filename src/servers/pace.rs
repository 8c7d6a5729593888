//! Servers that have lately been slow to answer. Nobody is left alone for that: where several may be
//! asked one after the other, the others come first.

use std::time::Duration;

use chatd_base::{Cache, Clock};
use ruma_common::{OwnedServerName, ServerName};
use tokio::time::Instant;

/// Whoever takes longer for an answer is slow.
const SLOW: Duration = Duration::from_secs(5);
/// How long that is remembered, and of how many servers (R8).
const FOR_MS: u64 = 5 * 60_000;
const MOST: usize = 10_000;

/// Knows who is slow, as far as this instance has noticed.
pub(crate) struct Pace {
    clock: Clock,
    /// Until when.
    slow: Cache<OwnedServerName, u64>,
}

/// Somebody waits for an answer until this is dropped, with one or without.
pub(crate) struct Wait<'a> {
    pace: &'a Pace,
    server: &'a ServerName,
    began: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.pace.note(self.server, self.began.elapsed());
    }
}

impl Pace {
    pub(crate) fn new(clock: &Clock) -> Self {
        Self { clock: clock.clone(), slow: Cache::new("slow_servers", MOST) }
    }

    pub(crate) fn wait<'a>(&'a self, server: &'a ServerName) -> Wait<'a> {
        Wait { pace: self, server, began: Instant::now() }
    }

    fn note(&self, server: &ServerName, took: Duration) {
        if took >= SLOW {
            self.slow.insert(server.to_owned(), self.clock.now_ms() + FOR_MS);
        }
    }

    pub(crate) fn is_slow(&self, server: &ServerName) -> bool {
        self.slow.get(server).is_some_and(|until| self.clock.now_ms() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowness_is_remembered_for_a_while() {
        let clock = Clock::fixed(1_000);
        let pace = Pace::new(&clock);
        let [slow, quick] =
            ["slow.example", "quick.example"].map(|name| ServerName::parse(name).unwrap());
        pace.note(&slow, SLOW);
        pace.note(&quick, SLOW - Duration::from_millis(1));
        // What is answered at once may have cost little.
        pace.note(&slow, Duration::ZERO);
        assert!(pace.is_slow(&slow) && !pace.is_slow(&quick));
        clock.set_ms(1_000 + FOR_MS);
        assert!(!pace.is_slow(&slow));
    }

    #[test]
    fn who_gives_up_has_waited_too() {
        let pace = Pace::new(&Clock::fixed(1_000));
        let server = ServerName::parse("slow.example").unwrap();
        let mut wait = pace.wait(&server);
        wait.began -= SLOW;
        drop(wait);
        assert!(pace.is_slow(&server));
    }
}
