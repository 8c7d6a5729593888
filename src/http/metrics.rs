//! The metrics page for Prometheus.

use std::time::Duration;

use chatd_base::Stop;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of the duration histograms, in seconds.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// What has been counted since the start. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Starts counting, for the whole process. Call it before anything is counted, and once.
    pub fn install() -> Result<Self, String> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| error.to_string())?;
        Ok(Self { handle })
    }

    /// A page on which nothing is counted.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self { handle: PrometheusBuilder::new().build_recorder().handle() }
    }

    /// The page.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds samples into their histograms now and then, so that they do not pile up where
    /// nobody reads the page (R8).
    pub async fn fold_samples(self, stop: Stop) {
        while stop.sleep(Duration::from_secs(15)).await {
            self.handle.run_upkeep();
        }
    }
}
