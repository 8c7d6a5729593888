//! A server that nobody asks anything.

use std::time::{Duration, Instant};

use anyhow::Result;
use chatd_kit::say;

use crate::Bench;

/// How long nothing is asked.
const REST: Duration = Duration::from_secs(20);
const USERS: usize = 200;

/// Memory after the start and after users have come, and idle CPU.
pub async fn measure() -> Result<()> {
    let mut bench = Bench::start().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    say(format_args!("memory after the start: {:.1} MB", bench.resident_mb()?));
    let before = bench.used().await?;
    let started = Instant::now();
    tokio::time::sleep(REST).await;
    bench.used().await?.say_idle(before, started.elapsed().as_secs_f64());

    let host = bench.server.user("host").await;
    let room = host.public_room().await;
    for number in 0..USERS {
        let user = bench.server.user(&format!("user{number}")).await;
        user.join(&room).await.ok();
        user.send(&room, "hello").await;
        user.sync().await.ok();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    say(format_args!(
        "memory after {USERS} users have registered, joined a room, sent a message and synced: \
         {:.1} MB",
        bench.resident_mb()?
    ));
    Ok(())
}
