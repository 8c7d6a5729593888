//! Devices and their keys, and when they changed.

use std::collections::BTreeMap;

use chatd_base::UserNid;

use crate::{Batch, params, statement::statements};

statements! {
    UPSERT_CHANGES = "INSERT INTO device_list_changes (user_nid, device_id, pos)
                      SELECT u, d, currval('stream_device_lists') + o
                      FROM unnest($1::int4[], $2::text[], $3::int8[]) AS rows(u, d, o)
                      ON CONFLICT (user_nid, device_id) DO UPDATE SET pos = excluded.pos";
}

/// Changes of a commit; of several for the same device the last counts.
#[derive(Default)]
pub struct ChangeColumns(BTreeMap<(i32, String), i64>);

impl ChangeColumns {
    /// `device` is empty for a change of cross-signing keys.
    pub fn push(&mut self, user: UserNid, device: &str, offset: i64) {
        self.0.insert((user.0, device.to_owned()), offset);
    }
}

/// Notes the changes at `currval + offset`.
pub fn upsert_changes(batch: &mut Batch, rows: ChangeColumns) {
    let offsets: Vec<i64> = rows.0.values().copied().collect();
    let (users, devices): (Vec<i32>, Vec<String>) = rows.0.into_keys().unzip();
    batch.add(&UPSERT_CHANGES, params![users, devices, offsets]);
}
