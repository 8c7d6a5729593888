//! chatd and Synapse beside each other, as another server meets them: the same work, one after the
//! other, in one run. chatd's figures include its PostgreSQL; Synapse keeps its tables in SQLite,
//! in its own process.

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use chatd_kit::{
    Other, Settings, Synapse, User,
    other::{Pdu, Peer, Room},
    path, say,
};
use futures::{StreamExt, stream};
use serde_json::json;

use crate::{Bench, meter};

/// Members of the large room.
const MEMBERS: usize = 10_000;
/// Events that come in, and how many of them one transaction has.
const PDUS: usize = 2_000;
const IN_A_TRANSACTION: usize = 50;
/// Rooms that they are spread over.
const ROOMS: usize = 100;
/// Events that one state is made of.
const FORKS: usize = 20;
/// Events that wait for a server which was away, in [`ROOMS`] rooms.
const MISSED: usize = 10_000;
/// What was said in a room before a server came.
const HISTORY: usize = 10_000;
/// Events that a client asks for at a time when it reads back.
const PAGE: usize = 100;
/// Clients' requests at a time.
const AT_A_TIME: usize = 16;

const VERSION: &str = "11";

/// A server that is measured.
struct Subject {
    name: &'static str,
    home: Home,
    peer: Peer,
    user: User,
}

enum Home {
    Chatd(Box<Bench>),
    Synapse(Box<Synapse>),
}

/// Measures how both take in what others send.
pub async fn measure() -> Result<()> {
    for mut subject in [Subject::chatd().await?, Subject::synapse().await] {
        let other = Other::start().await;
        let bob = other.user("bob");
        let large = subject.joins(&other, &bob).await?;
        subject.takes_in(&other, &bob, 1).await?;
        subject.takes_in(&other, &bob, ROOMS).await?;
        subject.resolves(&other, &bob, &large).await?;
        subject.joins_without_members().await?;
    }
    Ok(())
}

/// Measures how both tell and learn what is past.
pub async fn measure_past() -> Result<()> {
    for mut subject in [Subject::chatd().await?, Subject::synapse().await] {
        let other = Other::start().await;
        let bob = other.user("bob");
        subject.reads_back(&other, &bob).await?;
        subject.catches_up(&other, &bob).await?;
    }
    Ok(())
}

/// A room of another server in which many of its users are.
fn large_room(other: &Other, bob: &str) -> Room {
    let room = other.create_room(VERSION, bob);
    for number in 0..MEMBERS {
        let member = other.user(&format!("member{number}"));
        room.set(&member, "m.room.member", &member, json!({"membership": "join"}));
    }
    room
}

impl Subject {
    async fn chatd() -> Result<Self> {
        let bench = Bench::with(Settings::federating()).await?;
        let (peer, user) = (bench.server.peer(), bench.server.user("alice").await);
        Ok(Self { name: "chatd", home: Home::Chatd(Box::new(bench)), peer, user })
    }

    async fn synapse() -> Self {
        let synapse = Synapse::start().await;
        let (peer, user) = (synapse.peer(), synapse.user("alice").await);
        Self { name: "Synapse", home: Home::Synapse(Box::new(synapse)), peer, user }
    }

    fn pid(&mut self) -> Result<u32> {
        let process = match &mut self.home {
            Home::Chatd(bench) => bench.server.process(),
            Home::Synapse(synapse) => synapse.process(),
        };
        process.pid().context("it runs")
    }

    fn cpu_ms(&mut self) -> Result<f64> {
        let own = meter::cpu_ms(self.pid()?)?;
        Ok(match &self.home {
            Home::Chatd(bench) => own + meter::postgres_ms(&bench.postgres)?,
            Home::Synapse(_) => own,
        })
    }

    /// Says what `work`, which is `count` of something, has cost.
    async fn costs(
        &mut self,
        what: &str,
        count: usize,
        work: impl AsyncFnOnce(&Self),
    ) -> Result<()> {
        let pid = self.pid()?;
        // From now on the most that was in memory is counted anew.
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        let (before, started) = (self.cpu_ms()?, Instant::now());
        work(self).await;
        let seconds = started.elapsed().as_secs_f64();
        let ms = self.cpu_ms()? - before;
        let most = meter::most_mb(pid)?;
        let count = meter::float(count);
        say(format_args!(
            "{what}, {}: {seconds:.2} s, {:.0} ms of CPU ({:.3} each), at most {most:.0} MB",
            self.name,
            ms,
            ms / count
        ));
        Ok(())
    }

    /// A user comes into a large room of another server.
    async fn joins(&mut self, other: &Other, bob: &str) -> Result<Room> {
        let room = large_room(other, bob);
        let id = room.id();
        let what = format!("join of a room with {MEMBERS} members");
        self.costs(&what, MEMBERS, async |subject| {
            subject.user.join_via(&id, &other.name()).await.ok();
        })
        .await?;
        Ok(room)
    }

