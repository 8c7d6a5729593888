//! Whose devices or cross-signing keys have changed.

use chatd_base::UserNid;
use chatd_config::StreamName;
use chatd_storage::{Batch, devices, positions::StreamId};
use ruma_common::OwnedUserId;
use serde::{Deserialize, Serialize};

use crate::{Persist, Stream};

pub struct DeviceLists;

impl Stream for DeviceLists {
    const NAME: &'static str = "device_lists";
    const KIND: StreamName = StreamName::DeviceLists;
    const ID: StreamId = StreamId { number: 8, sequence: "stream_device_lists" };
    type Row = DeviceListRow;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceListRow {
    pub user: UserNid,
    pub user_id: OwnedUserId,
    /// Absent if the cross-signing keys changed.
    pub device_id: Option<String>,
    /// The device has been removed, and with it its tokens.
    #[serde(default)]
    pub is_gone: bool,
}

/// A change of keys, and the statements that make it, so that both are durable together.
pub struct KeyChange {
    pub rows: Vec<DeviceListRow>,
    /// Adds what is to be written beside the list itself. May be called more than once.
    pub statements: Box<dyn Fn(&mut Batch) + Send + Sync>,
}

impl Persist for DeviceLists {
    type Change = KeyChange;

    fn rows(change: &KeyChange) -> Vec<DeviceListRow> {
        change.rows.clone()
    }

    fn persist(batch: &mut Batch, changes: &[(i64, &KeyChange)]) {
        let mut columns = devices::ChangeColumns::default();
        for (offset, change) in changes {
            (change.statements)(batch);
            for (row, at) in change.rows.iter().zip(*offset..) {
                columns.push(row.user, row.device_id.as_deref().unwrap_or_default(), at);
            }
        }
        devices::upsert_changes(batch, columns);
    }
}
