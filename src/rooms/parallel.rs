//! Work on many events that takes the processor's time: on all of its threads, and off those that
//! answer requests.

use std::{num::NonZero, sync::Arc};

use chatd_base::{Error, Result};
use futures::future::try_join_all;

/// Fewer are not worth a thread.
const FEWEST: usize = 32;

/// What `work` makes of each of `items`, in their order.
pub async fn map<T, U>(
    items: Vec<T>,
    work: impl Fn(T) -> U + Send + Sync + 'static,
) -> Result<Vec<U>>
where
    T: Send + 'static,
    U: Send + 'static,
{
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let size = items.len().div_ceil(threads).max(FEWEST);
    let work = Arc::new(work);
    let mut rest = items.into_iter();
    let mut parts = Vec::with_capacity(threads);
    loop {
        let part: Vec<T> = rest.by_ref().take(size).collect();
        if part.is_empty() {
            break;
        }
        let work = work.clone();
        parts.push(apart(move || part.into_iter().map(|item| work(item)).collect::<Vec<U>>()));
    }
    Ok(try_join_all(parts).await?.into_iter().flatten().collect())
}

/// Does `work` off the threads that answer requests.
pub async fn apart<U: Send + 'static>(work: impl FnOnce() -> U + Send + 'static) -> Result<U> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)
}
