//! How the bus stands: for the metrics page, and for people.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use chatd_base::Sheet;
use metrics::Counter;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The bus at one moment, and what it has carried since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusState {
    /// Whether frames come in; if not, positions are polled from the tables.
    pub is_connected: bool,
    /// How long that has been so.
    pub since_s: u64,
    /// Times that Redis was there again.
    pub reconnects: u64,
    pub frames_in: u64,
    pub frames_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Frames that Redis did not take in time.
    pub dropped: u64,
    /// Frames that wait for Redis.
    pub waiting: u64,
}

impl BusState {
    pub(crate) fn figures(&self, sheet: &mut Sheet) {
        sheet.count("chatd_bus_connected", &[], self.is_connected.into());
        sheet.count("chatd_bus_reconnects_total", &[], self.reconnects);
        sheet.count("chatd_bus_waiting", &[], self.waiting);
        for (direction, bytes) in [("in", self.bytes_in), ("out", self.bytes_out)] {
            sheet.count("chatd_bus_bytes_total", &[("direction", direction)], bytes);
        }
    }
}

/// Counts what the bus carries.
pub(super) struct Meter {
    connection: Mutex<Connection>,
    frames_in: AtomicU64,
    frames_out: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    dropped: AtomicU64,
}

struct Connection {
    is_there: bool,
    since: Instant,
    connects: u64,
}

impl Meter {
    pub(super) fn new() -> Self {
        let connection = Connection { is_there: false, since: Instant::now(), connects: 0 };
        Self {
            connection: Mutex::new(connection),
            frames_in: AtomicU64::new(0),
            frames_out: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Frames come in from now on.
    pub(super) fn connected(&self) {
        let mut connection = self.connection.lock();
        if !connection.is_there {
            connection.since = Instant::now();
        }
        connection.is_there = true;
        connection.connects += 1;
    }

    /// No frames come in any more.
    pub(super) fn lost(&self) {
        let mut connection = self.connection.lock();
        if connection.is_there {
            connection.since = Instant::now();
        }
        connection.is_there = false;
    }

    pub(super) fn came_in(&self, bytes: usize) {
        self.frames_in.fetch_add(1, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn went_out(&self, bytes: usize) {
        self.frames_out.fetch_add(1, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame of `stream` was not carried.
    pub(super) fn dropped(&self, stream: &'static str) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("chatd_bus_dropped_total", "stream" => stream).increment(1);
    }

    pub(super) fn state(&self, waiting: usize) -> BusState {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (is_connected, since, connects) = {
            let connection = self.connection.lock();
            (connection.is_there, connection.since.elapsed(), connection.connects)
        };
        BusState {
            is_connected,
            since_s: Duration::as_secs(&since),
            reconnects: connects.saturating_sub(1),
            frames_in: read(&self.frames_in),
            frames_out: read(&self.frames_out),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
            dropped: read(&self.dropped),
            waiting: waiting as u64,
        }
    }
}

/// Counts frames that go out, by stream. It belongs to the one task that sends them.
#[derive(Default)]
pub(super) struct Sent(BTreeMap<&'static str, Counter>);

impl Sent {
    pub(super) fn note(&mut self, meter: &Meter, stream: &'static str, bytes: usize) {
        meter.went_out(bytes);
        let name = "synapse_replication_tcp_resource_stream_updates_total";
        let counter = self.0.entry(stream);
        counter.or_insert_with(|| metrics::counter!(name, "stream_name" => stream)).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_connection_is_no_reconnection() {
        let meter = Meter::new();
        assert!(!meter.state(0).is_connected);
        meter.connected();
        assert_eq!((meter.state(0).is_connected, meter.state(0).reconnects), (true, 0));
        meter.lost();
        meter.lost();
        meter.connected();
        assert_eq!((meter.state(3).is_connected, meter.state(3).reconnects), (true, 1));
        assert_eq!(meter.state(3).waiting, 3);
    }
}
