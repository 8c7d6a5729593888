//! The PostgreSQL process: started, watched, started again when it dies, and stopped.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{Binaries, Place};

/// How often files and processes are looked at while something is waited for, at start and end.
const GLANCE: Duration = Duration::from_millis(20);
/// Pause before a restart; it doubles up to `LONGEST_PAUSE` while PostgreSQL keeps dying.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A start fails when PostgreSQL has died this often without becoming ready.
const MAX_FALSE_STARTS: u32 = 6;
/// Lines of PostgreSQL's log that are kept for an error message.
const LAST_LINES: usize = 10;

/// Asks PostgreSQL to end its sessions and write everything down.
const FAST: Signal = Signal::INT;
/// Asks it to end at once; it recovers from its journal at the next start.
const IMMEDIATE: Signal = Signal::QUIT;

/// A PostgreSQL that is kept running by a thread of its own.
pub struct Server {
    shared: Arc<Shared>,
    folder: PathBuf,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pid: Option<Pid>,
    stopping: bool,
    /// The thread has ended: nothing will be started again.
    ended: bool,
    deaths: u32,
    last_lines: VecDeque<String>,
}

impl Shared {
    /// A panic while the lock was held leaves nothing half written.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Starts PostgreSQL and returns at once.
    ///
    /// The thread lives as long as this process. That matters: the kernel signals a child when
    /// the *thread* that made it ends.
    pub fn start(binaries: &Binaries, place: &Place, arguments: Vec<String>) -> Self {
        let shared = Arc::new(Shared::default());
        let (binaries, place, folder) = (binaries.clone(), place.clone(), place.folder.clone());
        let theirs = shared.clone();
        thread::spawn(move || {
            keep_running(&theirs, || {
                let mut command = binaries.command("postgres", &place.folder, place.owner);
                command.arg("-D").arg(&place.folder).args(&arguments);
                command
            });
            theirs.lock().ended = true;
            theirs.changed.notify_all();
        });
        Self { shared, folder }
    }

    /// Returns when PostgreSQL takes connections; fails when it dies again and again.
    pub async fn ready(&self) -> Result<()> {
        let mut glances = 0_u32;
        loop {
            {
                let state = self.shared.lock();
                if state.pid.is_some_and(|pid| is_ready(&self.folder, pid)) {
                    return Ok(());
                }
                if state.ended || state.deaths >= MAX_FALSE_STARTS {
                    let lines = Vec::from(state.last_lines.clone()).join("\n  ");
                    bail!("PostgreSQL does not start in {}:\n  {lines}", self.folder.display());
                }
            }
            glances += 1;
            if glances.is_multiple_of(250) {
                tracing::info!("PostgreSQL is still starting; after a crash it reads its journal");
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Leaves PostgreSQL as it is and does not start it again, as if this process had ended.
    #[cfg(test)]
    pub fn pretend_to_be_killed(&self) {
        self.shared.lock().stopping = true;
    }

    /// Ends PostgreSQL for good; after `patience` without regard for what it is doing.
    pub async fn stop(self, patience: Duration) {
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            signal(state.pid, FAST);
        }
        self.shared.changed.notify_all();
        let gone = || self.shared.lock().ended;
        if !wait_until(gone, patience).await {
            tracing::warn!("PostgreSQL takes long to end and is made to");
            signal(self.shared.lock().pid, IMMEDIATE);
            wait_until(gone, patience).await;
        }
    }
}

/// Runs PostgreSQL until it is not wanted any more.
fn keep_running(shared: &Arc<Shared>, command: impl Fn() -> Command) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut child = {
            let mut state = shared.lock();
            if state.stopping {
                return;
            }
            match spawn(command()) {
                Ok(child) => {
                    state.pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
                    child
                }
                Err(error) => {
                    state.last_lines.push_back(format!("cannot run postgres: {error}"));
                    return;
                }
            }
        };
        let long_lived = wait(shared, &mut child);
        let mut state = shared.lock();
        state.pid = None;
        if state.stopping {
            return;
        }
        state.deaths += 1;
        pause = if long_lived { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        // Woken early only to stop.
        drop(shared.changed.wait_timeout(state, pause));
    }
}

/// Reads what PostgreSQL says until it ends. Returns whether it had been running well.
fn wait(shared: &Arc<Shared>, child: &mut Child) -> bool {
    let mut was_ready = false;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            was_ready |= line.contains("database system is ready");
            note(shared, line);
        }
    }
    let status = child.wait();
    if !shared.lock().stopping {
        let how = status.map_or_else(|error| error.to_string(), |s: ExitStatus| s.to_string());
        tracing::warn!("PostgreSQL ended ({how}) and is started again");
    }
    was_ready
}

/// Passes one line of PostgreSQL's log on to ours.
fn note(shared: &Shared, line: String) {
    let target_line = line.trim_end();
    let is_serious =
        ["FATAL:", "PANIC:", "ERROR:", "WARNING:"].iter().any(|level| target_line.contains(level));
    let says = |what: &str| target_line.contains(&format!("FATAL:  {what}"));
    let mut state = shared.lock();
    // It says so to our own attempts to connect while it starts and ends, of connections that we have
    // closed, and of idle ones when it is made to end.
    let is_no_news = says("the database system is")
        || says("connection to client lost")
        || (state.stopping && says("terminating connection"));
    if is_serious && !is_no_news {
        tracing::warn!(target: "chatd::postgres", "{target_line}");
    } else {
        tracing::debug!(target: "chatd::postgres", "{target_line}");
    }
    if state.last_lines.len() == LAST_LINES {
        state.last_lines.pop_front();
    }
    state.last_lines.push_back(line);
}

/// Starts the process in a group of its own, so that Ctrl-C reaches chatd alone, which then ends
/// it in good order; and so that it ends when chatd is killed.
fn spawn(mut command: Command) -> std::io::Result<Child> {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    #[cfg(target_os = "linux")]
    die_with_parent(&mut command);
    command.spawn()
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "pre_exec has no safe form")]
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made; nothing is allocated.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(FAST))?));
    }
}

fn signal(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        // It may have ended by itself in the meantime.
        let _ = kill_process(pid, signal);
    }
}

/// Whether the server `pid` has written that it takes connections.
fn is_ready(folder: &Path, pid: Pid) -> bool {
    const PID: usize = 0;
    const STATUS: usize = 7;
    let Ok(text) = std::fs::read_to_string(folder.join("postmaster.pid")) else { return false };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.get(PID).is_some_and(|line| *line == pid.to_string())
        && lines.get(STATUS).is_some_and(|line| *line == "ready")
}

/// Ends a PostgreSQL that a killed chatd has left behind in `folder`.
pub async fn stop_leftover(folder: &Path, patience: Duration) -> Result<()> {
    let Some(pid) = leftover(folder) else { return Ok(()) };
    tracing::info!("waiting for the PostgreSQL of an earlier chatd to end");
    for how in [FAST, IMMEDIATE] {
        signal(Some(pid), how);
        if wait_until(|| leftover(folder) != Some(pid), patience).await {
            return Ok(());
        }
    }
    bail!("process {pid} is a PostgreSQL that uses {} and does not end", folder.display())
}

/// The process that `postmaster.pid` names, if it lives and works in this folder.
fn leftover(folder: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(folder.join("postmaster.pid")).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
    test_kill_process(pid).ok()?;
    let works_in = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (works_in == folder).then_some(pid)
}

async fn wait_until(condition: impl Fn() -> bool, patience: Duration) -> bool {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(GLANCE).await;
        }
    };
    tokio::time::timeout(patience, waiting).await.is_ok()
}
