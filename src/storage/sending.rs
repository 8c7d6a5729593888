//! What goes to other servers: how far each shard of them has been told, and what is still owed to
//! those that do not answer.

use chatd_base::{EventNid, Position, RoomNid, WriterId};

use crate::{Batch, Pool, Result, Row, params, statement::statements};

/// The columns of [`ToSend`].
macro_rules! to_send {
    () => {
        "e.nid, e.pos, e.writer, e.room, u.user_id, k.state_key, j.content"
    };
}

/// Joins the sender of the event `e`, and whose membership it is if it is one.
macro_rules! member {
    () => {
        "JOIN users_nid u ON u.nid = e.sender
         LEFT JOIN state_keys k ON k.nid = e.key AND k.type = 'm.room.member'
         LEFT JOIN event_json j ON j.nid = e.nid AND k.nid IS NOT NULL"
    };
}

statements! {
    TAKE_SHARDS = "UPDATE sending_shards SET epoch = epoch + 1 WHERE shard = ANY($1::int2[])
                   RETURNING shard, epoch, events, device_lists, receipts, presence";
    FENCE_SENDING = "SELECT chatd_fence_sending($1::int2[], $2::int8[])";
    SET_SHARDS = "UPDATE sending_shards
                  SET events = $2, device_lists = $3, receipts = $4, presence = $5
                  WHERE shard = ANY($1::int2[])";
    LIST_OWED_ROOMS = "SELECT server, room, since, ahead FROM sending_rooms";
    UPSERT_OWED_ROOMS = "INSERT INTO sending_rooms (server, room, since, ahead)
                         SELECT * FROM unnest($1::text[], $2::int4[], $3::int8[], $4::int8[])
                         ON CONFLICT (server, room)
                         DO UPDATE SET since = excluded.since, ahead = excluded.ahead";
    DELETE_OWED_ROOMS = "DELETE FROM sending_rooms o
                         USING unnest($1::text[], $2::int4[]) AS t(server, room)
                         WHERE o.server = t.server AND o.room = t.room";
    LIST_OWED_DEVICES = "SELECT server, since FROM sending_device_lists";
    UPSERT_OWED_DEVICES = "INSERT INTO sending_device_lists (server, since)
                           SELECT * FROM unnest($1::text[], $2::text[])
                           ON CONFLICT (server) DO UPDATE SET since = excluded.since";
    DELETE_OWED_DEVICES = "DELETE FROM sending_device_lists WHERE server = ANY($1::text[])";
    /// Events of this server between two tokens, oldest first. Writers that are not listed are at
    /// the least position of both.
    LIST_TO_SEND = concat!("
        SELECT ", to_send!(), "
        FROM events e
        LEFT JOIN unnest($1::int2[], $2::int8[], $3::int8[]) AS b(writer, low, high)
             ON b.writer = e.writer
        ", member!(), "
        WHERE e.flags & 64 <> 0 AND e.pos > $4 AND e.pos <= $5
              AND e.pos > coalesce(b.low, $4) AND e.pos <= coalesce(b.high, $6)
        ORDER BY e.pos LIMIT $7");
    /// The oldest of each room from a position on, and whether more than $4 are left: that is
    /// found out once for each room, not for each event (`OFFSET 0`).
    LIST_OWED_EVENTS = concat!("
        SELECT ", to_send!(), ", far.is_far
        FROM unnest($1::int4[], $2::int8[]) AS o(room, since)
        CROSS JOIN LATERAL (SELECT EXISTS (SELECT 1 FROM events f
                                           WHERE f.room = o.room AND f.pos >= o.since
                                                 AND f.flags & 64 <> 0
                                           OFFSET $4 LIMIT 1) AS is_far
                            OFFSET 0) AS far
        CROSS JOIN LATERAL (SELECT i.nid, i.pos, i.writer, i.room, i.sender, i.key FROM events i
                            WHERE i.room = o.room AND i.pos >= o.since AND i.flags & 64 <> 0
                            ORDER BY i.pos LIMIT $3) AS e
        ", member!(), "
        ORDER BY e.pos");
    LIST_NEWEST_TO_SEND = concat!("
        SELECT ", to_send!(), "
        FROM unnest($1::int4[]) AS o(room)
        CROSS JOIN LATERAL (SELECT i.nid, i.pos, i.writer, i.room, i.sender, i.key FROM events i
                            WHERE i.room = o.room AND i.flags & 64 <> 0
                            ORDER BY i.pos DESC LIMIT 1) AS e
        ", member!(), "
        ORDER BY e.pos");
    LIST_ROOM_VERSIONS = "SELECT nid, room_id, version FROM rooms WHERE nid = ANY($1::int4[])";
    INSERT_OUTBOUND = "INSERT INTO sending_to_device (server, pos, content)
                       SELECT s, currval('stream_to_device') + o, c
                       FROM unnest($1::text[], $2::int8[], $3::text[]) AS t(s, o, c)";
    LIST_OUTBOUND_SERVERS = "SELECT DISTINCT server FROM sending_to_device";
    LIST_OUTBOUND = "
        SELECT s.server, d.pos, d.content
        FROM unnest($1::text[]) AS s(server)
        CROSS JOIN LATERAL (SELECT pos, content FROM sending_to_device
                            WHERE server = s.server ORDER BY pos LIMIT $2) AS d";
    DELETE_OUTBOUND = "DELETE FROM sending_to_device d
                       USING unnest($1::text[], $2::int8[]) AS t(server, pos)
                       WHERE d.server = t.server AND d.pos = t.pos";
    LIST_DEVICE_CHANGES = "
        SELECT c.user_nid, u.user_id, c.device_id, c.pos, c.previous
        FROM device_list_changes c JOIN users_nid u ON u.nid = c.user_nid
        WHERE c.pos > $1 AND c.pos <= $2 ORDER BY c.pos LIMIT $3";
}

/// A shard of destinations that an instance has taken.
#[derive(Clone, Debug)]
pub struct Shard {
    pub id: i16,
    pub epoch: i64,
    pub told: Told,
}

/// Up to where servers have been told of each stream: tokens. For events and device lists this
/// counts those that do not answer as well, of which it is noted what they have missed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub events: String,
    pub device_lists: String,
    pub receipts: String,
    pub presence: String,
}

/// Takes shards over; whoever had them cannot write for them any more.
pub async fn take(pool: &Pool, shards: &[i16]) -> Result<Vec<Shard>> {
    let row = |row: &Row| Shard {
        id: row.get(0),
        epoch: row.get(1),
        told: Told {
            events: row.get(2),
            device_lists: row.get(3),
            receipts: row.get(4),
            presence: row.get(5),
        },
    };
    Ok(pool.query(&TAKE_SHARDS, &[&shards]).await?.iter().map(row).collect())
}

/// A room of which a server has missed events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwedRoom {
    pub server: String,
    pub room: RoomNid,
    pub since: Position,
    /// A later event that it has been given already.
    pub ahead: Option<Position>,
}

/// All rooms of which any server has missed events.
pub async fn list_owed_rooms(pool: &Pool) -> Result<Vec<OwedRoom>> {
    let row = |row: &Row| OwedRoom {
        server: row.get(0),
        room: RoomNid(row.get(1)),
        since: Position(row.get(2)),
        ahead: row.get::<_, Option<i64>>(3).map(Position),
    };
    Ok(pool.query(&LIST_OWED_ROOMS, &[]).await?.iter().map(row).collect())
}

/// Servers that have missed changes of device lists, each with the token after which.
pub async fn list_owed_devices(pool: &Pool) -> Result<Vec<(String, String)>> {
    let rows = pool.query(&LIST_OWED_DEVICES, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What changes with one step of a sender.
#[derive(Debug, Default)]
pub struct Progress {
    /// Shards with their epochs.
    pub shards: Vec<(i16, i64)>,
    /// Up to where all their servers have been told, or are noted.
    pub told: Option<Told>,
    pub owed_rooms: Vec<OwedRoom>,
    pub settled_rooms: Vec<(String, RoomNid)>,
    pub owed_devices: Vec<(String, String)>,
    pub settled_devices: Vec<String>,
    /// Messages to devices that have been taken.
    pub taken: Vec<(String, Position)>,
}

/// Writes the step in one transaction; fails if another instance has taken one of the shards.
pub async fn write(pool: &Pool, progress: Progress) -> Result<()> {
    let (shards, epochs): (Vec<i16>, Vec<i64>) = progress.shards.into_iter().unzip();
    let mut batch = Batch::new();
    batch.add(&FENCE_SENDING, params![shards.clone(), epochs]);
    if !progress.settled_rooms.is_empty() {
        let (servers, rooms): (Vec<String>, Vec<i32>) =
            progress.settled_rooms.into_iter().map(|(server, room)| (server, room.0)).unzip();
        batch.add(&DELETE_OWED_ROOMS, params![servers, rooms]);
    }
    if !progress.owed_rooms.is_empty() {
        let owed = &progress.owed_rooms;
        batch.add(
            &UPSERT_OWED_ROOMS,
            params![
                owed.iter().map(|owed| owed.server.clone()).collect::<Vec<_>>(),
                owed.iter().map(|owed| owed.room.0).collect::<Vec<_>>(),
                owed.iter().map(|owed| owed.since.0).collect::<Vec<_>>(),
                owed.iter().map(|owed| owed.ahead.map(|at| at.0)).collect::<Vec<_>>(),
            ],
        );
    }
    if !progress.settled_devices.is_empty() {
        batch.add(&DELETE_OWED_DEVICES, params![progress.settled_devices]);
    }
    if !progress.owed_devices.is_empty() {
        let (servers, since): (Vec<String>, Vec<String>) =
            progress.owed_devices.into_iter().unzip();
        batch.add(&UPSERT_OWED_DEVICES, params![servers, since]);
    }
    if !progress.taken.is_empty() {
        let (servers, positions): (Vec<String>, Vec<i64>) =
            progress.taken.into_iter().map(|(server, position)| (server, position.0)).unzip();
        batch.add(&DELETE_OUTBOUND, params![servers, positions]);
    }
    if let Some(Told { events, device_lists, receipts, presence }) = progress.told {
        batch.add(&SET_SHARDS, params![shards, events, device_lists, receipts, presence]);
    }
    pool.commit(batch).await?;
    Ok(())
}

/// An event that goes to other servers, as far as it says to which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToSend {
    pub nid: EventNid,
    pub pos: Position,
    pub writer: WriterId,
    pub room: RoomNid,
    pub sender: String,
    /// For a membership: whose it is, and the content.
    pub member: Option<(String, String)>,
}

/// Where writers are whose position is not that of all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub writers: Vec<i16>,
    pub lows: Vec<i64>,
    pub highs: Vec<i64>,
    /// Where the others are.
    pub low: i64,
    pub high: i64,
    /// The furthest of `high` and `highs`.
    pub end: i64,
}

/// The oldest `limit` events of `range` that this server sends.
pub async fn list_to_send(pool: &Pool, range: &Range, limit: i64) -> Result<Vec<ToSend>> {
    let Range { writers, lows, highs, low, high, end } = range;
    let rows = pool.query(&LIST_TO_SEND, &[writers, lows, highs, low, end, high, &limit]).await?;
    Ok(rows.iter().map(to_send).collect())
}

fn to_send(row: &Row) -> ToSend {
    ToSend {
        nid: EventNid(row.get(0)),
        pos: Position(row.get(1)),
        writer: WriterId(row.get(2)),
        room: RoomNid(row.get(3)),
        sender: row.get(4),
        member: row.get::<_, Option<String>>(5).zip(row.get(6)),
    }
}

/// The oldest `limit` events of each room from a position on, all of them in stream order; each
/// with whether more than `far` of its room are left.
pub async fn list_owed_events(
    pool: &Pool,
    rooms: &[(RoomNid, Position)],
    limit: i64,
    far: i64,
) -> Result<Vec<(ToSend, bool)>> {
    let (rooms, since): (Vec<i32>, Vec<i64>) =
        rooms.iter().map(|(room, since)| (room.0, since.0)).unzip();
    let rows = pool.query(&LIST_OWED_EVENTS, &[&rooms, &since, &limit, &far]).await?;
    Ok(rows.iter().map(|row| (to_send(row), row.get(7))).collect())
}

/// The newest event of each room that this server sends.
pub async fn list_newest(pool: &Pool, rooms: &[RoomNid]) -> Result<Vec<ToSend>> {
    let rooms: Vec<i32> = rooms.iter().map(|room| room.0).collect();
    let rows = pool.query(&LIST_NEWEST_TO_SEND, &[&rooms]).await?;
    Ok(rows.iter().map(to_send).collect())
}

/// Id and version of rooms.
pub async fn list_room_versions(
    pool: &Pool,
    rooms: &[RoomNid],
) -> Result<Vec<(RoomNid, String, String)>> {
    let rooms: Vec<i32> = rooms.iter().map(|room| room.0).collect();
    let rows = pool.query(&LIST_ROOM_VERSIONS, &[&rooms]).await?;
    Ok(rows.iter().map(|row| (RoomNid(row.get(0)), row.get(1), row.get(2))).collect())
}

/// Messages to devices of other servers, as columns.
#[derive(Default)]
pub struct OutboundColumns {
    servers: Vec<String>,
    offsets: Vec<i64>,
    contents: Vec<String>,
}

impl OutboundColumns {
    pub fn push(&mut self, server: &str, offset: i64, content: &str) {
        self.servers.push(server.to_owned());
        self.offsets.push(offset);
        self.contents.push(content.to_owned());
    }
}

/// Adds the messages at `currval + offset`.
pub fn insert_outbound(batch: &mut Batch, rows: OutboundColumns) {
    if !rows.servers.is_empty() {
        batch.add(&INSERT_OUTBOUND, params![rows.servers, rows.offsets, rows.contents]);
    }
}

/// Servers for whose devices messages wait.
pub async fn list_outbound_servers(pool: &Pool) -> Result<Vec<String>> {
    let rows = pool.query(&LIST_OUTBOUND_SERVERS, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The oldest `limit` messages for devices of each server, in order.
pub async fn list_outbound(
    pool: &Pool,
    servers: &[String],
    limit: i64,
) -> Result<Vec<(String, Position, String)>> {
    let rows = pool.query(&LIST_OUTBOUND, &[&servers, &limit]).await?;
    Ok(rows.iter().map(|row| (row.get(0), Position(row.get(1)), row.get(2))).collect())
}

/// A change of somebody's device, or of their cross-signing keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChange {
    pub user: chatd_base::UserNid,
    pub user_id: String,
    /// Empty for cross-signing keys.
    pub device_id: String,
    pub pos: Position,
    /// Where the user's list was before.
    pub previous: Position,
}

/// The oldest `limit` changes after `low`, up to `high`.
pub async fn list_device_changes(
    pool: &Pool,
    low: Position,
    high: Position,
    limit: i64,
) -> Result<Vec<DeviceChange>> {
    let rows = pool.query(&LIST_DEVICE_CHANGES, &[&low.0, &high.0, &limit]).await?;
    let change = |row: &Row| DeviceChange {
        user: chatd_base::UserNid(row.get(0)),
        user_id: row.get(1),
        device_id: row.get(2),
        pos: Position(row.get(3)),
        previous: Position(row.get(4)),
    };
    Ok(rows.iter().map(change).collect())
}
