//! A fleet under load whose instances, bus and database are killed, paused and cut one after the
//! other: what must hold is the same as for one process.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use chatd_kit::{Database, Fleet, Settings, Spread, cluster::Cluster, process::signal, say};
use rand::{Rng, rngs::StdRng};

use super::{
    BINARY,
    bus::BadBus,
    check,
    load::{Manners, World},
    plan,
};

/// What is done to a fleet.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// An instance is killed and starts again.
    Kill(&'static str),
    /// An instance is paused until the others take it for dead and have its rooms, and goes on after
    /// that.
    Pause(&'static str),
    /// An instance is asked to end, and starts again: what a rolling update does.
    Restart(&'static str),
    /// Redis is killed, and is away for some time.
    Redis,
    /// PostgreSQL is killed, and is away for some time.
    Postgres,
}

/// Messages between one change of a fleet and the next.
const A_WHILE: usize = 100;

/// Faults until all have happened that `faults` lists, in its order.
async fn suffer(
    fleet: &mut Fleet,
    cluster: &Cluster,
    world: &World,
    faults: &[Fault],
    random: &mut StdRng,
) {
    for fault in faults {
        let away = Duration::from_millis(random.random_range(0..1_500));
        say(format!("{fault:?}, {away:?}"));
        match *fault {
            Fault::Kill(name) => {
                fleet.instance(name).kill9().unwrap();
                tokio::time::sleep(away).await;
                fleet.launch().await.unwrap();
            }
            Fault::Pause(name) => {
                let pid = fleet.instance(name).pid().unwrap();
                signal(pid, "STOP").unwrap();
                fleet.until_given_up(name).await.unwrap();
                signal(pid, "CONT").unwrap();
            }
            Fault::Restart(name) => {
                assert!(fleet.instance(name).sigterm().await.unwrap().success());
                fleet.launch().await.unwrap();
            }
            Fault::Redis => {
                fleet.redis().kill9();
                tokio::time::sleep(away).await;
                fleet.redis().restart().await;
            }
            Fault::Postgres => {
                cluster.kill9().unwrap();
                tokio::time::sleep(away / 3).await;
                cluster.restart().unwrap();
            }
        }
        world.until_sent(random.random_range(20..200)).await;
    }
}

/// Load on a fleet behind its generated proxy configuration while `faults` happen, then the check.
async fn survives(faults: &[Fault]) {
    survives_with(faults, Settings::new(), |_, _| {}).await;
}

/// The same with `settings`; `prepare` is called when the fleet runs.
async fn survives_with(
    faults: &[Fault],
    settings: Settings,
    prepare: impl FnOnce(&mut Fleet, u64),
) {
    let folder = tempfile::Builder::new().prefix("chatd-pg-").tempdir().unwrap();
    let cluster = Cluster::private(folder.path()).unwrap();
    let database = Database::empty(cluster.clone()).await.unwrap();
    let (_, mut random) = plan();
    let mut fleet =
        Fleet::start(Path::new(BINARY), &settings, &database.config(), Spread::Generated)
            .await
            .unwrap();
    prepare(&mut fleet, random.random());
    let world = World::make(&fleet.url(), random.random(), Manners::BehindProxy).await;
    let load = world.start();
    suffer(&mut fleet, &cluster, &world, faults, &mut random).await;
    let healing = Instant::now();
    world.until_answered(|| world.alice().get("/sync").query("timeout", 0)).await.ok();
    let devices = load.finish().await;
    say(format!("everything had come after {:?}", healing.elapsed()));
    check::all(&world, &devices).await;
    drop(fleet);
    cluster.kill9().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_an_instance_is_killed() {
    survives(&[
        Fault::Kill("persister1"),
        Fault::Kill("stream1"),
        Fault::Kill("sync1"),
        Fault::Kill("stream2"),
        Fault::Kill("main"),
        Fault::Kill("persister2"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_an_instance_is_paused() {
    survives(&[Fault::Pause("persister1"), Fault::Pause("stream1")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_redis_or_postgresql_is_killed() {
    survives(&[Fault::Redis, Fault::Postgres, Fault::Redis]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_restarted_one_after_the_other() {
    survives(&[
        Fault::Restart("persister1"),
        Fault::Restart("persister2"),
        Fault::Restart("stream1"),
        Fault::Restart("sync2"),
        Fault::Restart("main"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_bus_loses_messages() {
    let mut bus = BadBus::new();
    let settings = bus.settings();
    let spoil = |fleet: &mut Fleet, seed| bus.start(fleet, seed);
    let faults = [Fault::Kill("sync1"), Fault::Kill("persister1"), Fault::Redis];
    survives_with(&faults, settings, spoil).await;
}

/// Nobody but those whose duty changes is told, and no client notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn persisters_come_and_go_without_a_failed_request() {
    let binary = Path::new(BINARY);
    let database = Database::create(binary).await.unwrap();
    let (_, mut random) = plan();
    let settings = Settings::new();
    let mut fleet =
        Fleet::start(binary, &settings, &database.config(), Spread::Generated).await.unwrap();
    let world = World::make(&fleet.url(), random.random(), Manners::Flawless).await;
    let load = world.start();

    // A new one comes and takes its share.
    world.until_sent(A_WHILE).await;
    fleet.set_persisters(&["persister1", "persister2", "persister3"]).unwrap();
    let moment = Instant::now();
    fleet.add("persister3").await.unwrap();
    fleet.until_owned("persister3", 21).await.unwrap();
    say(format!("a third persister had its share after {:?}", moment.elapsed()));
    world.until_sent(A_WHILE).await;

    // It is asked to end.
    let moment = Instant::now();
    assert!(fleet.instance("persister3").sigterm().await.unwrap().success());
    fleet.until_owned("persister1", 32).await.unwrap();
    fleet.until_owned("persister2", 32).await.unwrap();
    say(format!("the others had its rooms after {:?}", moment.elapsed()));
    world.until_sent(A_WHILE).await;

    // Another one is told that it is none any more, and then that it is one again.
    for (names, count) in [(&["persister1"][..], 0), (&["persister1", "persister2"], 32)] {
        fleet.set_persisters(names).unwrap();
        let moment = Instant::now();
        signal(fleet.instance("persister2").pid().unwrap(), "HUP").unwrap();
        fleet.until_owned("persister2", count).await.unwrap();
        fleet.until_owned("persister1", 64 - count).await.unwrap();
        say(format!("persister2 owned {count} shards after {:?}", moment.elapsed()));
        world.until_sent(A_WHILE).await;
    }
    let devices = load.finish().await;
    check::all(&world, &devices).await;
}
