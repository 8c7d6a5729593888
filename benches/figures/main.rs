//! The figures of README.md: the real binary against a real PostgreSQL that writes to disk.
//!
//! `make bench`, or some of them: `cargo bench --bench figures -- memory send sync bytes`, and of a
//! fleet `fleet-memory bus hop recovery`; `federation` and `federation-past` measure Synapse beside
//! it, which `tests/synapse/install.sh` installs.
//! CPU time and memory are those that the kernel counts for the processes, so that a busy machine
//! changes them little; the clients' own are not in them.

mod bytes;
mod federation;
mod fleet;
mod meter;
mod requests;
mod rest;

use std::path::Path;

use chatd_kit::{Database, Server, Settings, cluster::Cluster, say};

/// Concurrent clients of the measurements under load.
const CLIENTS: usize = 16;

/// The binary that is measured.
const BINARY: &str = env!("CARGO_BIN_EXE_chatd");

/// A PostgreSQL of our own, with fsync.
struct Postgres {
    cluster: Cluster,
    _folder: tempfile::TempDir,
}

impl Postgres {
    fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::private(folder.path())?;
        Ok(Self { cluster, _folder: folder })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The folder goes with us, so nothing has to be written down.
        let _ = self.cluster.kill9();
    }
}

/// A server, its PostgreSQL, and what the kernel counts for both.
struct Bench {
    // Dropped in this order: the server before its database.
    server: Server,
    postgres: Postgres,
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        Self::with(Settings::new()).await
    }

    async fn with(settings: Settings) -> anyhow::Result<Self> {
        let postgres = Postgres::start()?;
        let database = Database::empty(postgres.cluster.clone()).await?;
        let server = Server::on(Path::new(BINARY), settings, database).await;
        Ok(Self { server, postgres })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let asked: Vec<String> =
        std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let wanted = |name: &str| asked.is_empty() || asked.iter().any(|one| one == name);
    say(meter::machine());
    if wanted("memory") {
        rest::measure().await?;
    }
    if wanted("send") {
        requests::send().await?;
    }
    if wanted("sync") {
        requests::sync().await?;
    }
    if wanted("bytes") {
        bytes::measure().await?;
    }
    if wanted("fleet-memory") {
        fleet::rest::measure().await?;
    }
    if wanted("bus") {
        fleet::bus::measure().await?;
    }
    if wanted("hop") {
        fleet::hop::measure().await?;
    }
    if wanted("recovery") {
        fleet::recovery::measure().await?;
    }
    if wanted("federation") {
        federation::measure().await?;
    }
    if wanted("federation-past") {
        federation::measure_past().await?;
    }
    Ok(())
}