    /// The same where the members are told afterwards.
    async fn joins_without_members(&mut self) -> Result<()> {
        let other = Other::start().await;
        other.omit_members();
        let id = large_room(&other, &other.user("bob")).id();
        let what = format!("join of a room without its {MEMBERS} members");
        self.costs(&what, MEMBERS, async |subject| {
            subject.user.join_via(&id, &other.name()).await.ok();
        })
        .await?;
        self.costs("until they are known", MEMBERS, async |subject| {
            subject.user.get(path("/rooms/{}/joined_members", &[&id])).await.ok();
        })
        .await
    }

    /// Events of another server come into `rooms` rooms.
    async fn takes_in(&mut self, other: &Other, bob: &str, rooms: usize) -> Result<()> {
        let rooms: Vec<Room> = (0..rooms).map(|_| other.create_room(VERSION, bob)).collect();
        for room in &rooms {
            self.user.join_via(&room.id(), &other.name()).await.ok();
        }
        let pdus: Vec<Pdu> = (0..PDUS)
            .map(|number| rooms[number % rooms.len()].say(bob, &format!("message {number}")))
            .collect();
        let last = &pdus[PDUS - rooms.len()..];
        let what = format!("{PDUS} events into {} rooms", rooms.len());
        self.costs(&what, PDUS, async |subject| {
            for some in pdus.chunks(IN_A_TRANSACTION) {
                other.deliver(&subject.peer, some).await;
            }
            for pdu in last {
                subject.until_there(pdu).await;
            }
        })
        .await
    }

    /// The state of a large room comes together again from many branches.
    async fn resolves(&mut self, other: &Other, bob: &str, room: &Room) -> Result<()> {
        let heads = room.heads();
        let forks: Vec<Pdu> = (0..FORKS)
            .map(|number| {
                let topic = json!({"topic": format!("topic {number}")});
                room.draft(bob, "m.room.topic", topic).state("").after(&heads).add()
            })
            .collect();
        let last = room.say(bob, "together again");
        let what = format!("state of {MEMBERS} members out of {FORKS} branches");
        self.costs(&what, FORKS, async |subject| {
            other.deliver(&subject.peer, &forks).await;
            other.deliver(&subject.peer, std::slice::from_ref(&last)).await;
            subject.until_there(&last).await;
        })
        .await
    }

    /// A user reads what was said in a room before this server came.
    async fn reads_back(&mut self, other: &Other, bob: &str) -> Result<()> {
        let room = other.create_room(VERSION, bob);
        for number in 0..HISTORY {
            room.say(bob, &format!("message {number}"));
        }
        let id = room.id();
        self.user.join_via(&id, &other.name()).await.ok();
        let mut read = 0;
        let what = format!("reading back {HISTORY} events from before the join");
        self.costs(&what, HISTORY, async |subject| {
            let mut from: Option<String> = None;
            loop {
                let page = subject.user.messages(&id, "b").query("limit", PAGE);
                let page = match &from {
                    Some(from) => page.query("from", from).await,
                    None => page.await,
                };
                let page = page.ok();
                read += page["chunk"].as_array().map_or(0, Vec::len);
                from = page["end"].as_str().map(str::to_owned);
                if from.is_none() {
                    return;
                }
            }
        })
        .await?;
        say(format_args!("  {}: {read} events were read", self.name));
        Ok(())
    }

    /// A server that was away gets what it has missed.
    async fn catches_up(&mut self, other: &Other, bob: &str) -> Result<()> {
        let rooms: Vec<String> = (0..ROOMS).map(|_| other.create_room(VERSION, bob).id()).collect();
        for room in &rooms {
            self.user.join_via(room, &other.name()).await.ok();
        }
        self.user.send(&rooms[0], "before").await;
        other.until_pdu("the first word", |pdu| pdu["content"]["body"] == "before").await;
        other.go_away();
        for some in (0..MISSED).collect::<Vec<_>>().chunks(ROOMS) {
            let user = &self.user;
            let sends = some.iter().zip(&rooms).map(|(number, room)| async move {
                user.send(room, &format!("missed {number}")).await
            });
            stream::iter(sends).buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await;
        }
        other.come_back().await;
        let what = format!("{MISSED} events in {ROOMS} rooms that a server has missed");
        self.costs(&what, MISSED, async |subject| {
            // A sign of life.
            other.send(&subject.peer, &[], &[]).await.ok();
            for number in MISSED - ROOMS..MISSED {
                let last = format!("missed {number}");
                other.until_pdu(&last, |pdu| pdu["content"]["body"] == *last).await;
            }
        })
        .await?;
        let (mut events, mut transactions) = (0, 0);
        for seen in other.seen("PUT", "/_matrix/federation/v1/send/") {
            let some = seen.body["pdus"].as_array().map_or(0, Vec::len);
            events += some;
            transactions += usize::from(some > 0);
        }
        say(format_args!("  {}: {events} events in {transactions} transactions", self.name));
        Ok(())
    }

    /// Waits until the user can read an event.
    async fn until_there(&self, pdu: &Pdu) {
        let url = path("/rooms/{}/event/{}", &[pdu.text("room_id"), &pdu.id]);
        while self.user.get(url.clone()).unchecked().await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}
