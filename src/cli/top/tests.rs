//! What is made of the instances' answers.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    snapshot::{Rates, Seen, Snapshot},
    text,
};
use crate::status::Detail;

/// An instance that knows these positions of the writer `p1` of events and of typing.
fn detail(name: &str, events: i64, typing: i64) -> Value {
    let stream = |stream: &str, position: i64| {
        let writer =
            json!({"writer": "p1", "is_own": name == "p1", "position": position, "lag": 0});
        json!({"stream": stream, "writers": [writer]})
    };
    json!({
        "instance": name, "role": "generic_worker", "server_name": "example.org",
        "version": "1", "uptime_s": 100, "routers": [], "writes": [], "tasks": [],
        "database": {"is_connected": true, "max": 10, "size": 4, "in_use": 2, "waiting": 0},
        "bus": {"state": "connected", "is_connected": true, "since_s": 7, "reconnects": 0,
                "frames_in": 200, "frames_out": 50, "bytes_in": 0, "bytes_out": 0, "dropped": 0,
                "waiting": 0},
        "shards": {"owned": 32, "of": 64},
        "fleet": [],
        "streams": [stream("events", events), stream("typing", typing)],
        "lanes": [{"lane": "events", "waiting": 3, "commits": 100, "rows": 250, "busy_us": 200_000}],
        "process": {"pid": 7, "cpu_s": 2.0, "resident_bytes": 17_300_000, "virtual_bytes": 0,
                    "open_files": 20, "max_files": 1024, "started_s": 0.0},
    })
}

fn parsed(detail: Value) -> Detail {
    serde_json::from_value(detail).unwrap()
}

fn seen(detail: Value) -> Seen {
    let detail = parsed(detail);
    Seen {
        name: detail.instance.clone(),
        reachable: true,
        error: None,
        round_trip_ms: 1.0,
        rates: Some(Rates::between(None, &detail)),
        detail: Some(detail),
    }
}

fn away(name: &str) -> Seen {
    Seen {
        name: name.to_owned(),
        reachable: false,
        error: Some("connection refused".to_owned()),
        round_trip_ms: 0.1,
        rates: None,
        detail: None,
    }
}

#[test]
fn whoever_has_seen_less_is_behind() {
    let snapshot = Snapshot::new(vec![
        seen(detail("p1", 50_003, 9)),
        seen(detail("s1", 20_001, 9)),
        seen(detail("s2", 50_000, 5)),
        away("s3"),
    ]);
    let behind: Vec<_> =
        snapshot.streams.iter().map(|one| (one.stream.as_str(), json!(one.behind))).collect();
    // Rows of one commit are less than a block apart.
    assert_eq!(behind, [("events", json!({"s1": 3, "s2": 1})), ("typing", json!({"s2": 4}))]);
    assert_eq!(snapshot.streams[0].position, 50_003);
}

#[test]
fn rates_are_of_the_time_between_two_looks_at_one_process() {
    let (mut before, mut now) = (detail("p1", 0, 0), detail("p1", 0, 0));
    now["process"]["cpu_s"] = json!(2.5);
    now["bus"]["frames_in"] = json!(220);
    now["lanes"][0] =
        json!({"lane": "events", "waiting": 0, "commits": 110, "rows": 290, "busy_us": 230_000});
    let passed = Duration::from_secs(2);
    let rates = Rates::between(Some((&parsed(before.clone()), passed)), &parsed(now.clone()));
    assert_eq!((rates.cpu, rates.bus_in, rates.bus_out), (0.25, 10.0, 0.0));
    let lane = &rates.lanes[0];
    assert_eq!((lane.commits, lane.rows_per_commit, lane.ms_per_commit), (5.0, 4.0, 3.0));

    // Another process has begun anew.
    before["process"]["pid"] = json!(6);
    let rates = Rates::between(Some((&parsed(before), passed)), &parsed(now));
    assert_eq!((rates.cpu, rates.bus_in, rates.lanes[0].commits), (0.025, 2.2, 1.1));
}

#[test]
fn the_tables_are_as_wide_as_what_is_in_them() {
    let mut lost = detail("s1", 20_001, 9);
    lost["bus"]["state"] = json!("polling");
    lost["database"]["waiting"] = json!(5);
    let snapshot = Snapshot::new(vec![seen(detail("p1", 50_003, 9)), seen(lost), away("s3")]);
    let expected = "\
example.org   2 of 3 instances answer

instance  role            up     cpu   memory  database  bus        in/s  out/s  shards  behind
p1        generic_worker  100 s  2.0%  17 MB   2/10      connected  2.0   0.5    32      0
s1        generic_worker  100 s  2.0%  17 MB   2/10 +5   LOST 7 s   2.0   0.5    32      3
s3        unreachable: connection refused

lane    instance  waiting  commits/s  rows/commit  ms/commit
events  p1        3        1.0        2.5          2.0
events  s1        3        1.0        2.5          2.0

stream  writer  position  commits behind
events  p1      50003     s1 3
typing  p1      9
";
    assert_eq!(text::of(&snapshot, None), expected);
    let narrow = text::of(&snapshot, Some(20));
    assert!(narrow.lines().all(|line| line.len() <= 20), "{narrow}");
}
