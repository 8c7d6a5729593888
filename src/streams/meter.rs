//! How the streams of this instance stand: for the metrics page, and for people.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chatd_base::{Sheet, WriterId};
use metrics::Histogram;
use serde::{Deserialize, Serialize};

use crate::{Feed, Stream, Streams, bus::BusState, each_feed};

/// How one stream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    pub stream: String,
    /// Every writer that this instance knows.
    pub writers: Vec<WriterState>,
}

/// How far this instance has seen one writer of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterState {
    /// Its instance; its number if that instance has not been heard of.
    pub writer: String,
    /// Whether it is this instance.
    pub is_own: bool,
    pub position: i64,
    /// By how much the tables were ahead when they were compared last.
    pub lag: i64,
}

/// What the committer of one stream has done since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    /// The stream.
    pub lane: String,
    /// Changes that wait for the next commit.
    pub waiting: u64,
    pub commits: u64,
    /// Rows in these commits.
    pub rows: u64,
    /// Time that these commits took.
    pub busy_us: u64,
}

type Queue = Box<dyn Fn() -> usize + Send + Sync>;

/// Counts what the committer of a stream does.
pub struct LaneMeter {
    batch: Histogram,
    commit: Histogram,
    commits: AtomicU64,
    rows: AtomicU64,
    busy_us: AtomicU64,
    queue: OnceLock<Queue>,
}

impl LaneMeter {
    pub(crate) fn new(lane: &'static str) -> Self {
        Self {
            batch: metrics::histogram!("chatd_lane_batch_rows", "lane" => lane),
            commit: metrics::histogram!("chatd_lane_commit_seconds", "lane" => lane),
            commits: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
            queue: OnceLock::new(),
        }
    }

    /// Says how to find out how much waits for the committer. The first one counts.
    pub fn watch_queue(&self, waiting: impl Fn() -> usize + Send + Sync + 'static) {
        // There is one committer for each stream.
        let _ = self.queue.set(Box::new(waiting));
    }

    /// A commit has come to its end.
    pub(crate) fn committed(&self, took: Duration) {
        self.commit.record(took);
        self.commits.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.busy_us.fetch_add(micros, Ordering::Relaxed);
    }

    /// Its rows are on the feed.
    pub(crate) fn published(&self, rows: usize) {
        self.batch.record(rows as f64);
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Absent where the stream has no committer on this instance.
    fn state(&self, lane: &str) -> Option<LaneState> {
        let waiting = self.queue.get()?;
        Some(LaneState {
            lane: lane.to_owned(),
            waiting: waiting() as u64,
            commits: self.commits.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            busy_us: self.busy_us.load(Ordering::Relaxed),
        })
    }
}

impl Streams {
    /// How every stream stands.
    pub fn state(&self) -> Vec<StreamState> {
        fn of<S: Stream>(
            feed: &Feed<S>,
            name: impl Fn(WriterId) -> String,
            me: WriterId,
        ) -> StreamState {
            let writers = feed.positions().into_iter().map(|(writer, position)| WriterState {
                writer: name(writer),
                is_own: writer == me,
                position: position.0,
                lag: feed.lag_of(writer),
            });
            StreamState { stream: S::NAME.to_owned(), writers: writers.collect() }
        }
        let mut all = Vec::new();
        each_feed!(self, |feed| all.push(of(
            feed,
            |writer| self.name_of(writer),
            self.writer.writer
        )));
        all
    }

    /// What the committers of this instance have done.
    pub fn lanes(&self) -> Vec<LaneState> {
        fn of<S: Stream>(feed: &Feed<S>) -> Option<LaneState> {
            feed.lane.state(S::NAME)
        }
        let mut all = Vec::new();
        each_feed!(self, |feed| all.extend(of(feed)));
        all
    }

    /// How the bus stands; absent where there are no other instances.
    pub fn bus_state(&self) -> Option<BusState> {
        self.bus.state()
    }

    /// Puts all of this on the metrics page.
    pub fn figures(&self, sheet: &mut Sheet) {
        for StreamState { stream, writers } in self.state() {
            for WriterState { writer, position, lag, .. } in writers {
                let labels = [("stream", stream.as_str()), ("writer", writer.as_str())];
                sheet.add("chatd_stream_position", &labels, position as f64);
                sheet.add("chatd_stream_lag", &labels, lag as f64);
            }
        }
        let furthest = self.events.token().max();
        sheet.add("synapse_event_persisted_position", &[], furthest.0 as f64);
        for lane in self.lanes() {
            sheet.count("chatd_lane_waiting", &[("lane", &lane.lane)], lane.waiting);
        }
        if let Some(bus) = self.bus_state() {
            bus.figures(sheet);
        }
    }
}
