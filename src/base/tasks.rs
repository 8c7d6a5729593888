//! Background tasks that are named, counted, and stopped together.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::FutureExt;
use metrics::{Counter, Gauge};
use parking_lot::RwLock;
use tokio::task::JoinHandle;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// Tells tasks to end. Clones share one signal.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    token: CancellationToken,
    failed: CancellationToken,
    failure: Arc<OnceLock<String>>,
    holds: TaskTracker,
}

impl Stop {
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody who holds a clone to end.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns when the end has been asked for.
    pub async fn triggered(&self) {
        self.token.cancelled().await;
    }

    /// Has the end wait for the holder, which has something left to do when it is asked to end.
    pub fn hold(&self) -> TaskTrackerToken {
        self.holds.token()
    }

    /// After the end has been asked for: returns when nobody holds it any more; false if that takes
    /// longer than `bound`.
    pub async fn released(&self, bound: Duration) -> bool {
        self.holds.close();
        tokio::time::timeout(bound, self.holds.wait()).await.is_ok()
    }

    /// Tells that this process cannot go on, and why. Whoever started the tasks ends it in order;
    /// the first reason counts.
    pub fn fail(&self, reason: impl Into<String>) {
        if self.failure.set(reason.into()).is_ok() {
            self.failed.cancel();
        }
    }

    /// Why this process cannot go on, if that is so.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Returns when the process cannot go on.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Waits for `duration`; returns false if the end came first.
    pub async fn sleep(&self, duration: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = self.token.cancelled() => false,
        }
    }
}

/// Starts a background task. A panic in it is logged and counted, and ends only that task.
pub fn spawn<F>(name: &'static str, work: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    spawn_uncounted(async move {
        guarded(name, work).await;
    })
}

/// Starts a background task that this process cannot do without: a panic in it is a failure.
pub fn spawn_vital<F>(name: &'static str, stop: &Stop, work: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let stop = stop.clone();
    spawn_uncounted(async move {
        if !guarded(name, work).await {
            stop.fail(format!("the task {name} panicked"));
        }
    })
}

#[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
fn spawn_uncounted(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(work)
}

/// Runs `work`; false if it panicked.
async fn guarded(name: &'static str, work: impl Future<Output = ()>) -> bool {
    let meter = Meter::of(name);
    meter.started.increment(1);
    meter.running.increment(1.0);
    let ended = std::panic::AssertUnwindSafe(work).catch_unwind().await;
    if ended.is_err() {
        metrics::counter!("chatd_task_panics_total", "task" => name).increment(1);
        tracing::error!(task = name, "a background task panicked");
    }
    meter.running.decrement(1.0);
    ended.is_ok()
}

/// What is counted of the tasks of one name. There are few names, and a task for each connection.
#[derive(Clone)]
struct Meter {
    started: Counter,
    running: Gauge,
}

static METERS: RwLock<BTreeMap<&'static str, Meter>> = RwLock::new(BTreeMap::new());

impl Meter {
    fn of(name: &'static str) -> Self {
        if let Some(meter) = METERS.read().get(name) {
            return meter.clone();
        }
        let meter = Self {
            started: metrics::counter!("synapse_background_process_start_count_total",
                "name" => name),
            running: metrics::gauge!("synapse_background_process_in_flight_count", "name" => name),
        };
        METERS.write().entry(name).or_insert(meter).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_those_who_hold_it() {
        let stop = Stop::new();
        let held = stop.clone().hold();
        stop.trigger();
        assert!(!stop.released(Duration::from_millis(1)).await);
        drop(held);
        assert!(stop.released(Duration::from_secs(60)).await);
    }
}
