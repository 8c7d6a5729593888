//! Rows that go in by `COPY`: what they are, and what becomes of them when something is in the way.

use std::time::Duration;

use chatd_base::{EventNid, KeyNid, RoomNid, ShardId, TypeNid, UserNid, WriterId};
use chatd_kit::{Database, cluster::Cluster};
use tokio_postgres::types::Type;

use super::open;
use crate::{
    Error, Pool, Result, migrate,
    outliers::{self, NewOutlier},
    shards,
    statement::Statement,
};

const ROOM: RoomNid = RoomNid(7);
const SHARD: ShardId = ShardId(5);
/// Written as arrays, and by `COPY`.
const FEW: i64 = 20;
const MANY: i64 = 2_000;

static COPY_JSON: Statement = super::statement(
    "COPY_JSON",
    "COPY event_json (nid, content, rest) FROM STDIN (FORMAT binary)",
);

/// A database with shards of an owner, and its epoch.
async fn owned() -> (Database, Pool, i64) {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    migrate(&pool).await.unwrap();
    let epoch = claim(&pool, "a").await;
    (database, pool, epoch)
}

/// Makes `owner` the owner of the shard; the epoch since.
async fn claim(pool: &Pool, owner: &str) -> i64 {
    shards::claim(pool, &[SHARD], owner).await.unwrap();
    let all = shards::list(pool).await.unwrap();
    all.iter().find(|shard| shard.id == SHARD).unwrap().epoch
}

fn outlier(nid: i64) -> NewOutlier {
    NewOutlier {
        nid: EventNid(nid),
        depth: nid * 3,
        origin_ts: -nid,
        key: (nid % 2 == 0).then_some(KeyNid(nid << 33)),
        kind: TypeNid(4),
        sender: UserNid(9),
        flags: i16::try_from(nid % 64).unwrap(),
        event_id: format!("${nid}"),
        auth_ids: (0..nid % 4).map(EventNid).collect(),
        content: format!("{{\"text\":\"{}\"}}", "ä\"".repeat(usize::try_from(nid % 300).unwrap())),
        rest: vec![0xff; usize::try_from(nid % 5_000).unwrap()],
    }
}

fn outliers(nids: std::ops::Range<i64>) -> Vec<NewOutlier> {
    nids.map(outlier).collect()
}

async fn insert(pool: &Pool, epoch: i64, rows: &[NewOutlier]) -> Result<()> {
    let limit = Duration::from_secs(30);
    let inserting = outliers::insert(pool, ROOM, WriterId(3), (SHARD, epoch), rows);
    tokio::time::timeout(limit, inserting).await.expect("the insert does not end")
}

