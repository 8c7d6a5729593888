//! Asks all instances at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use chatd_config::InstanceAddress;
use chatd_http::Probe;
use futures::future::join_all;
use tokio::runtime::{Builder, Runtime};

use super::{
    Failure,
    snapshot::{Rates, Seen, Snapshot},
};
use crate::status::Detail;

/// How long an instance may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Knows the instances, and what they said last.
pub struct Asker {
    runtime: Runtime,
    probe: Probe,
    names: Vec<String>,
    before: BTreeMap<String, (Detail, Instant)>,
}

impl Asker {
    pub fn new(instances: BTreeMap<String, InstanceAddress>) -> Result<Self, Failure> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| Failure::other(format!("cannot start threads: {error}")))?;
        let probe = Probe::new(&instances).map_err(Failure::config)?;
        Ok(Self { runtime, probe, names: instances.into_keys().collect(), before: BTreeMap::new() })
    }

    /// Asks all of them, and those that one of them tells of.
    pub fn look(&mut self) -> Snapshot {
        let mut instances = self.ask_all(&self.names);
        let found = self.learn(&instances);
        instances.extend(self.ask_all(&found));
        self.names.extend(found);
        instances.sort_by(|one, other| one.name.cmp(&other.name));
        for seen in &mut instances {
            let Some(detail) = &seen.detail else { continue };
            let before = self.before.get(&seen.name);
            let before = before.map(|(detail, at)| (detail, at.elapsed()));
            seen.rates = Some(Rates::between(before, detail));
            self.before.insert(seen.name.clone(), (detail.clone(), Instant::now()));
        }
        Snapshot::new(instances)
    }

    fn ask_all(&self, names: &[String]) -> Vec<Seen> {
        self.runtime.block_on(join_all(names.iter().map(|name| ask(&self.probe, name))))
    }

    /// Instances that the others know and that were not asked. One without a replication listener
    /// cannot be.
    fn learn(&self, instances: &[Seen]) -> Vec<String> {
        let details = instances.iter().filter_map(|seen| seen.detail.as_ref());
        let mut found = BTreeSet::new();
        for peer in details.flat_map(|detail| &detail.fleet) {
            if self.names.contains(&peer.name) || !found.insert(peer.name.clone()) {
                continue;
            }
            let address = peer.address.as_deref().and_then(|text| serde_json::from_str(text).ok());
            if let Some(address) = address {
                self.probe.learn(&peer.name, address);
            }
        }
        found.into_iter().collect()
    }
}

async fn ask(probe: &Probe, name: &str) -> Seen {
    let began = Instant::now();
    let body = probe.get(name, "/health?detail", PATIENCE).await;
    let detail = body.and_then(|body| {
        serde_json::from_slice::<Detail>(&body)
            .map_err(|_| "it is of another release, or no chatd".to_owned())
    });
    let round_trip_ms = began.elapsed().as_secs_f64() * 1000.0;
    let (detail, error) = match detail {
        Ok(detail) => (Some(detail), None),
        Err(error) => (None, Some(error)),
    };
    Seen {
        name: name.to_owned(),
        reachable: detail.is_some(),
        error,
        round_trip_ms,
        rates: None,
        detail,
    }
}
