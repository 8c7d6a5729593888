//! How long something that another instance has to do is tried again: shards that move and
//! instances that restart are back by then.

use std::time::{Duration, Instant};

use crate::Stop;

const LONGEST: Duration = Duration::from_secs(20);
/// Between attempts; doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is left of the time for one request.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { deadline: Instant::now() + LONGEST, pause: FIRST_PAUSE }
    }
}

impl Patience {
    /// The time until no further attempt is made.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits before another attempt; false if there is to be none.
    pub async fn wait(&mut self, stop: &Stop) -> bool {
        if self.left().is_zero() || !stop.sleep(self.pause).await {
            return false;
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}
