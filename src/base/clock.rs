//! Wall-clock time as an argument, so that tests can fix it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Where a component reads the time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    fixed: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self { fixed: None }
    }

    /// A clock that stands still at `ms` until it is set again.
    pub fn fixed(ms: u64) -> Self {
        Self { fixed: Some(Arc::new(AtomicU64::new(ms))) }
    }

    /// Moves a fixed clock. Does nothing to the machine's clock.
    pub fn set_ms(&self, ms: u64) {
        if let Some(fixed) = &self.fixed {
            fixed.store(ms, Ordering::SeqCst);
        }
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        match &self.fixed {
            Some(fixed) => fixed.load(Ordering::SeqCst),
            None => system_ms(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
fn system_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        .unwrap_or(0)
}
