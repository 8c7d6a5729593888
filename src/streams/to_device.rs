//! Messages from device to device. Durable until the receiving device has confirmed them.

use chatd_base::UserNid;
use chatd_config::StreamName;
use chatd_storage::{Batch, positions::StreamId, to_device};
use ruma_common::OwnedDeviceId;
use serde::{Deserialize, Serialize};

use crate::{Concerns, Key, Persist, Raw, Stream};

pub struct ToDevice;

impl Stream for ToDevice {
    const NAME: &'static str = "to_device";
    const KIND: StreamName = StreamName::ToDevice;
    const ID: StreamId = StreamId { number: 3, sequence: "stream_to_device" };
    type Row = ToDeviceRow;

    fn concerns(row: &Self::Row) -> Concerns {
        Concerns::only([Key::User(row.user)])
    }
}

/// One message for one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ToDeviceRow {
    pub user: UserNid,
    pub device_id: OwnedDeviceId,
    /// `{"sender", "type", "content"}`.
    pub message: Raw,
}

/// All messages of one request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Send {
    pub messages: Vec<ToDeviceRow>,
    /// Digest of sender, device and transaction id; a repeat is a unique violation.
    pub txn: Option<uuid::Uuid>,
    pub now_ms: i64,
}

impl Persist for ToDevice {
    type Change = Send;

    fn rows(change: &Send) -> Vec<ToDeviceRow> {
        change.messages.clone()
    }

    fn persist(batch: &mut Batch, changes: &[(i64, &Send)]) {
        let mut inbox = to_device::InboxColumns::default();
        for (offset, change) in changes {
            for (message, at) in change.messages.iter().zip(*offset..) {
                inbox.push(message.user, message.device_id.as_str(), at, message.message.get());
            }
        }
        to_device::insert_messages(batch, inbox);
        let txns = changes.iter().filter_map(|(_, change)| Some((change.txn?, change.now_ms)));
        to_device::insert_request_txns(batch, txns.collect());
    }
}
