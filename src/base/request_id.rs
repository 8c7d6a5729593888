//! The id of the request that a task works for, so that other instances can log it, too.

use std::{future::Future, sync::Arc};

tokio::task_local! {
    static ID: Arc<str>;
}

/// Runs `work` for the request with that id.
pub async fn scope<F: Future>(id: Arc<str>, work: F) -> F::Output {
    ID.scope(id, work).await
}

/// The id of the request that this task works for, if it is for one.
pub fn current() -> Option<Arc<str>> {
    ID.try_with(Arc::clone).ok()
}
