//! A snapshot as text: three tables.

use chatd_streams::bus::BusState;

use super::snapshot::{Rates, Seen, Snapshot};
use crate::status::{BusDetail, BusWord, Detail};

/// The tables; lines end at `width` columns, if there is one.
pub fn of(snapshot: &Snapshot, width: Option<usize>) -> String {
    let lines = head(snapshot).into_iter().chain([String::new()]);
    let lines = lines.chain(instances(snapshot)).chain([String::new()]);
    let lines = lines.chain(lanes(snapshot)).chain([String::new()]).chain(streams(snapshot));
    let cut = |line: String| match width {
        Some(width) => line.chars().take(width).collect(),
        None => line,
    };
    lines.map(|line| cut(line.trim_end().to_owned()) + "\n").collect()
}

fn head(snapshot: &Snapshot) -> Vec<String> {
    let there: Vec<&Detail> =
        snapshot.instances.iter().filter_map(|seen| seen.detail.as_ref()).collect();
    let name = there.first().map_or("nobody answers", |detail| detail.server_name.as_str());
    let (count, all) = (there.len(), snapshot.instances.len());
    vec![format!("{name}   {count} of {all} instances answer")]
}

fn instances(snapshot: &Snapshot) -> Vec<String> {
    let head = [
        "instance", "role", "up", "cpu", "memory", "database", "bus", "in/s", "out/s", "shards",
        "behind",
    ];
    let mut table = Table::new(&head);
    for seen in &snapshot.instances {
        match (&seen.detail, &seen.rates) {
            (Some(detail), Some(rates)) => table.row(instance(snapshot, seen, detail, rates)),
            _ => table.note(&seen.name, seen.error.as_deref().unwrap_or("unreachable")),
        }
    }
    table.lines()
}

fn instance(snapshot: &Snapshot, seen: &Seen, detail: &Detail, rates: &Rates) -> Vec<String> {
    let behind = snapshot.streams.iter().filter_map(|one| one.behind.get(&seen.name));
    vec![
        seen.name.clone(),
        detail.role.clone(),
        duration(detail.uptime_s),
        format!("{:.1}%", rates.cpu * 100.0),
        bytes(detail.process.resident_bytes),
        database(detail),
        bus(&detail.bus),
        format!("{:.1}", rates.bus_in),
        format!("{:.1}", rates.bus_out),
        detail.shards.owned.to_string(),
        behind.max().copied().unwrap_or_default().to_string(),
    ]
}

fn database(detail: &Detail) -> String {
    let pool = &detail.database;
    if !pool.is_connected {
        return "lost".to_owned();
    }
    let waiting = if pool.waiting > 0 { format!(" +{}", pool.waiting) } else { String::new() };
    format!("{}/{}{waiting}", pool.in_use, pool.max)
}

fn bus(bus: &BusDetail) -> String {
    let since = |state: &Option<BusState>| duration(state.as_ref().map_or(0, |bus| bus.since_s));
    match bus.state {
        BusWord::Local => "local".to_owned(),
        BusWord::Connected => "connected".to_owned(),
        BusWord::Polling => format!("LOST {}", since(&bus.figures)),
    }
}

/// Committers that have done something, or have something to do.
fn lanes(snapshot: &Snapshot) -> Vec<String> {
    let head = ["lane", "instance", "waiting", "commits/s", "rows/commit", "ms/commit"];
    let mut table = Table::new(&head);
    let mut rows = Vec::new();
    for seen in &snapshot.instances {
        let (Some(detail), Some(rates)) = (&seen.detail, &seen.rates) else { continue };
        for (lane, rate) in detail.lanes.iter().zip(&rates.lanes) {
            if lane.commits > 0 || lane.waiting > 0 {
                rows.push(vec![
                    lane.lane.clone(),
                    seen.name.clone(),
                    lane.waiting.to_string(),
                    format!("{:.1}", rate.commits),
                    format!("{:.1}", rate.rows_per_commit),
                    format!("{:.1}", rate.ms_per_commit),
                ]);
            }
        }
    }
    rows.sort();
    rows.into_iter().for_each(|row| table.row(row));
    table.lines()
}

fn streams(snapshot: &Snapshot) -> Vec<String> {
    let mut table = Table::new(&["stream", "writer", "position", "commits behind"]);
    for one in &snapshot.streams {
        let behind: Vec<_> =
            one.behind.iter().map(|(name, commits)| format!("{name} {commits}")).collect();
        table.row(vec![
            one.stream.clone(),
            one.writer.clone(),
            one.position.to_string(),
            behind.join(", "),
        ]);
    }
    table.lines()
}

/// Columns as wide as what stands in them.
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&cell| cell.to_owned()).collect(), rows: Vec::new() }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// A row of a name and a remark that goes across the columns.
    fn note(&mut self, name: &str, remark: &str) {
        self.rows.push(vec![name.to_owned(), format!("unreachable: {remark}")]);
    }

    fn lines(self) -> Vec<String> {
        let columns = self.head.len();
        let full = |row: &&Vec<String>| row.len() == columns;
        let mut widths: Vec<usize> = self.head.iter().map(|cell| cell.chars().count()).collect();
        for row in self.rows.iter().filter(full) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        // Names stand in their column, also those of remarks.
        let names = self.rows.iter().filter_map(|row| row.first());
        let longest = names.map(|name| name.chars().count()).max().unwrap_or_default();
        widths[0] = widths[0].max(longest);
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ")
        };
        std::iter::once(&self.head).chain(&self.rows).map(line).collect()
    }
}

/// `75 s`, `12 min`, `3 h`, `4 d`.
fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `17 MB`.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}
