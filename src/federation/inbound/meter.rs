//! How much comes in, and what becomes of it.

use metrics::{Counter, Histogram};

/// Counters that are looked up once.
pub(super) struct Meters {
    pub(super) pdus: Counter,
    pub(super) edus: Counter,
    /// From when an event was made until it had its place here.
    pub(super) age: Histogram,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            pdus: metrics::counter!("synapse_federation_server_received_pdus_total"),
            edus: metrics::counter!("synapse_federation_server_received_edus_total"),
            age: metrics::histogram!("chatd_inbound_pdu_age_seconds"),
        }
    }

    /// Counts events by what became of them.
    pub(super) fn became(&self, result: &'static str) {
        metrics::counter!("chatd_inbound_pdus_total", "result" => result).increment(1);
    }
}
