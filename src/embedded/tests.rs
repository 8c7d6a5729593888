//! A real cluster: made, killed, left behind, shared by mistake.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use super::{Cluster, PATIENCE, server};

/// A data folder that PostgreSQL's user can enter, too.
fn data_dir() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// The running server, unless its file is just being written.
fn pid(data_dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data_dir.join("postgres/postmaster.pid")).ok()?;
    Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
}

#[tokio::test]
async fn a_killed_postgresql_comes_back_and_a_stopped_one_is_gone() {
    let folder = data_dir();
    let cluster = Cluster::start(folder.path(), 5).await.unwrap();
    assert!(cluster.socket_folder().join(".s.PGSQL.5432").exists());

    let first = pid(folder.path());
    kill_process(first.unwrap(), Signal::KILL).unwrap();
    let back = async {
        while pid(folder.path()).is_none_or(|now| Some(now) == first) {
            cluster.server.ready().await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();

    let started = std::time::Instant::now();
    cluster.stop().await;
    assert!(started.elapsed() < PATIENCE, "PostgreSQL ended in good order");
    assert!(!folder.path().join("postgres/postmaster.pid").exists());

    let again = Cluster::start(folder.path(), 5).await.unwrap();
    again.stop().await;
}

#[tokio::test]
async fn two_chatd_do_not_share_a_cluster() {
    let folder = data_dir();
    let cluster = Cluster::start(folder.path(), 5).await.unwrap();
    let error = Cluster::start(folder.path(), 5).await.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another chatd is using"), "{error}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_postgresql_that_was_left_behind_is_stopped() {
    let folder = data_dir();
    let cluster = Cluster::start(folder.path(), 5).await.unwrap();
    let socket_folder = cluster.socket_folder();
    cluster.server.pretend_to_be_killed();

    server::stop_leftover(&socket_folder, PATIENCE).await.unwrap();
    assert!(!folder.path().join("postgres/postmaster.pid").exists());
}
