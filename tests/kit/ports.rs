//! Ports of the loopback address that stay one test's own.
//!
//! A port that the kernel gives out is free at that moment only: an outgoing connection may take it
//! while a server is down between two starts, and even connect to itself. These are below the range
//! that the kernel gives out, and a lock on a file keeps other tests away.

use std::{fs::File, net::TcpListener, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};

use crate::cluster;

/// Below what Linux gives out by itself (32768 and up).
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A port that nobody else uses as long as a copy of this value lives.
#[derive(Clone, Debug)]
pub struct Port {
    number: u16,
    _claim: Arc<File>,
}

impl Port {
    /// One that nobody listens on, and that had no other owner for a long time: servers remember
    /// the keys of others by a name that has the port in it.
    pub fn claim() -> Result<Self> {
        let folder = folder()?;
        let _alone = cluster::lock(&folder.join("next.lock"))?;
        let next = folder.join("next");
        let last = std::fs::read_to_string(&next).ok().and_then(|text| text.trim().parse().ok());
        let mut number = last.unwrap_or_else(|| rand::random_range(RANGE));
        for _ in RANGE {
            number = if RANGE.contains(&(number + 1)) { number + 1 } else { RANGE.start };
            let path = folder.join(number.to_string());
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            if file.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                std::fs::write(&next, number.to_string())?;
                return Ok(Self { number, _claim: Arc::new(file) });
            }
        }
        anyhow::bail!("there is no free port between {} and {}", RANGE.start, RANGE.end)
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:<port>`, as a server name has it.
    pub fn server_name(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

fn folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join("chatd-kit-ports");
    std::fs::create_dir_all(&folder).context("a folder for the locks of ports")?;
    Ok(folder)
}
