//! Counts the database work of one request, so that query budgets can be tests.
//!
//! `scope` wraps the handling of a request; `storage` calls `note_*` for whatever task is
//! running. Work that a shared commit does for many requests is counted on the commit, not here.

use std::{cell::Cell, future::Future};

/// Database work of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Statements sent, `BEGIN` and `COMMIT` not included.
    pub statements: u32,
    /// Times that the task waited for PostgreSQL; a pipelined batch is one.
    pub round_trips: u32,
}

tokio::task_local! {
    static COST: Cell<Cost>;
}

/// Runs `work` and returns what it cost.
pub async fn scope<F: Future>(work: F) -> (F::Output, Cost) {
    COST.scope(Cell::new(Cost::default()), async move {
        let output = work.await;
        (output, current())
    })
    .await
}

/// What the request that this task handles has cost so far; zero outside of `scope`.
pub fn current() -> Cost {
    COST.try_with(Cell::get).unwrap_or_default()
}

/// Adds one round trip with `statements` statements to the current request, if any.
pub fn note_round_trip(statements: u32) {
    // Outside of a request there is nobody to account to.
    let _ = COST.try_with(|cost| {
        let mut now = cost.get();
        now.statements += statements;
        now.round_trips += 1;
        cost.set(now);
    });
}
