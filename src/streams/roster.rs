//! An instance among others: it beats, sees who else does, and takes the shards that should be
//! its own.
//!
//! Nobody gives shards away. Each live candidate works out the same map ([`share`]) and takes its
//! part of it: from those that are dead, and from those that have more than their share. Raising
//! the epoch waits for commits that are under way and fences later ones (R6).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use chatd_base::{Position, Result, ShardId, Stop, WriterId, tasks};
use chatd_storage::{
    Pool,
    instances::{self, Card, Census, Instance},
    leases::{self, Lease},
    notices::{Heard, Notice, Notices},
    positions,
};
use parking_lot::RwLock;
use tokio::sync::Notify;

use crate::{Owners, Stream, Streams, events::Events, leases::Leases, share};

/// How often an instance beats.
const BEAT: Duration = Duration::from_secs(2);
/// Silence after which an instance counts as dead.
const DEAD: Duration = Duration::from_secs(7);
/// Least time between two looks that notices ask for.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks of one that waits to be known.
const GLANCE: Duration = Duration::from_millis(20);
/// How long a new writer waits for those who do not know it.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// Who is in the fleet, as this instance sees it, and its own place there.
pub struct Roster {
    pool: Pool,
    card: Card,
    /// Whether this instance is to own rooms; what its card says may be older.
    owns_rooms: AtomicBool,
    streams: Arc<Streams>,
    owners: Arc<Owners>,
    notices: Arc<Notices>,
    leases: Arc<Leases>,
    /// When the last census that was taken in had been read.
    knows_us: AtomicI64,
    alive: RwLock<Arc<[Instance]>>,
    look: Arc<Notify>,
}

impl Roster {
    /// Joins the fleet. On return this instance owns its share of the rooms, if it is to own any,
    /// so it must be able to take requests.
    pub async fn join(
        pool: &Pool,
        card: Card,
        streams: &Arc<Streams>,
        owners: &Arc<Owners>,
        notices: &Arc<Notices>,
        leases: &Arc<Leases>,
    ) -> Result<Arc<Self>> {
        let look: Arc<Notify> = Arc::default();
        let heard = look.clone();
        notices.on_heard(move |told| {
            if matches!(told, Heard::Notice(Notice::Fleet) | Heard::Missed) {
                heard.notify_one();
            }
        });
        let roster = Arc::new(Self {
            pool: pool.clone(),
            owns_rooms: AtomicBool::new(card.owns_rooms),
            card,
            streams: streams.clone(),
            owners: owners.clone(),
            knows_us: AtomicI64::new(0),
            notices: notices.clone(),
            leases: leases.clone(),
            alive: RwLock::new(Arc::new([])),
            look,
        });
        let mut read_at = Instant::now();
        let mut census = instances::join(&roster.pool, &roster.card(), &roster.notices).await?;
        if streams.is_new {
            roster.introduce(census.read_us).await?;
            read_at = Instant::now();
            census = instances::list(&roster.pool).await?;
        }
        roster.take_in(census, read_at).await?;
        Ok(roster)
    }

