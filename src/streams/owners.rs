//! Who extends a room: rooms hash to shards, each shard is owned by one event persister.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chatd_base::{Refusal, Result, ShardId};
use chatd_storage::{
    Pool,
    shards::{self, Shard},
};
use parking_lot::RwLock;
use ruma_common::RoomId;
use tokio::sync::Mutex;

/// Where the owner of a room is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This instance, which must commit under this epoch (R6).
    Here { shard: ShardId, epoch: i64 },
    /// The instance of that name; empty if there is none yet.
    At(String),
}

type Lost = Box<dyn Fn(&[ShardId]) + Send + Sync>;

/// The map from shards to instances as this instance knows it.
pub struct Owners {
    pool: Pool,
    instance: String,
    is_alone: bool,
    map: RwLock<Map>,
    lost: RwLock<Vec<Lost>>,
    /// When the last reading of the map began; held while one is under way.
    reading: Mutex<Instant>,
}

struct Map {
    shards: Arc<[Shard]>,
    read_at: Instant,
}

/// A map that was not read for longer may be that of a process that was stopped meanwhile.
const STALE: Duration = Duration::from_secs(7);

impl Owners {
    /// Reads the map. An instance that is alone claims every shard.
    pub async fn open(pool: &Pool, instance: &str, is_alone: bool) -> Result<Self> {
        let read_at = Instant::now();
        let mut map = shards::list(pool).await?;
        if is_alone {
            let ids: Vec<ShardId> = map.iter().map(|shard| shard.id).collect();
            shards::claim(pool, &ids, instance).await?;
            map = shards::list(pool).await?;
        }
        Ok(Self {
            pool: pool.clone(),
            instance: instance.to_owned(),
            is_alone,
            map: RwLock::new(Map { shards: map.into(), read_at }),
            lost: RwLock::default(),
            reading: Mutex::new(read_at),
        })
    }

    /// Adds somebody who is to be told of shards that have gone to another instance: what is in
    /// memory of their rooms is not true any more. Called while the instance is wired.
    pub fn on_lost(&self, forget: impl Fn(&[ShardId]) + Send + Sync + 'static) {
        self.lost.write().push(Box::new(forget));
    }

    /// Who owns `room`, as far as this instance knows.
    pub fn of_room(&self, room: &RoomId) -> Owner {
        let id = shard_of(room);
        let map = self.map.read();
        match map.shards.iter().find(|shard| shard.id == id) {
            Some(shard) if shard.owner != self.instance => Owner::At(shard.owner.clone()),
            Some(shard) => Owner::Here { shard: shard.id, epoch: shard.epoch },
            None => Owner::At(String::new()),
        }
    }

    /// The shard and the epoch under which this instance extends `room`; refuses
    /// ([`Refusal::not_owner`]) rooms of others. No query but in a process that was stopped.
    pub async fn own(&self, room: &RoomId) -> Result<(ShardId, i64)> {
        if self.is_stale() {
            self.refresh().await?;
        }
        match self.of_room(room) {
            Owner::Here { shard, epoch } => Ok((shard, epoch)),
            Owner::At(instance) => Err(Refusal::not_owner(instance).into()),
        }
    }

    /// Whether `room` is one that this instance extends.
    pub fn is_own(&self, room: &RoomId) -> bool {
        matches!(self.of_room(room), Owner::Here { .. })
    }

    /// Whether this instance owns any shard.
    pub fn owns_any(&self) -> bool {
        self.map.read().shards.iter().any(|shard| shard.owner == self.instance)
    }

    /// All shards in order, as far as this instance knows.
    pub fn shards(&self) -> Arc<[Shard]> {
        self.map.read().shards.clone()
    }

    fn is_stale(&self) -> bool {
        !self.is_alone && self.map.read().read_at.elapsed() > STALE
    }

    /// Reads the map again: a commit was fenced, or a request came to the wrong instance. Callers
    /// that come while it is being read share the next reading.
    pub async fn refresh(&self) -> Result<()> {
        let asked_at = Instant::now();
        let mut last = self.reading.lock().await;
        if *last >= asked_at {
            return Ok(());
        }
        let read_at = Instant::now();
        let map = shards::list(&self.pool).await?;
        *last = read_at;
        drop(last);
        self.set(map, read_at);
        Ok(())
    }

    /// Takes in a map that was read at or after `read_at`. Of each shard the higher epoch counts.
    pub(crate) fn set(&self, read: Vec<Shard>, read_at: Instant) {
        let mut map = self.map.write();
        let mut lost = Vec::new();
        let newer = |(old, new): (&Shard, Shard)| {
            if new.epoch <= old.epoch {
                return old.clone();
            }
            // Also one that is ours again: another one may have written in between.
            if old.owner == self.instance {
                lost.push(old.id);
            }
            new
        };
        map.shards = map.shards.iter().zip(read).map(newer).collect();
        map.read_at = map.read_at.max(read_at);
        drop(map);
        if !lost.is_empty() {
            tracing::info!(count = lost.len(), "shards of rooms have gone to other instances");
            self.lost.read().iter().for_each(|forget| forget(&lost));
        }
    }
}

/// How many shards there are; a migration has made them.
const SHARDS: u64 = 64;

/// The shard of a room: the same on every instance and in every release.
pub fn shard_of(room: &RoomId) -> ShardId {
    // FNV-1a: stable, and good enough to spread ids that are random already.
    let hash = room.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let spread = hash ^ (hash >> 32);
    ShardId(i16::try_from(spread % SHARDS).expect("there are 64 shards"))
}
