//! Account data and tags.

use std::collections::BTreeMap;

use chatd_base::{Position, RoomNid, UserNid};

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    UPSERT_ACCOUNT_DATA = "INSERT INTO account_data (user_nid, room, type, pos, content)
                           SELECT u, r, t, currval('stream_account_data') + o, c
                           FROM unnest($1::int4[], $2::int4[], $3::text[], $4::int8[], $5::text[])
                                AS rows(u, r, t, o, c)
                           ON CONFLICT (user_nid, room, type)
                           DO UPDATE SET pos = excluded.pos, content = excluded.content";

    GET_ACCOUNT_DATA = "SELECT content FROM account_data
                        WHERE user_nid = $1 AND room = $2 AND type = $3";
    LIST_GLOBAL = "SELECT user_nid, content FROM account_data
                   WHERE user_nid = ANY($1::int4[]) AND room = 0 AND type = $2";
    LIST_ACCOUNT_DATA = "SELECT room, type, pos, content FROM account_data
                         WHERE user_nid = $1 AND pos > $2 ORDER BY pos";
}

/// Entries of a commit; of several for the same key the last counts.
#[derive(Default)]
pub struct Columns(BTreeMap<(i32, i32, String), (i64, String)>);

impl Columns {
    /// `room` is 0 for global data.
    pub fn push(&mut self, user: UserNid, room: RoomNid, kind: &str, offset: i64, content: &str) {
        self.0.insert((user.0, room.0, kind.to_owned()), (offset, content.to_owned()));
    }
}

/// Writes the entries at `currval + offset`.
pub fn upsert(batch: &mut Batch, rows: Columns) {
    let (mut users, mut rooms, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    let (mut offsets, mut contents) = (Vec::new(), Vec::new());
    for ((user, room, kind), (offset, content)) in rows.0 {
        users.push(user);
        rooms.push(room);
        kinds.push(kind);
        offsets.push(offset);
        contents.push(content);
    }
    batch.add(&UPSERT_ACCOUNT_DATA, params![users, rooms, kinds, offsets, contents]);
}

/// One entry as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// 0 for global data.
    pub room: RoomNid,
    pub kind: String,
    pub pos: Position,
    pub content: String,
}

/// The content of one entry; `room` is 0 for global data.
pub async fn get(pool: &Pool, user: UserNid, room: RoomNid, kind: &str) -> Result<Option<String>> {
    let row = pool.query_opt(&GET_ACCOUNT_DATA, &[&user.0, &room.0, &kind]).await?;
    Ok(row.map(|row| row.get(0)))
}

/// Global entries of one type of many users, by user.
pub async fn list_global(
    pool: &Pool,
    users: &[UserNid],
    kind: &str,
) -> Result<Vec<(UserNid, String)>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_GLOBAL, &[&users, &kind]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}

/// Everything of a user, global and of all rooms, that was written after `after`. There is no upper
/// bound: an entry is overwritten, so that one which has changed since the reader's position would
/// be missing, not old.
pub async fn list(pool: &Pool, user: UserNid, after: Position) -> Result<Vec<Stored>> {
    let rows = pool.query(&LIST_ACCOUNT_DATA, &[&user.0, &after.0]).await?;
    let stored = |row: &crate::Row| Stored {
        room: RoomNid(row.get(0)),
        kind: row.get(1),
        pos: Position(row.get(2)),
        content: row.get(3),
    };
    Ok(rows.iter().map(stored).collect())
}
