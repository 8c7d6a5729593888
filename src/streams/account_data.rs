//! Account data of users, global and per room, tags included.

use chatd_base::{RoomNid, UserNid};
use chatd_config::StreamName;
use chatd_storage::{Batch, account_data, positions::StreamId};
use serde::{Deserialize, Serialize};

use crate::{Concerns, Key, Persist, Raw, Stream};

pub struct AccountData;

impl Stream for AccountData {
    const NAME: &'static str = "account_data";
    const KIND: StreamName = StreamName::AccountData;
    const ID: StreamId = StreamId { number: 4, sequence: "stream_account_data" };
    type Row = AccountDataRow;

    fn concerns(row: &Self::Row) -> Concerns {
        Concerns::only([Key::User(row.user)])
    }
}

/// The new content of one entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccountDataRow {
    pub user: UserNid,
    /// Absent for global data.
    pub room: Option<RoomNid>,
    pub kind: String,
    pub content: Raw,
}

impl Persist for AccountData {
    type Change = AccountDataRow;

    fn rows(change: &AccountDataRow) -> Vec<AccountDataRow> {
        vec![change.clone()]
    }

    fn persist(batch: &mut Batch, changes: &[(i64, &AccountDataRow)]) {
        let mut columns = account_data::Columns::default();
        for (offset, row) in changes {
            let room = row.room.unwrap_or_default();
            columns.push(row.user, room, &row.kind, *offset, row.content.get());
        }
        account_data::upsert(batch, columns);
    }
}
