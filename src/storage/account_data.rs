//! Account data and tags.

use std::collections::BTreeMap;

use chatd_base::{RoomNid, UserNid};

use crate::{Batch, params, statement::statements};

statements! {
    UPSERT_ACCOUNT_DATA = "INSERT INTO account_data (user_nid, room, type, pos, content)
                           SELECT u, r, t, currval('stream_account_data') + o, c
                           FROM unnest($1::int4[], $2::int4[], $3::text[], $4::int8[], $5::text[])
                                AS rows(u, r, t, o, c)
                           ON CONFLICT (user_nid, room, type)
                           DO UPDATE SET pos = excluded.pos, content = excluded.content";
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
