//! Events that are known, but have no place in this server's timeline: state and authorisation
//! that another server has told. They go in as arrays, or by `COPY` where they are many, in
//! transactions of their own, so that the lane is not held up.

use chatd_base::{EventNid, KeyNid, RoomNid, ShardId, TypeNid, UserNid, WriterId};
use tokio_postgres::types::Type;

use crate::{Batch, Pool, Result, ToSql, params, shards, statement::statements};

/// From so many rows on a `COPY`, which takes some round trips more, is done earlier than arrays.
const COPIED: usize = 500;

statements! {
    INSERT_OUTLIERS = "WITH given AS (
                           SELECT * FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int8[], $5::int4[],
                                                $6::int4[], $7::int2[], $8::text[], $9::text[],
                                                $10::text[], $11::bytea[])
                                AS t(nid, depth, ts, key, type, sender, flags, event_id, auth, content,
                                     rest)),
                       made AS (INSERT INTO events (nid, pos, snapshot, depth, origin_ts, key, replaces,
                                                    room, type, sender, writer, flags, event_id, prev_ids,
                                                    auth_ids)
                                SELECT nid, 0, 0, depth, ts, key, NULL, $12, type, sender, $13, flags,
                                       event_id, '{}', auth::int8[]
                                FROM given RETURNING nid)
                       INSERT INTO event_json (nid, content, rest)
                       SELECT g.nid, g.content, g.rest FROM given g JOIN made USING (nid)";
    COPY_EVENTS = "COPY events (nid, pos, snapshot, depth, origin_ts, key, room, type, sender, writer,
                                flags, event_id, prev_ids, auth_ids) FROM STDIN (FORMAT binary)";
    COPY_EVENT_JSON = "COPY event_json (nid, content, rest) FROM STDIN (FORMAT binary)";
}

const EVENT_TYPES: [Type; 14] = [
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT4,
    Type::INT4,
    Type::INT4,
    Type::INT2,
    Type::INT2,
    Type::TEXT,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
];
const EVENT_JSON_TYPES: [Type; 3] = [Type::INT8, Type::TEXT, Type::BYTEA];

/// A row of `events` and `event_json` without a position.
#[derive(Clone, Debug)]
pub struct NewOutlier {
    pub nid: EventNid,
    pub depth: i64,
    pub origin_ts: i64,
    pub key: Option<KeyNid>,
    pub kind: TypeNid,
    pub sender: UserNid,
    pub flags: i16,
    pub event_id: String,
    pub auth_ids: Vec<EventNid>,
    pub content: String,
    /// Remainder of the federation format, with the predecessors, which need not be known.
    pub rest: Vec<u8>,
}

/// Writes events of one room. Fails as a whole if one of them is known, or if the shard has gone
/// to another instance.
pub async fn insert(
    pool: &Pool,
    room: RoomNid,
    writer: WriterId,
    fence: (ShardId, i64),
    rows: &[NewOutlier],
) -> Result<()> {
    if rows.len() >= COPIED {
        copy(pool, room, writer, fence, rows).await
    } else {
        insert_arrays(pool, room, writer, fence, rows).await
    }
}

async fn insert_arrays(
    pool: &Pool,
    room: RoomNid,
    writer: WriterId,
    fence: (ShardId, i64),
    rows: &[NewOutlier],
) -> Result<()> {
    let mut batch = Batch::new();
    shards::fence(&mut batch, &[fence]);
    batch.add(
        &INSERT_OUTLIERS,
        params![
            rows.iter().map(|row| row.nid.0).collect::<Vec<_>>(),
            rows.iter().map(|row| row.depth).collect::<Vec<_>>(),
            rows.iter().map(|row| row.origin_ts).collect::<Vec<_>>(),
            rows.iter().map(|row| row.key.map(|key| key.0)).collect::<Vec<_>>(),
            rows.iter().map(|row| row.kind.0).collect::<Vec<_>>(),
            rows.iter().map(|row| row.sender.0).collect::<Vec<_>>(),
            rows.iter().map(|row| row.flags).collect::<Vec<_>>(),
            rows.iter().map(|row| row.event_id.clone()).collect::<Vec<_>>(),
            rows.iter().map(|row| crate::lane::literal(row.auth_ids.iter())).collect::<Vec<_>>(),
            rows.iter().map(|row| row.content.clone()).collect::<Vec<_>>(),
            rows.iter().map(|row| row.rest.clone()).collect::<Vec<_>>(),
            room.0,
            writer.0,
        ],
    );
    pool.commit(batch).await?;
    Ok(())
}

async fn copy(
    pool: &Pool,
    room: RoomNid,
    writer: WriterId,
    fence: (ShardId, i64),
    rows: &[NewOutlier],
) -> Result<()> {
    let copying = pool.begin_copy(fence).await?;
    let mut events = copying.fill(&COPY_EVENTS, &EVENT_TYPES).await?;
    let (zero, nobody) = (0_i64, Vec::<i64>::new());
    for row in rows {
        let auth_ids: Vec<i64> = row.auth_ids.iter().map(|nid| nid.0).collect();
        let columns: [&(dyn ToSql + Sync); 14] = [
            &row.nid.0,
            &zero,
            &zero,
            &row.depth,
            &row.origin_ts,
            &row.key.map(|key| key.0),
            &room.0,
            &row.kind.0,
            &row.sender.0,
            &writer.0,
            &row.flags,
            &row.event_id,
            &nobody,
            &auth_ids,
        ];
        events.add(&columns).await?;
    }
    copying.filled(events).await?;
    let mut json = copying.fill(&COPY_EVENT_JSON, &EVENT_JSON_TYPES).await?;
    for row in rows {
        json.add(&[&row.nid.0, &row.content, &row.rest]).await?;
    }
    copying.filled(json).await?;
    copying.commit().await
}
