//! How long people notice that a part of a fleet goes away, comes back, or is added. Some of them
//! send all the time, at instances to which nothing happens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use chatd_kit::{Feed, Started, User, process::signal, say, spawn};

use super::{PERSISTERS, Ships};

/// People, each with a room, so that both persisters have some.
const SENDERS: usize = 8;
/// Between two messages of one of them.
const PAUSE: Duration = Duration::from_millis(20);
/// Before something happens, and after it is over.
const QUIET: Duration = Duration::from_secs(2);
/// How long something stays away.
const AWAY: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(10);

/// One table.
pub async fn measure() -> Result<()> {
    let mut ships = Ships::start().await?;
    let mut people = Vec::new();
    for number in 0..SENDERS {
        let user = User::register(&ships.at("main"), &format!("user{number}")).await;
        let room = user.create_room().await;
        people.push((user.at(&ships.at("sync1")), room));
    }
    say("recovery: the longest send meanwhile, how many failed, and what else took how long");
    persister_killed(&mut ships, &people).await?;
    persister_stopped(&mut ships, &people).await?;
    main_killed(&mut ships, &people).await?;
    persister_added(&mut ships, &people).await?;
    redis_away(&mut ships, &people).await
}

/// Messages that are sent all the time.
struct Load {
    ended: Arc<AtomicBool>,
    senders: Vec<Started<(Duration, usize)>>,
}

impl Load {
    async fn start(people: &[(User, String)]) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let senders = people.iter().cloned();
        let senders = senders.map(|(user, room)| spawn(send(user, room, ended.clone()))).collect();
        tokio::time::sleep(QUIET).await;
        Self { ended, senders }
    }

    /// Ends it, and says how it went.
    async fn say(self, what: &str, also: &str) {
        tokio::time::sleep(QUIET).await;
        self.ended.store(true, Ordering::Relaxed);
        let (mut longest, mut failed) = (Duration::ZERO, 0);
        for sender in self.senders {
            let (one, failures) = sender.await;
            longest = longest.max(one);
            failed += failures;
        }
        say(format_args!("  {what:30} {:6.0} ms {failed:3}  {also}", longest.as_secs_f64() * 1e3));
    }
}

/// The longest send, and how many failed.
async fn send(user: User, room: String, ended: Arc<AtomicBool>) -> (Duration, usize) {
    let (mut longest, mut failed) = (Duration::ZERO, 0);
    while !ended.load(Ordering::Relaxed) {
        let started = Instant::now();
        let sent = user.send_text(&room, "on and on").unchecked().send().await;
        longest = longest.max(started.elapsed());
        failed += usize::from(!sent.is_ok_and(|answer| answer.status == 200));
        tokio::time::sleep(PAUSE).await;
    }
    (longest, failed)
}

/// Shards of each owner.
async fn shares(ships: &Ships) -> Result<Vec<(String, i64)>> {
    let client = ships.database.connect().await?;
    let sql = "SELECT owner, count(*) FROM shards GROUP BY owner ORDER BY owner";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Waits until these own about the same number of shards, and nobody else owns any.
async fn until_shared(ships: &Ships, owners: &[&str]) -> Result<Duration> {
    let started = Instant::now();
    loop {
        let shares = shares(ships).await?;
        let counts = shares.iter().map(|(_, count)| *count);
        let spread = counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0);
        if spread <= 1 && shares.iter().map(|(owner, _)| owner).eq(owners) {
            return Ok(started.elapsed());
        }
        tokio::time::sleep(GLANCE).await;
    }
}

fn ms(took: Duration) -> String {
    format!("{:.0} ms", took.as_secs_f64() * 1e3)
}

async fn persister_killed(ships: &mut Ships, people: &[(User, String)]) -> Result<()> {
    let load = Load::start(people).await;
    ships.fleet.instance(PERSISTERS[0]).kill9()?;
    let taken = until_shared(ships, &PERSISTERS[1..]).await?;
    load.say("a persister is killed", &format!("its shards were taken after {}", ms(taken))).await;
    returns(ships, people, "it starts again").await
}

