//! The marker of what has been read in full, `m.fully_read` in the account data of a room. It never
//! moves backwards, whichever instances are asked to move it: the writer of account data does.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Result, UserNid};
use chatd_config::StreamName;
use chatd_storage::receipts::Marker;
use chatd_streams::level;
use ruma_common::{OwnedEventId, OwnedRoomId};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};

use crate::{account_data::AccountData, receipts::Goal};

pub(crate) const FULLY_READ: &str = "m.fully_read";
/// The call by which others have it moved.
const CALL: &str = "users.move_fully_read";

/// Up to which event a user has read a room.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct FullyRead {
    pub user: UserNid,
    pub room_id: OwnedRoomId,
    pub event_id: OwnedEventId,
}

/// Starts to answer the calls of other instances.
pub(crate) fn answer_calls(account_data: &Arc<AccountData>) {
    let weak = Arc::downgrade(account_data);
    account_data.deps.streams.calls.on(CALL, move |body| {
        let account_data = weak.upgrade();
        async move {
            let account_data = account_data.ok_or_else(|| Refusal::not_owner(String::new()))?;
            let mark = serde_json::from_slice(&body)
                .map_err(|error| Refusal::bad_json(format!("no marker: {error}")))?;
            account_data.move_fully_read_here(&mark).await.map(|()| Vec::from("{}"))
        }
    });
}

impl AccountData {
    /// Moves the marker to an event; one that is further already stays. On return it is durable, and
    /// known on this instance.
    pub(crate) async fn move_fully_read(&self, mark: &FullyRead) -> Result<()> {
        let streams = &self.deps.streams;
        if streams.writes(StreamName::AccountData) {
            return self.move_fully_read_here(mark).await;
        }
        let body = serde_json::to_vec(mark).map_err(Error::internal)?;
        streams.others.ask_writer(StreamName::AccountData, CALL, body.into()).await?;
        level(streams, &self.deps.notices).await;
        Ok(())
    }

    async fn move_fully_read_here(&self, mark: &FullyRead) -> Result<()> {
        let FullyRead { user, room_id, event_id } = mark;
        let _line = self.locks.of(*user).await;
        let goal =
            Goal::get(&self.deps.pool, room_id, *user, event_id, Marker::FullyRead, "").await?;
        if goal.is_passed {
            return Ok(());
        }
        let content = to_raw_value(&json!({ "event_id": event_id })).map_err(Error::internal)?;
        self.write(*user, goal.room, FULLY_READ, content.into()).await
    }
}
