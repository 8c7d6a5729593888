//! Messages from device to device. Durable until the receiving device has confirmed them.

use chatd_base::UserNid;
use chatd_config::StreamName;
use chatd_storage::{Batch, positions::StreamId, sending, to_device};
use ruma_common::{OwnedDeviceId, OwnedServerName};
use serde::{Deserialize, Serialize};

use crate::{Concerns, Key, Persist, Raw, Stream};

pub struct ToDevice;

impl Stream for ToDevice {
    const NAME: &'static str = "to_device";
    const KIND: StreamName = StreamName::ToDevice;
    const ID: StreamId = StreamId { number: 3, sequence: "stream_to_device" };
    type Row = ToDeviceRow;

    fn concerns(row: &Self::Row) -> Concerns {
        match row.server {
            // Any instance may be the one that sends there.
            Some(_) => Concerns::Everybody,
            None => Concerns::only([Key::User(row.user)]),
        }
    }
}

/// One message for one device, or for devices of another server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ToDeviceRow {
    pub user: UserNid,
    pub device_id: OwnedDeviceId,
    /// `{"sender", "type", "content"}`; for another server the content of an
    /// `m.direct_to_device`.
    pub message: Raw,
    /// Of the devices, if it is not this one; user and device are nobody's then.
    #[serde(default)]
    pub server: Option<OwnedServerName>,
}

impl ToDeviceRow {
    /// A message for a device of this server's.
    pub fn inbox(user: UserNid, device_id: OwnedDeviceId, message: Raw) -> Self {
        Self { user, device_id, message, server: None }
    }

    /// Messages for devices of another server's.
    pub fn outbound(server: OwnedServerName, message: Raw) -> Self {
        Self { user: UserNid(0), device_id: "".into(), message, server: Some(server) }
    }
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
        let mut outbound = sending::OutboundColumns::default();
        for (offset, change) in changes {
            for (row, at) in change.messages.iter().zip(*offset..) {
                let message = row.message.get();
                match &row.server {
                    Some(server) => outbound.push(server.as_str(), at, message),
                    None => inbox.push(row.user, row.device_id.as_str(), at, message),
                }
            }
        }
        to_device::insert_messages(batch, inbox);
        sending::insert_outbound(batch, outbound);
        let txns = changes.iter().filter_map(|(_, change)| Some((change.txn?, change.now_ms)));
        to_device::insert_request_txns(batch, txns.collect());
    }
}