    /// Waits until everybody who is alive knows this instance as a writer. A token that does not
    /// name a writer covers its rows below the others' positions, so it may not write earlier.
    /// Meanwhile it takes note of others that are as new.
    async fn introduce(&self, since_us: i64) -> Result<()> {
        let until = Instant::now() + INTRODUCTION;
        loop {
            let knows_us = self.knows_us.load(Ordering::Relaxed);
            let census = instances::beat(&self.pool, &self.card(), knows_us).await?;
            self.streams.skip_to(&census.positions);
            self.streams.retire(&census.retired);
            self.knows_us.fetch_max(census.read_us, Ordering::Relaxed);
            let is_ignorant = |one: &&Instance| {
                one.name != self.card.name && one.silence < DEAD && one.knows_us < since_us
            };
            let ignorant: Vec<_> =
                census.instances.iter().filter(is_ignorant).map(|one| &one.name).collect();
            if ignorant.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                tracing::warn!(?ignorant, "some instances do not hear that there is a new one");
                return Ok(());
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// What this instance says of itself at the moment.
    fn card(&self) -> Card {
        let owns_rooms = self.owns_rooms.load(Ordering::Relaxed);
        Card { owns_rooms, ..self.card.clone() }
    }

    /// Makes this instance one that owns rooms, or one that does not: then the others take what
    /// it has. Nobody has to start again for it.
    pub async fn own_rooms(&self, wants: bool) -> Result<()> {
        if self.owns_rooms.load(Ordering::Relaxed) == wants {
            return Ok(());
        }
        if wants {
            let seat = self.card.seat;
            let is_new = positions::register(&self.pool, &[Events::ID], seat.writer).await?;
            let known = positions::list(&self.pool).await?;
            let is_own = |(stream, writer, _): &&(i16, WriterId, Position)| {
                *stream == Events::ID.number && *writer == seat.writer
            };
            if let Some((.., position)) = known.iter().find(is_own) {
                self.streams.events.skip(seat.writer, *position);
            }
            if is_new {
                let census = instances::join(&self.pool, &self.card(), &self.notices).await?;
                self.introduce(census.read_us).await?;
            }
        }
        self.owns_rooms.store(wants, Ordering::Relaxed);
        let read_at = Instant::now();
        let census = instances::join(&self.pool, &self.card(), &self.notices).await?;
        self.take_in(census, read_at).await
    }

    /// Starts to beat, until `stop`; then this instance leaves, and the others take its shards.
    pub fn start(self: &Arc<Self>, stop: &Stop) {
        tasks::spawn("roster", self.clone().run(stop.clone()));
    }

    /// Who is alive, this instance included, by name.
    pub fn alive(&self) -> Arc<[Instance]> {
        self.alive.read().clone()
    }

    async fn run(self: Arc<Self>, stop: Stop) {
        let mut beaten_at = Instant::now();
        let mut is_lost = false;
        loop {
            let due = tokio::time::Instant::from_std(beaten_at + BEAT);
            let read_at;
            let seen = tokio::select! {
                biased;
                () = stop.triggered() => break,
                () = tokio::time::sleep_until(due) => {
                    read_at = Instant::now();
                    let since = beaten_at.elapsed();
                    beaten_at = read_at;
                    self.beat(since, read_at).await
                }
                () = self.look.notified() => {
                    read_at = Instant::now();
                    // Whoever is new waits to hear that it has been seen.
                    beaten_at = read_at.checked_sub(BEAT).unwrap_or(read_at);
                    self.look(read_at).await
                }
            };
            if let Err(error) = &seen
                && !is_lost
            {
                tracing::warn!(%error, "the fleet cannot be seen");
            }
            is_lost = seen.is_err();
            if !stop.sleep(PAUSE).await {
                break;
            }
        }
        if let Err(error) = instances::leave(&self.pool, &self.card, &self.notices).await {
            tracing::info!(%error, "could not say goodbye; the others will notice");
        }
    }

    /// `since`: the time since the beat before. If that is long, the others have had as little
    /// chance to beat as this instance, and are not yet missed.
    async fn beat(&self, since: Duration, read_at: Instant) -> Result<()> {
        let knows_us = self.knows_us.load(Ordering::Relaxed);
        let mut census = instances::beat(&self.pool, &self.card(), knows_us).await?;
        let late = since.saturating_sub(2 * BEAT);
        for instance in &mut census.instances {
            instance.silence = instance.silence.saturating_sub(late);
        }
        self.take_in(census, read_at).await?;
        self.pull_the_dead().await
    }

    async fn look(&self, read_at: Instant) -> Result<()> {
        let census = instances::list(&self.pool).await?;
        self.take_in(census, read_at).await
    }

    /// Takes note of who is there, and takes what should be this instance's own.
    async fn take_in(&self, census: Census, read_at: Instant) -> Result<()> {
        let is_alive =
            |instance: &Instance| instance.silence < DEAD || instance.name == self.card.name;
        let alive: Arc<[Instance]> = census.instances.into_iter().filter(is_alive).collect();
        metrics::gauge!("chatd_instances_alive").set(alive.len() as f64);
        self.streams.name_writers(alive.iter().map(|one| (one.writer, one.name.as_str())));
        *self.alive.write() = alive.clone();
        let candidates: Vec<&str> = alive
            .iter()
            .filter(|instance| instance.owns_rooms)
            .map(|instance| instance.name.as_str())
            .collect();
        let me = self.card.name.as_str();
        let wanted: Vec<(ShardId, i64)> = census
            .shards
            .iter()
            .zip(share::desired(&census.shards, &candidates))
            .filter(|(shard, desired)| *desired == Some(me) && shard.owner != me)
            .map(|(shard, _)| (shard.id, shard.epoch))
            .collect();
        self.streams.skip_to(&census.positions);
        self.streams.retire(&census.retired);
        self.knows_us.fetch_max(census.read_us, Ordering::Relaxed);
        self.owners.set(census.shards, read_at);
        self.take_tasks(&census.leases, &alive).await?;
        if wanted.is_empty() {
            return Ok(());
        }
        let moved = instances::take_over(&self.pool, &self.notices, &wanted, me).await?;
        tracing::info!(count = moved.len(), "took shards of rooms over");
        metrics::counter!("chatd_shards_taken_total").increment(moved.len() as u64);
        // Whoever sees what this instance writes has to have seen what was written there before.
        self.streams.announce(&positions::list(&self.pool).await?);
        self.owners.refresh().await
    }

    /// Takes the tasks that should be this instance's own.
    async fn take_tasks(&self, known: &[Lease], alive: &[Instance]) -> Result<()> {
        let me = self.card.name.as_str();
        self.leases.set(me, known);
        let wanted = self.leases.wanted(me, known, alive);
        if !wanted.is_empty() {
            let taken = leases::take(&self.pool, &self.notices, &wanted, me).await?;
            self.leases.set(me, &taken);
        }
        Ok(())
    }

    /// Moves writers forward that are dead (R5). One instance does it for all.
    async fn pull_the_dead(&self) -> Result<()> {
        let alive = self.alive();
        if alive.first().is_none_or(|first| first.name != self.card.name) {
            return Ok(());
        }
        let living: Vec<WriterId> = alive.iter().map(|instance| instance.writer).collect();
        let behind = self.streams.left_behind(&living);
        if !behind.is_empty() {
            let steps = positions::catch_up(&self.pool, &behind).await?;
            self.streams.publish_steps(&steps);
        }
        Ok(())
    }
}
