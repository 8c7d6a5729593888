//! Messages that wait for a device, and transaction ids of requests.

use chatd_base::{Position, UserNid};
use uuid::Uuid;

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    INSERT_MESSAGES = "INSERT INTO to_device_inbox (user_nid, device_id, pos, message)
                       SELECT u, d, currval('stream_to_device') + o, m
                       FROM unnest($1::int4[], $2::text[], $3::int8[], $4::text[]) AS t(u, d, o, m)";
    INSERT_REQUEST_TXNS = "INSERT INTO request_txns (digest, added_ts)
                           SELECT * FROM unnest($1::uuid[], $2::int8[])";

    LIST_MESSAGES = "SELECT pos, message FROM to_device_inbox
                     WHERE user_nid = $1 AND device_id = $2 AND pos > $3 AND pos <= $4
                     ORDER BY pos LIMIT $5";
    DELETE_MESSAGES = "WITH noted AS (UPDATE to_device_delivered SET removed = greatest(removed, $3)
                                      WHERE user_nid = $1 AND device_id = $2)
                       DELETE FROM to_device_inbox
                       WHERE user_nid = $1 AND device_id = $2 AND pos <= $3";
    DELETE_OLD_TXNS = "DELETE FROM request_txns WHERE added_ts < $1";
    HAS_REQUEST_TXN = "SELECT 1 FROM request_txns WHERE digest = $1";
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

/// The oldest `limit` messages for a device in `(after, upto]`, in order.
pub async fn list(
    pool: &Pool,
    user: UserNid,
    device: &str,
    after: Position,
    upto: Position,
    limit: i64,
) -> Result<Vec<(Position, String)>> {
    let rows = pool.query(&LIST_MESSAGES, &[&user.0, &device, &after.0, &upto.0, &limit]).await?;
    Ok(rows.iter().map(|row| (Position(row.get(0)), row.get(1))).collect())
}

/// Forgets what the device has confirmed; returns how many messages that were.
pub async fn delete_upto(pool: &Pool, user: UserNid, device: &str, upto: Position) -> Result<u64> {
    pool.execute(&DELETE_MESSAGES, &[&user.0, &device, &upto.0]).await
}

/// Forgets transaction ids from before `before_ms`.
pub async fn delete_request_txns(pool: &Pool, before_ms: i64) -> Result<u64> {
    pool.execute(&DELETE_OLD_TXNS, &[&before_ms]).await
}

/// Whether a request with this digest has taken effect.
pub async fn has_request_txn(pool: &Pool, digest: Uuid) -> Result<bool> {
    Ok(pool.query_opt(&HAS_REQUEST_TXN, &[&digest]).await?.is_some())
}
