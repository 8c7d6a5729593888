//! `database.name: embedded`: a private PostgreSQL cluster that chatd makes, runs and stops.
//!
//! It listens on a unix socket inside its own folder and nowhere else. One chatd at a time uses
//! it (a lock file); it is restarted when it dies, stopped when chatd ends, and what an earlier
//! chatd that was killed has left running is stopped before it starts again (R7).

mod binaries;
mod place;
mod server;
#[cfg(test)]
mod tests;

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use binaries::Binaries;
use place::Place;
use server::Server;

/// Role and database that chatd uses in its cluster.
pub const USER: &str = "chatd";
pub const DATABASE: &str = "chatd";
/// Part of the socket's file name; no port is opened.
const PORT: u16 = 5432;

/// How long PostgreSQL may take to end before it is told to hurry. Its journal makes that safe.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running cluster.
pub struct Cluster {
    place: Place,
    server: Server,
    /// Held for as long as this process may touch the cluster.
    _lock: File,
}

impl Cluster {
    /// Makes the cluster under `data_dir` if it is not there yet, starts it, and returns when it
    /// takes connections. `connections` is how many chatd itself will open.
    pub async fn start(data_dir: &Path, connections: usize) -> Result<Self> {
        std::fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot make the folder {}", data_dir.display()))?;
        let data_dir = data_dir.canonicalize()?;
        let lock = lock(&data_dir)?;
        let installed = binaries::installed();
        let (place, binaries) = match Place::existing(&data_dir)? {
            Some(place) => {
                let binaries = binaries::for_cluster(&installed, &place.folder)?;
                (place, binaries)
            }
            None => {
                let binaries = binaries::newest(&installed)?;
                tracing::info!(
                    "making a PostgreSQL {} database in {}; this takes some seconds",
                    binaries.major,
                    data_dir.display()
                );
                (
                    Place::create(&data_dir, |folder, owner| init(&binaries, folder, owner))?,
                    binaries,
                )
            }
        };
        server::stop_leftover(&place.folder, PATIENCE).await?;
        let server = Server::start(&binaries, &place, arguments(&place, connections));
        server.ready().await?;
        Ok(Self { place, server, _lock: lock })
    }

    /// Folder of the unix socket.
    pub fn socket_folder(&self) -> PathBuf {
        self.place.folder.clone()
    }

    /// Ends PostgreSQL; returns when it has written everything and is gone.
    pub async fn stop(self) {
        self.server.stop(PATIENCE).await;
    }
}

/// Makes sure that no other chatd uses the same data.
fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("chatd.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another chatd is using {}; stop it first, or give this one a folder of its own with \
             --data-dir",
            data_dir.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Makes an empty cluster with our database in `folder`.
fn init(binaries: &Binaries, folder: &Path, owner: Option<place::Owner>) -> Result<()> {
    let mut initdb = binaries.command("initdb", folder, owner);
    initdb.args(["--pgdata=.", "--encoding=UTF8", "--locale=C", "--auth-local=trust"]);
    initdb.args(["--auth-host=reject", "--no-instructions"]).arg(format!("--username={USER}"));
    binaries::run(initdb, None)?;
    let mut single = binaries.command("postgres", folder, owner);
    single.args(["--single", "-D", ".", "postgres"]);
    binaries::run(single, Some(&format!("CREATE DATABASE {DATABASE}\n")))?;
    let settings = folder.join("postgresql.conf");
    let mut text = std::fs::read_to_string(&settings)?;
    text.push_str(TUNING);
    std::fs::write(&settings, text).with_context(|| format!("cannot write {}", settings.display()))
}

/// Written once into the cluster's own configuration, where an admin may change it.
const TUNING: &str = "
# Set by chatd when it made this cluster: a small server that nobody else uses.
shared_buffers = 64MB
effective_cache_size = 256MB
max_wal_size = 512MB
checkpoint_timeout = 15min
random_page_cost = 1.5
jit = off
max_worker_processes = 2
max_parallel_workers = 0
max_parallel_workers_per_gather = 0
max_logical_replication_workers = 0
max_wal_senders = 2
";

/// Settings that chatd relies on, so that they are on the command line and win over any file.
fn arguments(place: &Place, connections: usize) -> Vec<String> {
    // Some for an admin's psql, pg_dump and autovacuum.
    let max_connections = connections + 10;
    [
        "listen_addresses=".to_owned(),
        format!("port={PORT}"),
        format!("unix_socket_directories={}", place.folder.display()),
        "unix_socket_permissions=0700".to_owned(),
        format!("max_connections={max_connections}"),
        "fsync=on".to_owned(),
        "synchronous_commit=on".to_owned(),
        "full_page_writes=on".to_owned(),
        "logging_collector=off".to_owned(),
        "log_destination=stderr".to_owned(),
        "log_line_prefix=".to_owned(),
    ]
    .into_iter()
    .flat_map(|setting| ["-c".to_owned(), setting])
    .collect()
}
