//! Messages that wait for a device, and transaction ids of requests.

use chatd_base::UserNid;
use uuid::Uuid;

use crate::{Batch, params, statement::statements};

statements! {
    INSERT_MESSAGES = "INSERT INTO to_device_inbox (user_nid, device_id, pos, message)
                       SELECT u, d, currval('stream_to_device') + o, m
                       FROM unnest($1::int4[], $2::text[], $3::int8[], $4::text[]) AS t(u, d, o, m)";
    INSERT_REQUEST_TXNS = "INSERT INTO request_txns (digest, added_ts)
                           SELECT * FROM unnest($1::uuid[], $2::int8[])";
}

/// Messages of a commit, as columns.
#[derive(Default)]
pub struct InboxColumns {
    users: Vec<i32>,
    devices: Vec<String>,
    offsets: Vec<i64>,
    messages: Vec<String>,
}

impl InboxColumns {
    pub fn push(&mut self, user: UserNid, device: &str, offset: i64, message: &str) {
        self.users.push(user.0);
        self.devices.push(device.to_owned());
        self.offsets.push(offset);
        self.messages.push(message.to_owned());
    }
}

/// Adds the messages at `currval + offset`.
pub fn insert_messages(batch: &mut Batch, rows: InboxColumns) {
    batch.add(&INSERT_MESSAGES, params![rows.users, rows.devices, rows.offsets, rows.messages]);
}

/// Claims transaction ids; one that is taken already fails the batch (unique violation).
pub fn insert_request_txns(batch: &mut Batch, txns: Vec<(Uuid, i64)>) {
    if !txns.is_empty() {
        let (digests, times): (Vec<Uuid>, Vec<i64>) = txns.into_iter().unzip();
        batch.add(&INSERT_REQUEST_TXNS, params![digests, times]);
    }
}
