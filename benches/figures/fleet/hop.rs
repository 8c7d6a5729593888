//! What it costs that a request is carried once. Requests that are answered where they arrive and
//! such that are carried take turns, so that the machine is the same to both.

use std::time::Instant;

use anyhow::Result;
use chatd_kit::{Request, User, path, say};
use futures::future::join_all;
use serde_json::json;

use super::{Ships, percentile};
use crate::{CLIENTS, meter::float};

/// Requests in one turn, and turns.
const TURN: usize = 100;
const TURNS: usize = 6;

/// What some requests took.
#[derive(Default)]
struct Took {
    /// Of each, one after the other, in ms.
    alone: Vec<f64>,
    /// Seconds of all, of many clients at a time.
    together: f64,
    together_cpu_ms: f64,
    together_count: usize,
}

/// Sends, and reads that only one instance answers, there and elsewhere.
pub async fn measure() -> Result<()> {
    let mut ships = Ships::start().await?;
    let host = User::register(&ships.at("main"), "host").await;
    let room = host.public_room().await;
    let mut users = Vec::new();
    for number in 0..CLIENTS {
        let user = User::register(&ships.at("main"), &format!("user{number}")).await;
        user.join(&room).await.ok();
        users.push(user);
    }
    let (owner, other) = ships.owner_of(&host, &room).await?;
    let text = "one of a conversation like any other";
    compare(&mut ships, "send", &users, [owner, other], |user| user.send_text(&room, text)).await?;
    let set =
        |user: &User| user.set_account_data("org.example.setting", &json!({"value": "anything"}));
    compare(&mut ships, "set account data", &users, ["stream1", "sync1"], set).await?;
    let read = |user: &User| user.get(path("/presence/{}/status", &[&user.id]));
    compare(&mut ships, "read presence", &users, ["stream2", "sync1"], read).await
}

/// The first of `instances` answers itself, the second one carries.
async fn compare(
    ships: &mut Ships,
    what: &str,
    users: &[User],
    instances: [&'static str; 2],
    request: impl Fn(&User) -> Request,
) -> Result<()> {
    let clients =
        instances.map(|name| users.iter().map(|user| user.at(&ships.at(name))).collect::<Vec<_>>());
    let mut took = [Took::default(), Took::default()];
    // The first turn fills caches and opens connections.
    for turn in 0..=TURNS {
        one_after_the_other(&mut took, &clients, &request).await;
        for (took, users) in took.iter_mut().zip(&clients) {
            all_together(ships, took, users, &request).await?;
        }
        if turn == 0 {
            took = Default::default();
        }
    }
    for (took, how) in took.iter_mut().zip(["where it arrives", "carried once"]) {
        let together = float(took.together_count);
        say(format_args!(
            "{what}, {how}: p50 {:.2} ms, p99 {:.2} ms; {CLIENTS} clients: {:.0} a second, {:.3} ms \
             of CPU",
            percentile(&mut took.alone, 0.5),
            percentile(&mut took.alone, 0.99),
            together / took.together,
            took.together_cpu_ms / together,
        ));
    }
    Ok(())
}

/// One client. The two kinds alternate.
async fn one_after_the_other(
    took: &mut [Took; 2],
    clients: &[Vec<User>; 2],
    request: impl Fn(&User) -> Request,
) {
    for _ in 0..TURN {
        for (took, users) in took.iter_mut().zip(clients) {
            let started = Instant::now();
            request(&users[0]).unchecked().await.ok();
            took.alone.push(started.elapsed().as_secs_f64() * 1000.0);
        }
    }
}

/// All clients at a time.
async fn all_together(
    ships: &mut Ships,
    took: &mut Took,
    users: &[User],
    request: impl Fn(&User) -> Request,
) -> Result<()> {
    let before = ships.cpu_ms()?;
    let started = Instant::now();
    join_all(users.iter().map(async |user| {
        for _ in 0..TURN {
            request(user).unchecked().await.ok();
        }
    }))
    .await;
    took.together += started.elapsed().as_secs_f64();
    took.together_cpu_ms += ships.cpu_ms()? - before;
    took.together_count += TURN * users.len();
    Ok(())
}
