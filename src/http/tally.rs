//! What was counted here against rate limits, for the other instances of a fleet: a limit is one for
//! all of them, whichever instances the proxy chooses. Each counts by itself and tells the others a
//! moment later, so a caller who asks several at once may get through a few times more; who is not
//! heard of is limited by each instance alone.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chatd_base::Stop;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::limit::{LimitClass, Limits};

/// Callers that may wait for the next message (R8); others are not told of.
const MOST: usize = 4_096;
/// Between two messages. The first after a while goes at once.
const PAUSE: Duration = Duration::from_millis(5);

/// Actions by class and caller.
type Counts = HashMap<(LimitClass, Box<str>), u32>;

/// What the others have not been told yet.
#[derive(Default)]
pub(crate) struct Tally {
    /// Whether there is anybody to tell.
    is_shared: AtomicBool,
    counts: Mutex<Counts>,
    some: Notify,
}

impl Tally {
    /// Notes an action.
    pub fn note(&self, class: LimitClass, key: &str) {
        if !self.is_shared.load(Ordering::Relaxed) {
            return;
        }
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&(class, Box::from(key))) {
            *count += 1;
        } else if counts.len() < MOST {
            counts.insert((class, Box::from(key)), 1);
        }
        drop(counts);
        self.some.notify_one();
    }
}

impl Limits {
    /// Gives `tell` what was counted here, for other instances to [`Limits::hear`], until `stop`.
    pub async fn share(&self, tell: impl Fn(Vec<u8>), stop: Stop) {
        self.tally.is_shared.store(true, Ordering::Relaxed);
        loop {
            tokio::select! {
                () = self.tally.some.notified() => {}
                () = stop.triggered() => return,
            }
            tell(said(std::mem::take(&mut *self.tally.counts.lock())));
            if !stop.sleep(PAUSE).await {
                return;
            }
        }
    }

    /// Counts what another instance has counted. What is not understood is passed over: it is of
    /// another release.
    pub fn hear(&self, said: &[u8]) {
        let counts: Vec<(String, String, u32)> = serde_json::from_slice(said).unwrap_or_default();
        for (class, key, count) in counts {
            if let Some(class) = LimitClass::of_key(&class) {
                self.count(class, &key, count);
            }
        }
    }
}

fn said(counts: Counts) -> Vec<u8> {
    let rows: Vec<(&str, &str, u32)> =
        counts.iter().map(|((class, key), count)| (class.key(), &**key, *count)).collect();
    serde_json::to_vec(&rows).expect("text and numbers always serialise")
}
