//! What the kernel and PostgreSQL count.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use chatd_kit::{Database, say};

use crate::{Bench, Postgres};

/// Kernel ticks in a second, on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What has been used since the start of the processes.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    chatd_ms: f64,
    postgres_ms: f64,
    commits: f64,
}

impl Bench {
    /// What chatd and its PostgreSQL have used so far.
    pub async fn used(&mut self) -> Result<Used> {
        let chatd = self.server.process().pid().context("chatd runs")?;
        let postgres_ms = postgres_ms(&self.postgres)?;
        Ok(Used { chatd_ms: cpu_ms(chatd)?, postgres_ms, commits: self.commits().await? })
    }

    /// Says how much memory chatd has: what is its own, and the pages of its program that are in
    /// memory.
    pub fn say_memory(&mut self, when: &str) -> Result<()> {
        let pid = self.server.process().pid().context("chatd runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mb = |name: &str| -> Result<f64> {
            let line =
                status.lines().find(|line| line.starts_with(name)).context("no such line")?;
            let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
            Ok(kib * 1024.0 / 1e6)
        };
        say(format_args!(
            "memory after {when}: {:.1} MB resident, {:.1} of it its own and {:.1} its program",
            mb("VmRSS:")?,
            mb("RssAnon:")?,
            mb("RssFile:")?
        ));
        Ok(())
    }

    /// Transactions that sessions have told PostgreSQL's statistics, which they do within a second
    /// of their end; so this waits until the number stands still.
    async fn commits(&self) -> Result<f64> {
        let mut last = -1.0;
        loop {
            let now = commits_so_far(self.server.database()).await?;
            if now <= last {
                return Ok(now);
            }
            last = now;
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    }
}

impl Used {
    /// Says what `count` of something have cost since `before`.
    pub fn say_each(self, what: &str, before: Self, count: usize, seconds: f64) {
        let count = float(count);
        let each = |now: f64, then: f64| (now - then) / count;
        let chatd = each(self.chatd_ms, before.chatd_ms);
        let postgres = each(self.postgres_ms, before.postgres_ms);
        let commits = each(self.commits, before.commits);
        let rate = count / seconds;
        say(format_args!(
            "{what}: {:.3} ms of CPU ({chatd:.3} chatd, {postgres:.3} PostgreSQL), \
             {commits:.3} transactions, {rate:.0} a second",
            chatd + postgres
        ));
    }

    /// Says what has been used since `before` with nothing to do.
    pub fn say_idle(self, before: Self, seconds: f64) {
        let share = |now: f64, then: f64| (now - then) / seconds / 10.0;
        say(format_args!(
            "idle for {seconds:.0} s: {:.2} % of a core in chatd, {:.2} % in PostgreSQL, {:.2} \
             transactions a second",
            share(self.chatd_ms, before.chatd_ms),
            share(self.postgres_ms, before.postgres_ms),
            (self.commits - before.commits) / seconds
        ));
    }
}

/// Transactions that have been told PostgreSQL's statistics.
pub async fn commits_so_far(database: &Database) -> Result<f64> {
    let client = database.cluster().connect("postgres").await?;
    let sql = "SELECT xact_commit::float8 FROM pg_stat_database WHERE datname = $1";
    Ok(client.query_one(sql, &[&database.name()]).await?.get(0))
}

/// What the processes of a PostgreSQL have used.
pub fn postgres_ms(postgres: &Postgres) -> Result<f64> {
    let postmaster = postgres.cluster.pid()?;
    let mut sum = 0.0;
    for process in processes() {
        // The children of a process that has waited for them are in its own count.
        if process.pid == postmaster {
            sum += process.cpu_ms + process.ended_children_ms;
        } else if process.parent == postmaster {
            sum += process.cpu_ms;
        }
    }
    Ok(sum)
}

/// What a process has used. Finer than [`Process::cpu_ms`], which counts ticks.
pub fn cpu_ms(pid: u32) -> Result<f64> {
    let whole = processes().find(|one| one.pid == pid).context("it runs")?.cpu_ms;
    let mut of_threads = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread may end meanwhile.
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        let ns = text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
        of_threads += ns.unwrap_or_default() / 1e6;
    }
    // What threads have used that are gone is in the sum of the ticks only.
    let tick = 1000.0 / TICKS_PER_SECOND;
    Ok(if whole - of_threads > 2.0 * tick { whole } else { of_threads })
}

/// The most memory that a process has had, in MB.
pub fn most_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no such line")?;
    let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// Memory of one process, in MB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Its part of what it shares with others, and all that it does not share.
    pub proportional: f64,
    pub resident: f64,
    /// What nobody else has.
    pub private: f64,
}

impl Memory {
    pub fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let mb = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            kib.unwrap_or_default() * 1024.0 / 1e6
        };
        Ok(Self {
            proportional: mb("Pss:"),
            resident: mb("Rss:"),
            private: mb("Private_Clean:") + mb("Private_Dirty:"),
        })
    }
}

struct Process {
    pid: u32,
    parent: u32,
    cpu_ms: f64,
    ended_children_ms: f64,
}

fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name may have blanks and parentheses in it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ms = |field: usize| {
            fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_default()
                * 1000.0
                / TICKS_PER_SECOND
        };
        let parent = fields.get(1)?.parse().ok()?;
        Some(Process { pid, parent, cpu_ms: ms(11) + ms(12), ended_children_ms: ms(13) + ms(14) })
    })
}

/// The machine, for whoever reads the figures.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
    format!(
        "{cores} cores of {}, {:.0} GB of memory, Linux {}",
        model.map_or("an unknown kind", |(_, name)| name),
        kib.unwrap_or_default() * 1024.0 / 1e9,
        read("/proc/sys/kernel/osrelease").trim(),
    )
}

/// Counts here are far below what a float holds exactly.
pub fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
