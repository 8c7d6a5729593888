//! Presence of users.

use chatd_base::UserNid;
use chatd_config::StreamName;
use chatd_storage::{Batch, positions::StreamId, presence};
use ruma_common::OwnedUserId;
use serde::{Deserialize, Serialize};

use crate::{Persist, Stream};

pub struct Presence;

impl Stream for Presence {
    const NAME: &'static str = "presence";
    const KIND: StreamName = StreamName::Presence;
    const ID: StreamId = StreamId { number: 6, sequence: "stream_presence" };
    type Row = PresenceRow;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PresenceState {
    Online,
    Unavailable,
    Offline,
    Busy,
}

impl PresenceState {
    /// The word in the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Unavailable => "unavailable",
            Self::Offline => "offline",
            Self::Busy => "busy",
        }
    }

    /// The letter in the table.
    pub fn letter(self) -> i8 {
        match self {
            Self::Online => b'o' as i8,
            Self::Unavailable => b'u' as i8,
            Self::Offline => b'f' as i8,
            Self::Busy => b'b' as i8,
        }
    }

    /// The state that a letter in the table stands for.
    pub fn from_letter(letter: i8) -> Option<Self> {
        [Self::Online, Self::Unavailable, Self::Offline, Self::Busy]
            .into_iter()
            .find(|state| state.letter() == letter)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PresenceRow {
    pub user: UserNid,
    pub user_id: OwnedUserId,
    pub state: PresenceState,
    pub status_msg: Option<String>,
    pub currently_active: bool,
    pub last_active_ts: i64,
}

impl Persist for Presence {
    type Change = PresenceRow;

    fn rows(change: &PresenceRow) -> Vec<PresenceRow> {
        vec![change.clone()]
    }

    fn persist(batch: &mut Batch, changes: &[(i64, &PresenceRow)]) {
        let mut columns = presence::Columns::default();
        for (offset, row) in changes {
            columns.push(presence::Entry {
                user: row.user,
                offset: *offset,
                state: row.state.letter(),
                currently_active: row.currently_active,
                last_active_ts: row.last_active_ts,
                status_msg: row.status_msg.as_deref(),
            });
        }
        presence::upsert(batch, columns);
    }
}
