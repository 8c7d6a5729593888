//! Processes are killed, paused and ended under load; a checker that knows every acknowledged
//! write and every delivery compares (R1 to R7).
//!
//! A run prints its seed, which decides when what is killed; `CHATD_FAULT_SEED` repeats it as far
//! as timing lets it. `CHATD_FAULT_ROUNDS` is how often something is killed in a run.

pub mod bus;
mod check;
pub mod device;
mod fleet;
mod load;
mod outage;
pub mod proxy;
mod seats;
mod shutdown;

use std::{path::Path, time::Duration};

use chatd_kit::{
    Database, Process, Settings, cluster, cluster::Cluster, eventually, process::signal, say,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use load::{Manners, World};

pub const BINARY: &str = env!("CARGO_BIN_EXE_chatd");

/// What is killed.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Chatd,
    /// Paused, and another process takes its place before it goes on.
    Replaced,
    Postgres,
    Backend,
}

/// Kills one of `faults` again and again under load, then checks. `postgres` carries out the
/// faults that are PostgreSQL's.
async fn rounds(
    database: &Value,
    faults: &[Fault],
    mut postgres: impl AsyncFnMut(&Process, Fault, Duration),
) {
    let mut process = start(database).await;
    let (rounds, mut random) = plan();
    let world = World::make(&process.url(), random.random(), Manners::MayBeAway).await;
    let load = world.start();
    for round in 0..rounds {
        // None at all: the next fault comes while what the last one broke is mended.
        world.until_sent(random.random_range(0..40)).await;
        let fault = faults[random.random_range(0..faults.len())];
        let away = Duration::from_millis(random.random_range(0..300));
        say(format!("round {round}: {fault:?}, {away:?}"));
        match fault {
            Fault::Chatd => {
                process.kill9().unwrap();
                tokio::time::sleep(away / 3).await;
                process.restart().await.unwrap();
            }
            Fault::Replaced => replace(&mut process, database, away).await,
            Fault::Postgres | Fault::Backend => postgres(&process, fault, away).await,
        }
    }
    // The last outage must be over before the load is asked to end.
    world.alice().get("/sync").query("timeout", 0).start().await;
    let devices = load.finish().await;
    check::all(&world, &devices).await;
}

/// How often something is killed, and what decides when and what.
pub fn plan() -> (u64, StdRng) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("CHATD_FAULT_SEED").unwrap_or_else(rand::random);
    let rounds = number("CHATD_FAULT_ROUNDS").unwrap_or(4);
    say(format!("CHATD_FAULT_SEED={seed} CHATD_FAULT_ROUNDS={rounds}"));
    (rounds, StdRng::seed_from_u64(seed))
}

/// Another process takes over while this one is paused under load; then this one comes back.
async fn replace(process: &mut Process, database: &Value, pause: Duration) {
    signal(process.pid().unwrap(), "STOP").unwrap();
    let mut second = start(database).await;
    tokio::time::sleep(pause).await;
    signal(process.pid().unwrap(), "CONT").unwrap();
    assert!(!process.ended().await.unwrap().success(), "{}", process.log());
    second.kill9().unwrap();
    process.restart().await.unwrap();
}

async fn start(database: &Value) -> Process {
    Process::start(Path::new(BINARY), &Settings::new(), database).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_chatd_is_killed() {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let faults = [Fault::Chatd, Fault::Chatd, Fault::Replaced];
    rounds(&database.config(), &faults, async |_, _, _| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_postgresql_is_killed() {
    let folder = tempfile::Builder::new().prefix("chatd-pg-").tempdir().unwrap();
    let cluster = Cluster::private(folder.path()).unwrap();
    let database = Database::empty(cluster.clone()).await.unwrap();
    let faults = [Fault::Chatd, Fault::Postgres, Fault::Postgres, Fault::Backend];
    let kill = async |_: &Process, fault, away| match fault {
        Fault::Backend => cluster.kill9_one_backend().unwrap(),
        _ => {
            cluster.kill9().unwrap();
            tokio::time::sleep(away).await;
            cluster.restart().unwrap();
        }
    };
    rounds(&database.config(), &faults, kill).await;
    cluster.kill9().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_chatd_and_its_own_postgresql_are_killed() {
    let kill = async |process: &Process, _, _| {
        let data = process.folder().join("data/postgres");
        // After the fault before, chatd may not have started it again yet.
        let kill = async || cluster::kill9(&data).map_err(|error| format!("{error:#}"));
        eventually("chatd's own PostgreSQL is killed", kill).await;
    };
    rounds(&json!({"name": "embedded"}), &[Fault::Chatd, Fault::Postgres], kill).await;
}
