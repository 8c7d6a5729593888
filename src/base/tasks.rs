//! Background tasks that are named, counted, and stopped together.

use std::{future::Future, time::Duration};

use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Tells tasks to end. Clones share one signal.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    token: CancellationToken,
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

    /// Waits for `duration`; returns false if the end came first.
    pub async fn sleep(&self, duration: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = self.token.cancelled() => false,
        }
    }
}

/// Starts a background task. A panic in it is logged and counted, and ends only that task.
#[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
pub fn spawn<F>(name: &'static str, work: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        metrics::gauge!("chatd_tasks_running", "task" => name).increment(1.0);
        if std::panic::AssertUnwindSafe(work).catch_unwind().await.is_err() {
            metrics::counter!("chatd_task_panics_total", "task" => name).increment(1);
            tracing::error!(task = name, "a background task panicked");
        }
        metrics::gauge!("chatd_tasks_running", "task" => name).decrement(1.0);
    })
}
