//! The figures of README.md: the real binary against a real PostgreSQL that writes to disk.
//!
//! `make bench`, or one of them: `cargo bench --bench figures -- memory send sync bytes`.
//! CPU time and memory are those that the kernel counts for the processes, so that a busy machine
//! changes them little; the clients' own are not in them.

mod bytes;
mod meter;
mod requests;
mod rest;

use std::path::Path;

use chatd_kit::{Database, Server, Settings, cluster::Cluster, say};

/// Concurrent clients of the measurements under load.
const CLIENTS: usize = 16;

/// A server on a PostgreSQL of its own, with fsync, and what the kernel counts for both.
struct Bench {
    // Dropped in this order: the server before its database, that before its files.
    server: Server,
    cluster: Cluster,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::private(folder.path())?;
        let database = Database::empty(cluster.clone()).await?;
        let binary = Path::new(env!("CARGO_BIN_EXE_chatd"));
        let server = Server::on(binary, Settings::new(), database).await;
        Ok(Self { server, cluster, _folder: folder })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The folder goes with us, so nothing has to be written down.
        let _ = self.cluster.kill9();
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
    Ok(())
}
