//! Who is there: each instance of a fleet beats, and sees in the same round trip who else does
//! and which shard belongs to whom. Ages are measured by the database's clock alone.

use std::time::Duration;

use chatd_base::{Position, ShardId, WriterId};

use crate::{
    Batch, Pool, Result, Row,
    leases::{self, Lease},
    notices::{Notice, Notices},
    params,
    positions::{self, Seat},
    shards::{self, Shard},
    statement::statements,
};

statements! {
    BEAT = "INSERT INTO instances AS known (name, role, writer, term, owns_rooms, knows_us,
                                             address)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (name) DO UPDATE
            SET role = excluded.role, writer = excluded.writer, term = excluded.term,
                owns_rooms = excluded.owns_rooms, knows_us = excluded.knows_us,
                address = excluded.address,
                beat_at = clock_timestamp(),
                started_at = CASE WHEN known.term = excluded.term THEN known.started_at
                                  ELSE clock_timestamp() END
            WHERE known.term <= excluded.term";
    LIST_INSTANCES = "SELECT name, role, writer, owns_rooms,
                             greatest(0, extract(epoch FROM clock_timestamp() - beat_at) * 1000)::int8,
                             knows_us, address
                      FROM instances ORDER BY name";
    /// Microseconds; before what the same batch reads after it.
    NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
    LEAVE = "DELETE FROM instances WHERE name = $1 AND term = $2";
    DELETE_LONG_GONE = "DELETE FROM instances WHERE beat_at < clock_timestamp() - interval '1 day'";
}

/// What an instance says of itself.
#[derive(Clone, Debug)]
pub struct Card {
    pub name: String,
    pub role: String,
    pub seat: Seat,
    /// Whether it may own shards of rooms.
    pub owns_rooms: bool,
    /// Where its replication listener is, if it has one; JSON.
    pub address: Option<String>,
}

/// An instance as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    pub role: String,
    pub writer: WriterId,
    pub owns_rooms: bool,
    /// Since it was last heard of.
    pub silence: Duration,
    /// [`Census::read_us`] of the last census that it has taken in.
    pub knows_us: i64,
    /// Where its replication listener is, if it has one; JSON.
    pub address: Option<String>,
}

/// All instances that the table knows, all shards, all writers, and all leases.
#[derive(Clone, Debug)]
pub struct Census {
    pub instances: Vec<Instance>,
    pub shards: Vec<Shard>,
    pub positions: Vec<(i16, WriterId, Position)>,
    pub leases: Vec<Lease>,
    /// Those that write a stream no more.
    pub retired: Vec<(i16, WriterId, Position)>,
    /// By the database's clock, not later than it was read.
    pub read_us: i64,
}

/// Says that this instance is there and has taken in a census, and looks who is.
pub async fn beat(pool: &Pool, card: &Card, knows_us: i64) -> Result<Census> {
    let mut batch = Batch::new();
    add_beat(&mut batch, card, knows_us);
    look(pool, batch).await
}

/// The first beat of a process: the others are told to look.
pub async fn join(pool: &Pool, card: &Card, notices: &Notices) -> Result<Census> {
    let mut batch = Batch::new();
    add_beat(&mut batch, card, 0);
    notices.tell(&mut batch, Notice::Fleet);
    look(pool, batch).await
}

/// Looks who is there.
pub async fn list(pool: &Pool) -> Result<Census> {
    look(pool, Batch::new()).await
}

/// Says that this instance ends, so that the others need not wait until they miss it.
pub async fn leave(pool: &Pool, card: &Card, notices: &Notices) -> Result<()> {
    let mut batch = Batch::new();
    batch.add(&LEAVE, params![card.name.clone(), card.seat.term]);
    notices.tell(&mut batch, Notice::Fleet);
    pool.commit(batch).await?;
    Ok(())
}

/// Forgets instances that have been gone for a day.
pub async fn delete_long_gone(pool: &Pool) -> Result<u64> {
    pool.execute(&DELETE_LONG_GONE, &[]).await
}

fn add_beat(batch: &mut Batch, card: &Card, knows_us: i64) {
    let Card { name, role, seat, owns_rooms, address } = card.clone();
    batch.add(&BEAT, params![name, role, seat.writer.0, seat.term, owns_rooms, knows_us, address]);
}

async fn look(pool: &Pool, mut batch: Batch) -> Result<Census> {
    let now = batch.add(&NOW, vec![]);
    let instances = batch.add(&LIST_INSTANCES, vec![]);
    let shards = batch.add(&shards::LIST_SHARDS, vec![]);
    let positions = batch.add(&positions::LIST_POSITIONS, vec![]);
    let leases = batch.add(&leases::LIST_LEASES, vec![]);
    let retired = batch.add(&positions::LIST_RETIRED, vec![]);
    let rows = pool.commit(batch).await?;
    Ok(Census {
        positions: rows.of(positions).iter().map(positions::known).collect(),
        retired: rows.of(retired).iter().map(positions::known).collect(),
        leases: rows.of(leases).iter().map(leases::lease).collect(),
        read_us: rows.of(now).first().map_or(0, |row| row.get(0)),
        instances: rows.of(instances).iter().map(instance).collect(),
        shards: rows.of(shards).iter().map(shards::shard).collect(),
    })
}

fn instance(row: &Row) -> Instance {
    Instance {
        name: row.get(0),
        role: row.get(1),
        writer: WriterId(row.get(2)),
        owns_rooms: row.get(3),
        silence: Duration::from_millis(u64::try_from(row.get::<_, i64>(4)).unwrap_or(0)),
        knows_us: row.get(5),
        address: row.get(6),
    }
}

/// Makes `owner` the owner of those of `seen` that have changed hands no more since. Commits of
/// the old owners that are under way finish first; later ones fail. Returns the shards that moved,
/// of which the others are told.
pub async fn take_over(
    pool: &Pool,
    notices: &Notices,
    seen: &[(ShardId, i64)],
    owner: &str,
) -> Result<Vec<ShardId>> {
    let mut batch = Batch::new();
    let moved = shards::take_over(&mut batch, seen, owner);
    notices.tell(&mut batch, Notice::Fleet);
    let rows = pool.commit(batch).await?;
    pool.end_stale_copies().await;
    Ok(rows.of(moved).iter().map(|row| ShardId(row.get(0))).collect())
}
