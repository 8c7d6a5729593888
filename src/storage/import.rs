//! Rooms that this server has not been in: their rows before somebody here is in them. As long as a
//! room has no heads, nobody sees what is written here.

use chatd_base::{EventNid, KeyNid, RoomNid, ShardId, UserNid};

use crate::{
    Batch, Pool, Result, lane,
    notices::{Notice, Notices},
    params,
    partial::{self, Omitted},
    shards,
    snapshots::NewSnapshot,
    statement::{Statement, statements},
};

statements! {
    INSERT_ROOM = "INSERT INTO rooms (nid, room_id, version, creator, created_ts)
                   VALUES ($1, $2, $3, $4, $5) ON CONFLICT (room_id) DO NOTHING";
    SET_ROOM = "UPDATE rooms SET creator = $2, version = $3 WHERE nid = $1";
    DELETE_STATE = "DELETE FROM current_state WHERE room = $1";
    DELETE_MEMBERS = "DELETE FROM memberships WHERE room = $1 AND NOT is_local";
    DELETE_MEMBER_HISTORY = "DELETE FROM membership_history WHERE room = $1 AND pos = 0";
    INSERT_STATE = "INSERT INTO current_state (room, key, event)
                    SELECT $1, * FROM unnest($2::int8[], $3::int8[])";
    INSERT_MEMBERS = "INSERT INTO memberships (user_nid, room, membership, is_local, sender, event, pos)
                      SELECT u, $1, m, false, sender, event, 0
                      FROM unnest($2::int4[], $3::\"char\"[], $4::int4[], $5::int8[])
                           AS t(u, m, sender, event)";
    INSERT_MEMBER_HISTORY = "INSERT INTO membership_history (user_nid, room, pos, membership, event)
                             SELECT u, $1, 0, m, event
                             FROM unnest($2::int4[], $3::\"char\"[], $4::int8[]) AS t(u, m, event)";
    /// What the state of the room is looked up from, as it was before a later change.
    INSERT_FIRST_DELTA = "INSERT INTO state_delta (room, pos, key, event)
                          SELECT $1, 0, * FROM unnest($2::int8[], $3::int8[])";
    DELETE_FIRST_DELTA = "DELETE FROM state_delta WHERE room = $1 AND pos = 0";
    ADD_STATE = "INSERT INTO current_state (room, key, event)
                 SELECT $1, * FROM unnest($2::int8[], $3::int8[]) ON CONFLICT DO NOTHING";
    ADD_FIRST_DELTA = "INSERT INTO state_delta (room, pos, key, event)
                       SELECT $1, 0, * FROM unnest($2::int8[], $3::int8[]) ON CONFLICT DO NOTHING";
    ADD_MEMBERS = "INSERT INTO memberships (user_nid, room, membership, is_local, sender, event, pos)
                   SELECT u, $1, m, false, sender, event, 0
                   FROM unnest($2::int4[], $3::\"char\"[], $4::int4[], $5::int8[])
                        AS t(u, m, sender, event)
                   ON CONFLICT DO NOTHING";
    ADD_MEMBER_HISTORY = "INSERT INTO membership_history (user_nid, room, pos, membership, event)
                          SELECT u, $1, 0, m, event
                          FROM unnest($2::int4[], $3::\"char\"[], $4::int8[]) AS t(u, m, event)
                          ON CONFLICT DO NOTHING";
    LIST_LOCAL = "SELECT u.user_id, m.membership, m.event
                  FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
                  WHERE m.room = $1 AND m.is_local";
}

/// Makes a room known by its number, and tells the other instances; nothing if it is.
pub async fn insert_room(
    pool: &Pool,
    notices: &Notices,
    room: RoomNid,
    room_id: &str,
    version: &str,
    creator: UserNid,
    created_ts: i64,
) -> Result<()> {
    let mut batch = Batch::new();
    let (id, version) = (room_id.to_owned(), version.to_owned());
    batch.add(&INSERT_ROOM, params![room.0, id, version, creator.0, created_ts]);
    notices.tell(&mut batch, Notice::Room { room_id: room_id.to_owned() });
    pool.commit(batch).await?;
    Ok(())
}

/// The membership of a user of another server.
#[derive(Clone, Debug)]
pub struct RemoteMember {
    pub user: UserNid,
    pub membership: i8,
    pub sender: UserNid,
    pub event: EventNid,
}

/// The state of a room before somebody here has joined it.
#[derive(Debug)]
pub struct FirstState {
    pub room: RoomNid,
    pub version: String,
    pub creator: UserNid,
    pub snapshot: NewSnapshot,
    pub state: Vec<(KeyNid, EventNid)>,
    pub members: Vec<RemoteMember>,
    /// Those of the members who are not needed for anything else have been left out.
    pub omitted: Option<Omitted>,
}

/// Writes the state of a room without heads, in the place of what an earlier attempt has left.
pub async fn write(pool: &Pool, fence: (ShardId, i64), first: FirstState) -> Result<()> {
    let room = first.room.0;
    let mut batch = Batch::new();
    shards::fence(&mut batch, &[fence]);
    batch.add(&SET_ROOM, params![room, first.creator.0, first.version]);
    batch.add(&DELETE_STATE, params![room]);
    batch.add(&DELETE_MEMBERS, params![room]);
    batch.add(&DELETE_MEMBER_HISTORY, params![room]);
    lane::add_new_snapshots(&mut batch, &[&first.snapshot]);
    let (keys, events): (Vec<i64>, Vec<i64>) =
        first.state.iter().map(|(key, event)| (key.0, event.0)).unzip();
    batch.add(&INSERT_STATE, params![room, keys.clone(), events.clone()]);
    batch.add(&DELETE_FIRST_DELTA, params![room]);
    batch.add(&INSERT_FIRST_DELTA, params![room, keys, events]);
    add_members(&mut batch, room, &first.members, (&INSERT_MEMBERS, &INSERT_MEMBER_HISTORY));
    partial::begin(&mut batch, first.room, first.omitted);
    pool.commit(batch).await?;
    Ok(())
}

/// Adds members of other servers, who were left out before, to the first state of a room that is
/// joined without them. What is known of any of them stays as it is; so a repeat has no effect.
pub async fn add(
    pool: &Pool,
    fence: (ShardId, i64),
    room: RoomNid,
    state: &[(KeyNid, EventNid)],
    members: &[RemoteMember],
) -> Result<()> {
    let room = room.0;
    let mut batch = Batch::new();
    shards::fence(&mut batch, &[fence]);
    let (keys, events): (Vec<i64>, Vec<i64>) =
        state.iter().map(|(key, event)| (key.0, event.0)).unzip();
    batch.add(&ADD_STATE, params![room, keys.clone(), events.clone()]);
    batch.add(&ADD_FIRST_DELTA, params![room, keys, events]);
    add_members(&mut batch, room, members, (&ADD_MEMBERS, &ADD_MEMBER_HISTORY));
    pool.commit(batch).await?;
    Ok(())
}

fn add_members(
    batch: &mut Batch,
    room: i32,
    members: &[RemoteMember],
    (now, history): (&'static Statement, &'static Statement),
) {
    let users: Vec<i32> = members.iter().map(|member| member.user.0).collect();
    let letters: Vec<i8> = members.iter().map(|member| member.membership).collect();
    let events: Vec<i64> = members.iter().map(|member| member.event.0).collect();
    let senders: Vec<i32> = members.iter().map(|member| member.sender.0).collect();
    batch.add(now, params![room, users.clone(), letters.clone(), senders, events.clone()]);
    batch.add(history, params![room, users, letters, events]);
}

/// What users of this server are in a room, as the tables have it: (user, letter, event).
pub async fn list_local(pool: &Pool, room: RoomNid) -> Result<Vec<(String, i8, EventNid)>> {
    let rows = pool.query(&LIST_LOCAL, &[&room.0]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), EventNid(row.get(2)))).collect())
}
