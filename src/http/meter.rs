//! What is counted of the requests to one endpoint. Handles are made when they are needed first,
//! and kept.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use metrics::{Counter, Gauge, Histogram, SharedString};
use parking_lot::RwLock;

use crate::carry_meter::{Carried, Carrying};

/// Endpoints that Synapse's Grafana board asks for by the names that they have there.
const BOARD_NAMES: &[(&str, &str)] = &[
    ("/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", "RoomSendEventRestServlet"),
    ("/_matrix/client/v3/sync", "SyncRestServlet"),
];

/// The counters of one endpoint.
pub(crate) struct Meter {
    method: &'static str,
    servlet: SharedString,
    coming: OnceLock<Coming>,
    answered: RwLock<Vec<Answered>>,
    carried: Carried,
}

struct Coming {
    received: Counter,
    in_flight: Gauge,
}

struct Answered {
    status: StatusCode,
    answers: Counter,
    time: Histogram,
}

impl Meter {
    /// The meter of the endpoint of that method and path.
    pub(crate) fn of(method: &Method, path: &str) -> Arc<Self> {
        let named = BOARD_NAMES.iter().find(|(pattern, _)| *pattern == path);
        let servlet = named.map_or_else(|| path.to_owned().into(), |(_, name)| (*name).into());
        Arc::new(Self {
            method: label(method),
            servlet,
            coming: OnceLock::new(),
            answered: RwLock::default(),
            carried: Carried::default(),
        })
    }

    /// A request to the endpoint is carried to another instance while what is returned lives.
    pub(crate) fn carry(&self) -> Carrying<'_> {
        Carrying::begin(&self.carried, &self.servlet)
    }

    fn coming(&self) -> &Coming {
        self.coming.get_or_init(|| {
            let labels =
                [("method", SharedString::from(self.method)), ("servlet", self.servlet.clone())];
            Coming {
                received: metrics::counter!("synapse_http_server_requests_received_total", &labels),
                in_flight: metrics::gauge!("synapse_http_server_in_flight_requests_count", &labels),
            }
        })
    }

    fn note(&self, status: StatusCode, took: Duration) {
        if let Some(known) = self.answered.read().iter().find(|one| one.status == status) {
            return known.note(took);
        }
        let code = status.as_u16().to_string();
        let answered = Answered {
            status,
            answers: metrics::counter!("synapse_http_server_responses_total",
                "method" => self.method, "code" => code.clone()),
            time: metrics::histogram!("synapse_http_server_response_time_seconds",
                "method" => self.method, "servlet" => self.servlet.clone(), "code" => code),
        };
        answered.note(took);
        let mut all = self.answered.write();
        if all.iter().all(|one| one.status != status) {
            all.push(answered);
        }
    }
}

impl Answered {
    fn note(&self, took: Duration) {
        self.answers.increment(1);
        self.time.record(took);
    }
}

/// One request, counted as under way while this lives, cancelled or not.
pub(crate) struct Counted {
    meter: Arc<Meter>,
    started: Instant,
}

impl Counted {
    /// A request has come to the endpoint whose meter this is.
    pub(crate) fn begin(meter: &Arc<Meter>) -> Self {
        let coming = meter.coming();
        coming.received.increment(1);
        coming.in_flight.increment(1.0);
        Self { meter: meter.clone(), started: Instant::now() }
    }

    /// Its answer is about to go out; returns how long that took.
    pub(crate) fn answered(&self, status: StatusCode) -> Duration {
        let took = self.started.elapsed();
        self.meter.note(status, took);
        took
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.meter.coming().in_flight.decrement(1.0);
    }
}

/// Methods are the client's choice: only those that endpoints have become labels.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
