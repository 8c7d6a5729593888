//! A server that nobody asks anything.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Bench;

/// After a start; PostgreSQL's sessions tell their last transactions within ten idle seconds.
const SETTLE: Duration = Duration::from_secs(12);
/// How long nothing is asked.
const REST: Duration = Duration::from_secs(20);
const USERS: usize = 200;

/// Memory after the start and after users have come, and idle CPU.
pub async fn measure() -> Result<()> {
    let mut bench = Bench::start().await?;
    tokio::time::sleep(SETTLE).await;
    bench.say_memory("the start")?;
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
    tokio::time::sleep(SETTLE).await;
    bench.say_memory(&format!(
        "{USERS} users have registered, joined a room, sent a message and synced"
    ))?;
    Ok(())
}
