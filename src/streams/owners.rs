//! Who extends a room: rooms hash to shards, each shard is owned by one event persister.

use std::sync::Arc;

use chatd_base::{Result, ShardId};
use chatd_storage::{Pool, shards};
use parking_lot::RwLock;
use ruma_common::RoomId;

/// Where the owner of a room is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This instance, which must commit under this epoch (R6).
    Here { shard: ShardId, epoch: i64 },
    /// The instance of that name.
    At(String),
}

/// The map from shards to instances as this instance knows it.
pub struct Owners {
    instance: String,
    shards: RwLock<Arc<[shards::Shard]>>,
}

impl Owners {
    /// Reads the map; claims every shard for `instance` if it is the only candidate.
    pub async fn open(pool: &Pool, instance: &str, candidates: &[String]) -> Result<Self> {
        let mut map = shards::list(pool).await?;
        if candidates.iter().all(|name| name == instance) {
            let ids: Vec<ShardId> = map.iter().map(|shard| shard.id).collect();
            shards::claim(pool, &ids, instance).await?;
            map = shards::list(pool).await?;
        }
        Ok(Self { instance: instance.to_owned(), shards: RwLock::new(map.into()) })
    }

    /// The shard of a room: the same on every instance and in every release.
    pub fn shard_of(&self, room: &RoomId) -> ShardId {
        let count = self.shards.read().len().max(1) as u64;
        // FNV-1a: stable, and good enough to spread ids that are random already.
        let hash = room.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let spread = hash ^ (hash >> 32);
        ShardId(i16::try_from(spread % count).expect("there are at most 64 shards"))
    }

    /// Who owns `room` now.
    pub fn of_room(&self, room: &RoomId) -> Owner {
        let id = self.shard_of(room);
        let shards = self.shards.read();
        match shards.iter().find(|shard| shard.id == id) {
            Some(shard) if shard.owner != self.instance => Owner::At(shard.owner.clone()),
            Some(shard) => Owner::Here { shard: shard.id, epoch: shard.epoch },
            None => Owner::At(String::new()),
        }
    }
}
