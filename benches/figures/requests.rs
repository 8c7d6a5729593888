//! Requests of many clients at a time.

use std::time::Instant;

use anyhow::Result;
use chatd_kit::{Cost, User, say};
use futures::future::join_all;

use crate::{Bench, CLIENTS};

const SENDS: usize = 1000;
const SYNCS: usize = 2000;
const DELIVERIES: usize = 500;
/// Before anything is counted: caches fill, statements are prepared.
const WARM_UP: usize = 50;

/// The clients, and a room that they are all in.
async fn people(bench: &Bench) -> (Vec<User>, String) {
    let host = bench.server.user("host").await;
    let room = host.public_room().await;
    let mut users = Vec::new();
    for number in 0..CLIENTS {
        let user = bench.server.user(&format!("user{number}")).await;
        user.join(&room).await.ok();
        users.push(user);
    }
    (users, room)
}

async fn send_all(users: &[User], rooms: &[String], each: usize) {
    let sending = users.iter().zip(rooms).map(async |(user, room)| {
        for number in 0..each {
            user.send(room, &format!("message {number} of a conversation like any other")).await;
        }
    });
    join_all(sending).await;
}

/// Messages to one room, and to a room for each client.
pub async fn send() -> Result<()> {
    let mut bench = Bench::start().await?;
    let (users, room) = people(&bench).await;
    let one = vec![room; CLIENTS];
    let own = join_all(users.iter().map(async |user| user.create_room().await)).await;
    for (what, rooms) in [("one room", one), ("a room each", own)] {
        send_all(&users, &rooms, WARM_UP).await;
        let cost = users[0].send_text(&rooms[0], "one alone").await.cost();
        let before = bench.used().await?;
        let started = Instant::now();
        send_all(&users, &rooms, SENDS).await;
        let seconds = started.elapsed().as_secs_f64();
        let count = SENDS * CLIENTS;
        let what = format!("send, {CLIENTS} clients in {what}");
        bench.used().await?.say_each(&what, before, count, seconds);
        say_own(&what, cost);
    }
    Ok(())
}

/// Syncs without news, and messages that reach syncs which wait for them.
pub async fn sync() -> Result<()> {
    let mut bench = Bench::start().await?;
    let (users, room) = people(&bench).await;
    let mut tokens = Vec::new();
    for user in &users {
        let first = user.sync().await.next_batch();
        tokens.push(user.sync().since(&first).await.next_batch());
    }
    let empty = async |each: usize| {
        let syncing = users.iter().zip(&tokens).map(async |(user, token)| {
            for _ in 0..each {
                user.get("/sync").query("since", token).query("timeout", 0).await.ok();
            }
        });
        join_all(syncing).await;
    };
    empty(WARM_UP).await;
    let cost = users[0].get("/sync").query("since", &tokens[0]).query("timeout", 0).await.cost();
    let before = bench.used().await?;
    let started = Instant::now();
    empty(SYNCS).await;
    let seconds = started.elapsed().as_secs_f64();
    let what = format!("empty sync, {CLIENTS} clients");
    bench.used().await?.say_each(&what, before, SYNCS * CLIENTS, seconds);
    say_own(&what, cost);

    deliver(&mut bench, &users, &room).await
}

/// One message at a time, and each of the clients waits for it.
async fn deliver(bench: &mut Bench, users: &[User], room: &str) -> Result<()> {
    let host = bench.server.login("host").await;
    let mut feeds = Vec::new();
    for user in users {
        feeds.push(user.sync().await.next_batch());
    }
    let before = bench.used().await?;
    let started = Instant::now();
    for number in 0..DELIVERIES {
        let waiting: Vec<_> = users
            .iter()
            .zip(&feeds)
            .map(|(user, since)| {
                user.get("/sync").query("since", since).query("timeout", 30_000).start()
            })
            .collect();
        host.send(room, &format!("message {number} of a conversation like any other")).await;
        for (since, waiting) in feeds.iter_mut().zip(waiting) {
            *since = waiting.await.string("next_batch");
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let what = format!("a message that reaches {CLIENTS} waiting syncs, for each of them");
    bench.used().await?.say_each(&what, before, DELIVERIES * CLIENTS, seconds);
    Ok(())
}

fn say_own(what: &str, cost: Cost) {
    say(format_args!("{what}: {} round trips outside the shared commit", cost.round_trips));
}
