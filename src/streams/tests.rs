//! Several instances on one real PostgreSQL: who owns which rooms, and what becomes of writers
//! that stand still or die.

mod append;
mod feed;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use chatd_base::{Position, ShardId, Stop};
use chatd_config::StreamName;
use chatd_kit::{
    Database,
    cluster::{Cluster, USER},
};
use chatd_storage::{
    Batch, ConnectSettings, Pool,
    instances::Card,
    migrate,
    notices::Notices,
    positions::{self, EVENTS},
    shards,
};

use crate::{
    Frame, Leases, Line, Owners, Roster, StreamToken, Streams,
    bus::{Bus, Encode},
    events::Events,
};

/// A bus that loses everything.
struct Deaf;

impl Bus for Deaf {
    fn state(&self) -> Option<crate::bus::BusState> {
        None
    }

    fn publish(&self, _stream: &'static str, _frame: &dyn Encode) {}

    fn listen(&self, _streams: &Arc<Streams>, _stop: &Stop) {}

    fn patience(&self) -> Option<Duration> {
        Some(Duration::from_millis(100))
    }

    fn is_calm(&self) -> bool {
        false
    }
}

async fn database() -> (Database, Pool) {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let folder = database.cluster().socket_folder().to_owned();
    let pool = Pool::open(&ConnectSettings::on_socket(folder, USER, database.name(), 8)).unwrap();
    migrate(&pool).await.unwrap();
    (database, pool)
}

/// One instance.
struct Member {
    owners: Arc<Owners>,
    roster: Arc<Roster>,
    stop: Stop,
}

impl Member {
    /// An instance that has joined and does not beat yet.
    async fn silent(pool: &Pool, name: &str, owns_rooms: bool) -> Self {
        let stop = Stop::new();
        let written = BTreeSet::from([StreamName::Events]);
        let streams = Streams::open(pool, Arc::new(Deaf), name, &written, &stop).await.unwrap();
        let streams = Arc::new(streams);
        let owners = Arc::new(Owners::open(pool, name, false).await.unwrap());
        let notices = Notices::new(streams.writer.writer, true);
        notices.listen(pool, &stop);
        let card = Card {
            name: name.to_owned(),
            role: "generic_worker".to_owned(),
            seat: streams.writer,
            owns_rooms,
            address: None,
        };
        let leases = Arc::new(Leases::new(Vec::new()));
        let joined = Roster::join(pool, card, &streams, &owners, &notices, &leases).await;
        let roster = joined.unwrap();
        Self { owners, roster, stop }
    }

    async fn start(pool: &Pool, name: &str, owns_rooms: bool) -> Self {
        let member = Self::silent(pool, name, owns_rooms).await;
        member.roster.start(&member.stop);
        member
    }

    fn has(&self, name: &str) -> usize {
        self.owners.shards().iter().filter(|shard| shard.owner == name).count()
    }

