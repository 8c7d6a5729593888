//! What it costs an instance where nobody syncs that others are busy.

use std::time::{Duration, Instant};

use anyhow::Result;
use chatd_kit::{User, say, spawn};
use futures::future::join_all;

use super::Ships;
use crate::{meter, meter::float};

/// Rooms with a sender each.
const SENDERS: u32 = 32;
/// Messages that all of them are to send in a second.
const RATE: u32 = 1000;
const SECONDS: u32 = 15;
const IDLE: Duration = Duration::from_secs(10);
const FRAMES: &str = "synapse_replication_tcp_protocol_inbound_rdata_count_total";

/// Messages in many rooms, and the CPU time of an instance that nobody asks anything.
pub async fn measure() -> Result<()> {
    let mut ships = Ships::start().await?;
    let mut senders = Vec::new();
    for number in 0..SENDERS {
        let user = User::register(&ships.at("main"), &format!("user{number}")).await;
        let room = user.create_room().await;
        let (owner, _) = ships.owner_of(&user, &room).await?;
        senders.push((user.at(&ships.at(owner)), room));
    }
    let pid = ships.pid("sync2")?;
    let resting = meter::cpu_ms(pid)?;
    tokio::time::sleep(IDLE).await;
    let idle = (meter::cpu_ms(pid)? - resting) / IDLE.as_secs_f64();

    let before = meter::cpu_ms(pid)?;
    let frames_before = ships.metric("sync2", FRAMES).await?;
    let (all, started) = (ships.cpu_ms()?, Instant::now());
    let sending = senders.into_iter().map(|(user, room)| spawn(send(user, room)));
    let sent: usize = join_all(sending).await.iter().sum();
    let seconds = started.elapsed().as_secs_f64();
    let used = meter::cpu_ms(pid)? - before;
    let frames = ships.metric("sync2", FRAMES).await? - frames_before;
    say(format_args!(
        "an instance that nobody asks, while {:.0} messages a second are sent elsewhere: {:.1} % of \
         a core ({:.2} % when all is quiet), {:.1} ms for 1000 messages, which came in {frames:.0} \
         frames of {:.1}; the fleet and PostgreSQL used {:.0} ms for 1000",
        float(sent) / seconds,
        used / seconds / 10.0,
        idle / 10.0,
        (used - idle * seconds) / float(sent) * 1000.0,
        float(sent) / frames,
        (ships.cpu_ms()? - all) / float(sent) * 1000.0,
    ));
    Ok(())
}

/// Sends at an even pace, or as fast as the machine can.
async fn send(user: User, room: String) -> usize {
    let mut pace = tokio::time::interval(Duration::from_secs(1) * SENDERS / RATE);
    let mut sent = 0;
    for number in 0..RATE * SECONDS / SENDERS {
        pace.tick().await;
        let text = format!("message {number} of a conversation like any other");
        user.send_text(&room, &text).unchecked().await.ok();
        sent += 1;
    }
    sent
}
