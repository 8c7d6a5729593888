//! The last known presence of each user.

use std::collections::BTreeMap;

use chatd_base::UserNid;

use crate::{Batch, params, statement::statements};

statements! {
    UPSERT_PRESENCE = "INSERT INTO presence
                           (user_nid, pos, state, currently_active, last_active_ts, status_msg)
                       SELECT u, currval('stream_presence') + o, s, a, l, m
                       FROM unnest($1::int4[], $2::int8[], $3::\"char\"[], $4::bool[], $5::int8[],
                                   $6::text[]) AS rows(u, o, s, a, l, m)
                       ON CONFLICT (user_nid)
                       DO UPDATE SET pos = excluded.pos, state = excluded.state,
                                     currently_active = excluded.currently_active,
                                     last_active_ts = excluded.last_active_ts,
                                     status_msg = excluded.status_msg";
}

/// One user's presence that is to be written.
pub struct Entry<'a> {
    pub user: UserNid,
    pub offset: i64,
    pub state: i8,
    pub currently_active: bool,
    pub last_active_ts: i64,
    pub status_msg: Option<&'a str>,
}

/// Presence of a commit; of several for the same user the last counts.
#[derive(Default)]
pub struct Columns<'a>(BTreeMap<i32, Entry<'a>>);

impl<'a> Columns<'a> {
    pub fn push(&mut self, entry: Entry<'a>) {
        self.0.insert(entry.user.0, entry);
    }
}

/// Writes the entries at `currval + offset`.
pub fn upsert(batch: &mut Batch, rows: Columns<'_>) {
    let (mut users, mut offsets, mut states) = (vec![], vec![], vec![]);
    let (mut active, mut times, mut messages) = (vec![], vec![], vec![]);
    for (user, entry) in rows.0 {
        users.push(user);
        offsets.push(entry.offset);
        states.push(entry.state);
        active.push(entry.currently_active);
        times.push(entry.last_active_ts);
        messages.push(entry.status_msg.map(str::to_owned));
    }
    batch.add(&UPSERT_PRESENCE, params![users, offsets, states, active, times, messages]);
}
