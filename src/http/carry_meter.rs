//! What is counted of requests that are carried between instances.

use std::{
    collections::BTreeMap,
    sync::{LazyLock, OnceLock},
    time::Instant,
};

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, SharedString};
use parking_lot::RwLock;

/// Attempts that had to be repeated.
pub(crate) static RETRIES: LazyLock<Counter> =
    LazyLock::new(|| metrics::counter!("chatd_carry_retries_total"));
/// Requests that others carried here.
pub(crate) static CARRIED_IN: LazyLock<Counter> =
    LazyLock::new(|| metrics::counter!("chatd_carried_in_total"));

/// The requests to one endpoint that were carried to other instances.
#[derive(Default)]
pub(crate) struct Carried {
    pending: OnceLock<Gauge>,
    answered: RwLock<Vec<(Option<StatusCode>, Counter)>>,
}

impl Carried {
    fn pending(&self, name: &SharedString) -> &Gauge {
        self.pending.get_or_init(|| {
            metrics::gauge!("synapse_pending_outgoing_replication_requests",
                "name" => name.clone())
        })
    }

    fn answered(&self, name: &SharedString, status: Option<StatusCode>) {
        if let Some((_, known)) = self.answered.read().iter().find(|(code, _)| *code == status) {
            return known.increment(1);
        }
        let code = status.map_or_else(|| "ERR".to_owned(), |code| code.as_u16().to_string());
        let counter = metrics::counter!("synapse_outgoing_replication_requests_total",
            "name" => name.clone(), "code" => code);
        counter.increment(1);
        let mut all = self.answered.write();
        if all.iter().all(|(code, _)| *code != status) {
            all.push((status, counter));
        }
    }
}

/// One request while it is carried. If it ends without an answer, that is counted too.
pub(crate) struct Carrying<'a> {
    carried: &'a Carried,
    name: &'a SharedString,
    status: Option<StatusCode>,
}

impl<'a> Carrying<'a> {
    pub(crate) fn begin(carried: &'a Carried, name: &'a SharedString) -> Self {
        carried.pending(name).increment(1.0);
        Self { carried, name, status: None }
    }

    /// The other instance has answered.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for Carrying<'_> {
    fn drop(&mut self) {
        self.carried.pending(self.name).decrement(1.0);
        self.carried.answered(self.name, self.status);
    }
}

/// The ways to the other instances, by their names.
#[derive(Default)]
pub(crate) struct Links(RwLock<BTreeMap<String, Link>>);

/// The way to one of them.
#[derive(Clone)]
pub(crate) struct Link {
    carry: Histogram,
    call: Histogram,
    unreached: Counter,
}

impl Links {
    /// The way to `instance`, which the fleet knows by that name.
    pub(crate) fn to(&self, instance: &str) -> Link {
        if let Some(link) = self.0.read().get(instance) {
            return link.clone();
        }
        let link = Link {
            carry: metrics::histogram!("chatd_carry_seconds", "instance" => instance.to_owned()),
            call: metrics::histogram!("chatd_call_seconds", "instance" => instance.to_owned()),
            unreached: metrics::counter!("chatd_carry_unreached_total",
                "instance" => instance.to_owned()),
        };
        self.0.write().entry(instance.to_owned()).or_insert(link).clone()
    }
}

impl Link {
    /// It began to answer a request that was sent at `sent`.
    pub(crate) fn answered(&self, sent: Instant) {
        self.carry.record(sent.elapsed());
    }

    /// It has answered a call that was sent at `sent`.
    pub(crate) fn called(&self, sent: Instant) {
        self.call.record(sent.elapsed());
    }

    /// It was not there, or broke off.
    pub(crate) fn failed(&self) {
        self.unreached.increment(1);
    }
}
