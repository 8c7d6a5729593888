//! A Redis of a test's own, on a unix socket in the test's folder.

use std::path::{Path, PathBuf};

use crate::{Command, command::Running};

/// A running Redis; killed when dropped.
#[derive(Debug)]
pub struct Redis {
    folder: PathBuf,
    running: Option<Running>,
}

impl Redis {
    /// Starts one whose socket is `redis.sock` in `folder`; returns when it takes connections.
    pub async fn start(folder: &Path) -> Self {
        let mut redis = Self { folder: folder.to_owned(), running: None };
        redis.restart().await;
        redis
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// Ends it as `kill -9` does.
    pub fn kill9(&mut self) {
        self.running = None;
    }

    /// Starts it again, with nothing in it.
    pub async fn restart(&mut self) {
        self.kill9();
        // One that was killed leaves it behind.
        let _ = std::fs::remove_file(self.socket());
        let line = "--port 0 --unixsocket redis.sock --unixsocketperm 777 --appendonly no --save";
        let command = Command::new("redis-server", &self.folder, line).argument("");
        self.running = Some(command.start("redis.log"));
        while tokio::net::UnixStream::connect(self.socket()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
