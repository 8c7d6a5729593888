//! What was seen of a fleet at one moment, and what can be worked out from it.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::status::Detail;

/// Positions that one commit takes at most, and the distance between those of two commits.
const BLOCK: i64 = 10_000;

/// All instances at one moment.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    pub instances: Vec<Seen>,
    /// Who writes, and who is behind.
    pub streams: Vec<Written>,
}

/// One instance.
#[derive(Debug, Serialize)]
pub struct Seen {
    pub name: String,
    pub reachable: bool,
    /// Why it did not answer.
    pub error: Option<String>,
    pub round_trip_ms: f64,
    /// What it does a second; since its start, or since the look before.
    pub rates: Option<Rates>,
    pub detail: Option<Detail>,
}

/// What an instance does a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Of one core.
    pub cpu: f64,
    pub bus_in: f64,
    pub bus_out: f64,
    pub lanes: Vec<LaneRate>,
}

/// What a committer does a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LaneRate {
    pub lane: String,
    pub commits: f64,
    pub rows_per_commit: f64,
    pub ms_per_commit: f64,
}

/// One writer of one stream.
#[derive(Debug, PartialEq, Serialize)]
pub struct Written {
    pub stream: String,
    pub writer: String,
    /// The furthest position that anybody knows.
    pub position: i64,
    /// Commits by which each instance is behind, if it is.
    pub behind: BTreeMap<String, i64>,
}

impl Snapshot {
    pub fn new(instances: Vec<Seen>) -> Self {
        let streams = written(&instances);
        Self { instances, streams }
    }
}

/// Every writer of every stream, from what the instances tell of them.
fn written(instances: &[Seen]) -> Vec<Written> {
    let mut told = BTreeMap::<(&str, &str), BTreeMap<&str, i64>>::new();
    for (seen, detail) in instances.iter().filter_map(|one| Some((one, one.detail.as_ref()?))) {
        for stream in &detail.streams {
            for writer in &stream.writers {
                let positions = told.entry((&stream.stream, &writer.writer)).or_default();
                positions.insert(&seen.name, writer.position);
            }
        }
    }
    let all = told.into_iter().filter_map(|((stream, writer), positions)| {
        let position = *positions.values().max()?;
        let behind = positions
            .iter()
            .filter(|(_, seen)| **seen < position)
            .map(|(name, seen)| ((*name).to_owned(), commits(stream, position - seen)))
            .collect();
        Some(Written { stream: stream.to_owned(), writer: writer.to_owned(), position, behind })
    });
    all.collect()
}

/// How many commits of the stream lie in a distance between two of its positions, at most.
fn commits(stream: &str, distance: i64) -> i64 {
    // Typing has no commits, and positions of its own.
    if stream == "typing" { distance } else { (distance / BLOCK).max(1) }
}

impl Rates {
    /// What was done between two looks at the same process; else since its start.
    pub fn between(before: Option<(&Detail, Duration)>, now: &Detail) -> Self {
        let same = before.filter(|(before, _)| before.process.pid == now.process.pid);
        let (before, seconds) = match same {
            Some((before, passed)) => (Some(before), passed.as_secs_f64()),
            None => (None, now.uptime_s.max(1) as f64),
        };
        let a_second = |count: fn(&Detail) -> u64| {
            let done = count(now).saturating_sub(before.map_or(0, count));
            done as f64 / seconds
        };
        let cpu_s = now.process.cpu_s - before.map_or(0.0, |before| before.process.cpu_s);
        let frames_in =
            |detail: &Detail| detail.bus.figures.as_ref().map_or(0, |bus| bus.frames_in);
        let frames_out =
            |detail: &Detail| detail.bus.figures.as_ref().map_or(0, |bus| bus.frames_out);
        let lanes = now.lanes.iter().map(|lane| {
            let old = before.and_then(|old| old.lanes.iter().find(|one| one.lane == lane.lane));
            let commits = lane.commits - old.map_or(0, |old| old.commits);
            let rows = lane.rows - old.map_or(0, |old| old.rows);
            let busy_us = lane.busy_us - old.map_or(0, |old| old.busy_us);
            let each = |sum: u64| if commits == 0 { 0.0 } else { sum as f64 / commits as f64 };
            LaneRate {
                lane: lane.lane.clone(),
                commits: commits as f64 / seconds,
                rows_per_commit: each(rows),
                ms_per_commit: each(busy_us) / 1000.0,
            }
        });
        Self {
            cpu: cpu_s / seconds,
            bus_in: a_second(frames_in),
            bus_out: a_second(frames_out),
            lanes: lanes.collect(),
        }
    }
}
