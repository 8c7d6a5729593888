//! What is counted of the work for PostgreSQL, and the figures of the pool.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chatd_base::Sheet;
use metrics::{Counter, Histogram};

use crate::{ALL_STATEMENTS, Pool};

/// Time that tasks wait for a connection.
pub(crate) static SCHEDULE: LazyLock<Histogram> =
    LazyLock::new(|| metrics::histogram!("synapse_storage_schedule_time"));
/// Statements sent.
pub(crate) static STATEMENTS: LazyLock<Counter> =
    LazyLock::new(|| metrics::counter!("chatd_db_statements_total"));
/// Transactions of several statements.
pub(crate) static COMMITS: LazyLock<Counter> =
    LazyLock::new(|| metrics::counter!("chatd_db_commits_total"));
/// How long these took.
pub(crate) static COMMIT: Meter = Meter::new();

/// How often something was done, and how long that took in all.
#[derive(Debug)]
pub struct Meter {
    count: AtomicU64,
    micros: AtomicU64,
}

impl Meter {
    pub(crate) const fn new() -> Self {
        Self { count: AtomicU64::new(0), micros: AtomicU64::new(0) }
    }

    pub(crate) fn note(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn put(&self, sheet: &mut Sheet, desc: &str) {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let took = Duration::from_micros(self.micros.load(Ordering::Relaxed));
        let labels = [("desc", desc)];
        sheet.count("synapse_storage_transaction_time_count_total", &labels, count);
        sheet.add("synapse_storage_transaction_time_sum_total", &labels, took.as_secs_f64());
    }
}

/// The connections of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// Whether PostgreSQL answered when it was asked last.
    pub is_connected: bool,
    /// Connections that there may be.
    pub max: usize,
    /// Connections that there are.
    pub size: usize,
    /// Connections that are working.
    pub in_use: usize,
    /// Tasks that wait for one.
    pub waiting: usize,
}

impl Pool {
    /// Puts the pool, and what each statement has cost, on the metrics page.
    pub fn figures(&self, sheet: &mut Sheet) {
        let state = self.state();
        sheet.count("chatd_db_connected", &[], state.is_connected.into());
        sheet.count("chatd_db_pool_max", &[], state.max as u64);
        sheet.count("chatd_db_pool_size", &[], state.size as u64);
        sheet.count("chatd_db_pool_in_use", &[], state.in_use as u64);
        sheet.count("chatd_db_pool_waiting", &[], state.waiting as u64);
        for statement in ALL_STATEMENTS.iter().copied().flatten() {
            statement.meter.put(sheet, &statement.name.to_lowercase());
        }
        COMMIT.put(sheet, "commit");
    }
}
