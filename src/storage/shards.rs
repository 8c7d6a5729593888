//! Which instance owns which shard of rooms, and the fence against those that used to (R6).

use chatd_base::ShardId;

use crate::{Batch, Pool, Result, Row, params, statement::statements};

statements! {
    LIST_SHARDS = "SELECT shard, owner, epoch FROM shards ORDER BY shard";
    /// The exclusive lock waits for commits of the old owner; the new epoch refuses later ones.
    CLAIM_SHARDS = "SELECT chatd_claim($1::int2[], $2::text)";
    TAKE_OVER = "SELECT chatd_take_over($1::int2[], $2::int8[], $3::text)";
    FENCE = "SELECT chatd_fence($1::int2[], $2::int8[])";
}

/// One slice of the rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub id: ShardId,
    /// Instance name; empty if nobody has owned it yet.
    pub owner: String,
    /// Goes up with each change of the owner.
    pub epoch: i64,
}

/// All shards, in order.
pub async fn list(pool: &Pool) -> Result<Vec<Shard>> {
    let rows = pool.query(&LIST_SHARDS, &[]).await?;
    Ok(rows.iter().map(shard).collect())
}

/// A row of the list.
pub(crate) fn shard(row: &Row) -> Shard {
    Shard { id: ShardId(row.get(0)), owner: row.get(1), epoch: row.get(2) }
}

/// Makes `owner` the owner of `ids` with new epochs. Commits of the old owners that are under
/// way finish first; later ones fail.
pub async fn claim(pool: &Pool, ids: &[ShardId], owner: &str) -> Result<()> {
    let ids: Vec<i16> = ids.iter().map(|id| id.0).collect();
    pool.execute(&CLAIM_SHARDS, &[&ids, &owner]).await?;
    pool.end_stale_copies().await;
    Ok(())
}

/// As [`claim`], of those that still have the epoch that was seen; `seen` must be sorted. The
/// result has a row for each that moved.
pub(crate) fn take_over(batch: &mut Batch, seen: &[(ShardId, i64)], owner: &str) -> usize {
    let (ids, epochs): (Vec<i16>, Vec<i64>) = seen.iter().map(|(id, epoch)| (id.0, *epoch)).unzip();
    batch.add(&TAKE_OVER, params![ids, epochs, owner.to_owned()])
}

/// Fails the transaction (SQLSTATE CH001) unless each shard still has its epoch, and keeps it so
/// until the transaction ends. `shards` must be sorted by id and without repeats.
pub fn fence(batch: &mut Batch, shards: &[(ShardId, i64)]) {
    let (ids, epochs): (Vec<i16>, Vec<i64>) =
        shards.iter().map(|(id, epoch)| (id.0, *epoch)).unzip();
    batch.add(&FENCE, params![ids, epochs]);
}