/// All that is in both tables.
async fn stored(database: &Database) -> Vec<String> {
    let sql = "SELECT (e, j)::text FROM events e FULL JOIN event_json j USING (nid) ORDER BY nid";
    let client = database.connect().await.unwrap();
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn rows_are_the_same_as_those_of_arrays() {
    let (database, pool, epoch) = owned().await;
    insert(&pool, epoch, &outliers(1..MANY)).await.unwrap();
    let copied = stored(&database).await;
    let (database, pool, epoch) = owned().await;
    for some in outliers(1..MANY).chunks(usize::try_from(FEW).unwrap()) {
        insert(&pool, epoch, some).await.unwrap();
    }
    assert_eq!(copied.len(), usize::try_from(MANY).unwrap() - 1);
    assert!(copied == stored(&database).await, "they are not the same");
}

#[tokio::test]
async fn one_row_that_is_known_keeps_all_out_and_the_pool_goes_on() {
    let (database, pool, epoch) = owned().await;
    let known = MANY + MANY / 2;
    insert(&pool, epoch, &outliers(known..known + 1)).await.unwrap();
    // More often than there are connections.
    for _ in 0..6 {
        let refused = insert(&pool, epoch, &outliers(MANY..2 * MANY)).await.unwrap_err();
        assert!(refused.is_unique_violation(), "{refused}");
        assert_eq!(shards::list(&pool).await.unwrap().len(), 64);
    }
    assert_eq!(stored(&database).await.len(), 1);
    insert(&pool, epoch, &outliers(2 * MANY..3 * MANY)).await.unwrap();
}

#[tokio::test]
async fn nothing_is_copied_under_an_old_epoch() {
    let (database, pool, epoch) = owned().await;
    let now = claim(&pool, "b").await;
    for rows in [outliers(0..FEW), outliers(0..MANY)] {
        let refused = insert(&pool, epoch, &rows).await.unwrap_err();
        assert!(refused.is_fenced(), "{refused}");
    }
    assert!(stored(&database).await.is_empty());
    insert(&pool, now, &outliers(0..MANY)).await.unwrap();
}

#[tokio::test]
async fn a_copy_is_fenced_when_it_commits() {
    let (database, pool, epoch) = owned().await;
    let copying = pool.begin_copy((SHARD, epoch)).await.unwrap();
    // As another instance would, but for the end that it makes to copies.
    let sql = "SELECT chatd_claim('{5}', 'b')";
    database.connect().await.unwrap().query(sql, &[]).await.unwrap();
    let types = [Type::INT8, Type::TEXT, Type::BYTEA];
    let mut filling = copying.fill(&COPY_JSON, &types).await.unwrap();
    filling.add(&[&1_i64, &"{}", &&b""[..]]).await.unwrap();
    copying.filled(filling).await.unwrap();
    let refused = copying.commit().await.unwrap_err();
    assert!(refused.is_fenced(), "{refused}");
    assert!(stored(&database).await.is_empty());
}

/// A process that stands still in the middle of a copy holds its rows. Whoever has the shard then
/// does not wait for it (R5).
#[tokio::test]
async fn who_takes_a_shard_over_ends_the_copies_of_the_one_before() {
    let (database, pool, epoch) = owned().await;
    let types = [Type::INT8, Type::TEXT, Type::BYTEA];
    let copying = pool.begin_copy((SHARD, epoch)).await.unwrap();
    let mut stuck = copying.fill(&COPY_JSON, &types).await.unwrap();
    // Enough for some of it to be sent, so that the rows are in the table.
    let rest = vec![1_u8; 100_000];
    for nid in 0..10_i64 {
        stuck.add(&[&nid, &"{}", &rest]).await.unwrap();
    }
    let elsewhere = pool.begin_copy((ShardId(6), other_epoch(&pool).await)).await.unwrap();
    let filling = elsewhere.fill(&COPY_JSON, &types).await.unwrap();
    let now = claim(&pool, "b").await;
    insert(&pool, now, &outliers(0..FEW)).await.unwrap();
    assert!(matches!(copying.filled(stuck).await, Err(Error::Lost(_))));
    assert_eq!(stored(&database).await.len(), usize::try_from(FEW).unwrap());
    // One of another shard goes on.
    elsewhere.filled(filling).await.unwrap();
    elsewhere.commit().await.unwrap();
}

async fn other_epoch(pool: &Pool) -> i64 {
    let all = shards::list(pool).await.unwrap();
    all.iter().find(|shard| shard.id == ShardId(6)).unwrap().epoch
}

#[tokio::test]
async fn a_copy_whose_connection_is_lost_has_no_effect() {
    let (database, pool, epoch) = owned().await;
    let copying = pool.begin_copy((SHARD, epoch)).await.unwrap();
    let types = [Type::INT8, Type::TEXT, Type::BYTEA];
    let mut filling = copying.fill(&COPY_JSON, &types).await.unwrap();
    filling.add(&[&1_i64, &"{}", &&b""[..]]).await.unwrap();
    let sql = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
               WHERE datname = current_database() AND query LIKE 'COPY%'";
    let ended = database.connect().await.unwrap().query(sql, &[]).await.unwrap();
    assert_eq!(ended.len(), 1);
    assert!(matches!(copying.filled(filling).await, Err(Error::Lost(_))));
    drop(copying);
    // One that is given up has none either.
    drop(pool.begin_copy((SHARD, epoch)).await.unwrap());
    let copying = pool.begin_copy((SHARD, epoch)).await.unwrap();
    let mut given_up = copying.fill(&COPY_JSON, &types).await.unwrap();
    given_up.add(&[&1_i64, &"{}", &&b""[..]]).await.unwrap();
    drop((given_up, copying));
    insert(&pool, epoch, &outliers(0..MANY)).await.unwrap();
    assert_eq!(stored(&database).await.len(), usize::try_from(MANY).unwrap());
}