async fn persister_stopped(ships: &mut Ships, people: &[(User, String)]) -> Result<()> {
    let load = Load::start(people).await;
    let started = Instant::now();
    ships.fleet.instance(PERSISTERS[0]).sigterm().await?;
    let ended = started.elapsed();
    until_shared(ships, &PERSISTERS[1..]).await?;
    load.say("a persister is stopped", &format!("it had ended after {}", ms(ended))).await;
    returns(ships, people, "it starts again").await
}

/// The first persister starts again, and has its share.
async fn returns(ships: &mut Ships, people: &[(User, String)], what: &str) -> Result<()> {
    let load = Load::start(people).await;
    let started = Instant::now();
    ships.fleet.launch().await?;
    until_shared(ships, &PERSISTERS).await?;
    let also = format!("it had its share {} after its start", ms(started.elapsed()));
    load.say(what, &also).await;
    Ok(())
}

async fn main_killed(ships: &mut Ships, people: &[(User, String)]) -> Result<()> {
    let load = Load::start(people).await;
    ships.fleet.instance("main").kill9()?;
    let started = Instant::now();
    people[0].0.sync().await.ok();
    let synced = started.elapsed();
    tokio::time::sleep(AWAY).await;
    load.say("main is killed", &format!("a first sync meanwhile took {}", ms(synced))).await;
    let started = Instant::now();
    ships.fleet.launch().await?;
    say(format_args!("  main is healthy {} after its start", ms(started.elapsed())));
    Ok(())
}

/// An instance that runs already becomes a persister, and is none after that.
async fn persister_added(ships: &mut Ships, people: &[(User, String)]) -> Result<()> {
    let three = ["persister1", "persister2", "stream1"];
    for (what, owners) in [("a persister is added", &three[..]), ("it is removed", &three[..2])] {
        let load = Load::start(people).await;
        ships.fleet.set_persisters(owners)?;
        signal(ships.pid("stream1")?, "HUP")?;
        let took = until_shared(ships, owners).await?;
        load.say(what, &format!("the shards had moved after {}", ms(took))).await;
    }
    Ok(())
}

async fn redis_away(ships: &mut Ships, people: &[(User, String)]) -> Result<()> {
    let (alice, _) = &people[0];
    let bob = User::register(&ships.at("sync2"), "bob").await;
    let room = &alice.create_room().member(&bob).await;
    let mut feed = bob.feed().await;
    let there = deliveries(alice, room, &mut feed).await;

    let load = Load::start(people).await;
    ships.fleet.redis().kill9();
    let away = deliveries(alice, room, &mut feed).await;
    let also = format!("a message reached a sync after {}, before that {}", ms(away), ms(there));
    load.say("redis is away", &also).await;

    let load = Load::start(people).await;
    let started = Instant::now();
    ships.fleet.redis().restart().await;
    while !is_connected(ships).await? {
        tokio::time::sleep(GLANCE).await;
    }
    let back = started.elapsed();
    let again = deliveries(alice, room, &mut feed).await;
    let also = format!("all listen to it after {}; a sync: {} again", ms(back), ms(again));
    load.say("redis is back", &also).await;
    Ok(())
}

/// The median time from a send until the message is in the answer of a sync elsewhere.
async fn deliveries(alice: &User, room: &str, feed: &mut Feed) -> Duration {
    let mut took = Vec::new();
    for _ in 0..9 {
        let started = Instant::now();
        let event = alice.send(room, "can you hear me?").await;
        feed.until_event(room, &event).await;
        took.push(started.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

async fn is_connected(ships: &mut Ships) -> Result<bool> {
    let names: Vec<_> =
        ships.fleet.instances().iter().map(|process| process.name().to_owned()).collect();
    for name in names {
        if ships.metric(&name, "chatd_bus_connected").await? < 1.0 {
            return Ok(false);
        }
    }
    Ok(true)
}
