//! What this process uses of the machine. What the system does not tell is 0.

use std::fs;

use chatd_base::Sheet;
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};
use serde::{Deserialize, Serialize};

/// The process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// User and system, since the start.
    pub cpu_s: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub open_files: u64,
    /// 0 if there is no limit.
    pub max_files: u64,
    /// Since 1970.
    pub started_s: f64,
}

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Process {
    /// As it is now.
    pub fn now() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let pid = std::process::id();
        let Some(stat) = Stat::parse(&text("/proc/self/stat")) else {
            return Self { pid, ..Self::default() };
        };
        let per_second = clock_ticks_per_second() as f64;
        let booted_s = booted_s(&text("/proc/stat")).unwrap_or_default();
        Self {
            pid,
            cpu_s: stat.cpu_ticks as f64 / per_second,
            resident_bytes: stat.resident_pages * page_size() as u64,
            virtual_bytes: stat.virtual_bytes,
            open_files: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64,
            max_files: getrlimit(Resource::Nofile).current.unwrap_or_default(),
            started_s: booted_s as f64 + stat.started_ticks as f64 / per_second,
        }
    }

    /// Puts it on the metrics page, under the names that every Prometheus client has.
    pub fn figures(&self, sheet: &mut Sheet) {
        sheet.add("process_cpu_seconds_total", &[], self.cpu_s);
        sheet.count("process_resident_memory_bytes", &[], self.resident_bytes);
        sheet.count("process_virtual_memory_bytes", &[], self.virtual_bytes);
        sheet.count("process_open_fds", &[], self.open_files);
        sheet.count("process_max_fds", &[], self.max_files);
        sheet.add("process_start_time_seconds", &[], self.started_s);
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program is in brackets, and may have anything in it.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first of them is the third of the manual page.
        let number = |index: usize| fields.get(index - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)? + number(15)?,
            started_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

/// When the machine started.
fn booted_s(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_kernel_is_read() {
        let line = "4711 (cha) td (x) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 9 0 123456 \
                    1000000 321 18446744073709551615 1 1 0";
        let expected = Stat {
            cpu_ticks: 200,
            started_ticks: 123_456,
            virtual_bytes: 1_000_000,
            resident_pages: 321,
        };
        assert_eq!(Stat::parse(line), Some(expected));
        assert_eq!(Stat::parse("4711 (chatd) S 1"), None);
        assert_eq!(booted_s("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
    }

    #[test]
    fn this_process_is_measured() {
        let now = Process::now();
        assert!(now.resident_bytes > 100_000 && now.resident_bytes < now.virtual_bytes, "{now:?}");
        assert!(now.open_files > 2 && now.open_files <= now.max_files, "{now:?}");
        assert!(now.started_s > 1e9, "{now:?}");
    }
}