    /// Waits until this instance believes that `name` has `count` shards.
    async fn sees(&self, name: &str, count: usize) {
        let seen = async {
            while self.has(name) != count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let limit = Duration::from_secs(30);
        let in_time = tokio::time::timeout(limit, seen).await.is_ok();
        assert!(in_time, "{name} has {} shards, not {count}", self.has(name));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

#[tokio::test]
async fn shards_follow_those_who_are_there() {
    let (_database, pool) = database().await;
    let a = Member::start(&pool, "a", true).await;
    assert_eq!(a.has("a"), 64, "nobody else may own rooms");
    let reader = Member::start(&pool, "reader", false).await;
    assert_eq!(reader.has("a"), 64);
    let b = Member::start(&pool, "b", true).await;
    assert_eq!((b.has("a"), b.has("b")), (32, 32), "a new one takes its share at once");
    a.sees("b", 32).await;
    reader.sees("b", 32).await;
    let names: Vec<_> = b.roster.alive().iter().map(|one| one.name.clone()).collect();
    assert_eq!(names, ["a", "b", "reader"]);

    b.stop.trigger();
    a.sees("a", 64).await;
    reader.sees("a", 64).await;
}

#[tokio::test]
async fn the_dead_lose_their_shards() {
    let (_database, pool) = database().await;
    let a = Member::start(&pool, "a", true).await;
    Member::start(&pool, "b", true).await.stop.trigger();
    a.sees("a", 64).await;
    let b = Member::silent(&pool, "b", true).await;
    a.sees("b", 32).await;
    let mine = b.owners.shards().iter().find(|shard| shard.owner == "b").cloned().unwrap();
    a.sees("a", 64).await;
    // It wakes up, and still believes that the shard is its own.
    let mut batch = Batch::new();
    shards::fence(&mut batch, &[(mine.id, mine.epoch)]);
    assert!(pool.commit(batch).await.unwrap_err().is_fenced());
    b.roster.start(&b.stop);
    a.sees("b", 32).await;
    b.sees("b", 32).await;
    assert_eq!(b.has("a"), 32);
}

#[tokio::test]
async fn a_take_over_waits_for_commits_and_tells_of_what_is_lost() {
    let (database, pool) = database().await;
    let a = Member::start(&pool, "a", true).await;
    let (tell, mut told) = tokio::sync::mpsc::channel(64);
    a.owners.on_lost(move |lost| tell.try_send(lost.to_vec()).unwrap());
    // The upper half is what another one will take.
    let epoch = a.owners.shards()[63].epoch;
    let mut slow = database.connect().await.unwrap();
    let commit = slow.transaction().await.unwrap();
    let (ids, epochs) = (vec![63_i16], vec![epoch]);
    commit.query("SELECT chatd_fence($1, $2)", &[&ids, &epochs]).await.unwrap();
    let joining = chatd_kit::spawn({
        let pool = pool.clone();
        async move { Member::start(&pool, "b", true).await }
    });
    let waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let admin = database.connect().await.unwrap();
    while admin.query(waiting, &[]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!joining.is_finished());
    commit.commit().await.unwrap();
    let b = joining.await;
    assert_eq!(b.has("b"), 32);
    let lost = tokio::time::timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap();
    assert_eq!(lost, (32..64).map(ShardId).collect::<Vec<_>>());
}

/// A process that writes events, and hears nothing of the others but by their positions.
async fn writer(pool: &Pool, name: &str) -> (Arc<Streams>, Line<Events>) {
    let (written, stop) = (BTreeSet::from([StreamName::Events]), Stop::new());
    let streams = Streams::open(pool, Arc::new(Deaf), name, &written, &stop).await.unwrap();
    let line = Line::new(pool, &streams.events, streams.writer, &stop);
    (Arc::new(streams), line)
}

/// Commits a row that is a position only.
async fn commit(streams: &Streams, line: &Line<Events>) -> Position {
    let base = line
        .durable(|seat, after| {
            let mut batch = Batch::new();
            let begun = positions::begin(&mut batch, EVENTS, seat, after);
            positions::advance(&mut batch, EVENTS, seat.writer, 1);
            (batch, begun)
        })
        .await
        .unwrap();
    let writer = streams.writer.writer;
    let previous = streams.events.position_of(writer);
    streams.events.apply(&Frame { writer, previous, position: base, rows: Arc::new([]) });
    base
}

async fn look(streams: &Streams, pool: &Pool) {
    streams.skip_to(&positions::list(pool).await.unwrap());
}

#[tokio::test]
async fn an_idle_writer_follows_the_others() {
    let (_database, pool) = database().await;
    let (a, a_line) = writer(&pool, "a").await;
    let (b, b_line) = writer(&pool, "b").await;
    look(&a, &pool).await;
    let first = commit(&a, &a_line).await;
    assert_eq!(a.events.token().to_string(), format!("m0~{}.{first}", a.writer.writer));
    look(&b, &pool).await;
    b_line.catch_up().await;
    look(&a, &pool).await;
    for streams in [&a, &b] {
        assert_eq!(streams.events.token(), StreamToken::at(first), "short again");
    }
    let own = commit(&b, &b_line).await;
    assert!(own > first);
    assert_eq!(b.events.position_of(b.writer.writer), own);
}

#[tokio::test]
async fn a_writer_that_was_taken_for_dead_writes_on_behind_its_new_place() {
    let (_database, pool) = database().await;
    let (a, a_line) = writer(&pool, "a").await;
    let (b, b_line) = writer(&pool, "b").await;
    look(&a, &pool).await;
    let old = commit(&b, &b_line).await;
    let furthest = commit(&a, &a_line).await;
    look(&a, &pool).await;
    let who = a.left_behind(&[a.writer.writer]);
    assert_eq!(who, [(EVENTS.number, b.writer.writer)]);
    let steps = positions::catch_up(&pool, &who).await.unwrap();
    a.publish_steps(&steps);
    assert_eq!(a.events.token(), StreamToken::at(furthest));
    assert_eq!(b.events.position_of(b.writer.writer), old, "it does not know yet");
    // Its commit is refused at first, and is not taken for one that has happened.
    let own = commit(&b, &b_line).await;
    assert!(own > furthest);
    let standing = positions::fate(&pool, EVENTS, b.writer).await.unwrap();
    assert_eq!((standing.base, standing.position), (own, own));
}

#[tokio::test]
async fn a_new_writer_waits_until_it_is_known() {
    let (_database, pool) = database().await;
    let a = Member::silent(&pool, "a", true).await;
    let joining = chatd_kit::spawn({
        let pool = pool.clone();
        async move { Member::start(&pool, "b", true).await }
    });
    while !names(&pool).await.contains(&"b".to_owned()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!joining.is_finished(), "nobody has told it that it is known");
    a.roster.start(&a.stop);
    let b = joining.await;
    assert_eq!(b.has("b"), 32);
}

/// Names of all instances that have joined.
async fn names(pool: &Pool) -> Vec<String> {
    let census = chatd_storage::instances::list(pool).await.unwrap();
    census.instances.into_iter().map(|instance| instance.name).collect()
}
