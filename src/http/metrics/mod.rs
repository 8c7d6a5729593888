//! The metrics page for Prometheus. What is counted while it happens goes through the `metrics`
//! crate; what can be worked out when the page is read is asked for then ([`Metrics::source`]).
//!
//! Whoever counts something on a way that every request takes holds a handle, which is made once:
//! to look one up by its labels costs more than to count.

mod catalogue;
mod page;

use std::{sync::Arc, time::Duration};

use chatd_base::{Sheet, Stop};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;

/// Upper bounds of the duration histograms, in seconds.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Upper bounds of the histograms of rows in a commit.
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

type Source = Box<dyn Fn(&mut Sheet) + Send + Sync>;

/// What has been counted since the start. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    sources: Arc<Mutex<Vec<Source>>>,
}

impl Metrics {
    /// Starts counting, for the whole process. Call it before anything is counted, and once.
    pub fn install() -> Result<Self, String> {
        let durations = Matcher::Suffix("_seconds".to_owned());
        let schedule = Matcher::Full("synapse_storage_schedule_time".to_owned());
        let rows = Matcher::Suffix("_rows".to_owned());
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(durations, SECONDS)
            .and_then(|builder| builder.set_buckets_for_metric(schedule, SECONDS))
            .and_then(|builder| builder.set_buckets_for_metric(rows, ROWS))
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| error.to_string())?;
        catalogue::describe();
        Ok(Self { handle, sources: Arc::default() })
    }

    /// A page on which nothing is counted.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        let handle = PrometheusBuilder::new().build_recorder().handle();
        Self { handle, sources: Arc::default() }
    }

    /// Adds figures that are worked out each time that the page is read. A source must be quick
    /// and must not wait.
    pub fn source(&self, figures: impl Fn(&mut Sheet) + Send + Sync + 'static) {
        self.sources.lock().push(Box::new(figures));
    }

    /// The page.
    pub fn render(&self) -> String {
        let mut sheet = Sheet::default();
        for source in self.sources.lock().iter() {
            source(&mut sheet);
        }
        let mut text = self.handle.render();
        page::write(&mut text, sheet.figures());
        text
    }

    /// Folds samples into their histograms now and then, so that they do not pile up where
    /// nobody reads the page (R8).
    pub async fn fold_samples(self, stop: Stop) {
        while stop.sleep(Duration::from_secs(15)).await {
            self.handle.run_upkeep();
        }
    }
}
