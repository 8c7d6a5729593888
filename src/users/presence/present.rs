//! Who is there now: what a server is told that has just come to share a room with somebody here.

use chatd_base::{Result, RoomNid, UserNid};
use chatd_config::PresenceMode;
use chatd_storage::presence::{self, Stored};
use chatd_streams::presence::{PresenceRow, PresenceState};
use ruma_common::UserId;

use super::Presence;

/// Users that are told of at a time (R8).
const MOST: i64 = 10_000;

/// What the table says of somebody. `None` for what cannot be read.
pub(super) fn row(stored: Stored, name: Option<&str>) -> Option<PresenceRow> {
    Some(PresenceRow {
        user: stored.user,
        user_id: UserId::parse(name?).ok()?,
        state: PresenceState::from_letter(stored.state)?,
        status_msg: stored.status_msg,
        currently_active: stored.currently_active,
        last_active_ts: stored.last_active_ts,
    })
}

impl Presence {
    /// Users of this server who are in one of `rooms` and not offline, with the room. Nobody where
    /// presence is not followed. Two queries at most.
    pub async fn list_present_in(&self, rooms: &[RoomNid]) -> Result<Vec<(RoomNid, PresenceRow)>> {
        if rooms.is_empty() || self.mode() != PresenceMode::Enabled {
            return Ok(Vec::new());
        }
        let found = presence::list_present_in(&self.0.deps.pool, rooms, MOST).await?;
        let (rooms, stored): (Vec<RoomNid>, Vec<Stored>) = found.into_iter().unzip();
        let rows = self.named(stored).await?;
        Ok(rooms.into_iter().zip(rows).filter_map(|(room, row)| Some((room, row?))).collect())
    }

    /// The presence of those of `users` who are not offline; as [`Presence::list_present_in`].
    pub async fn list_present(&self, users: &[UserNid]) -> Result<Vec<PresenceRow>> {
        if users.is_empty() || self.mode() != PresenceMode::Enabled {
            return Ok(Vec::new());
        }
        let stored = presence::list(&self.0.deps.pool, users).await?;
        let rows = self.named(stored).await?.into_iter().flatten();
        Ok(rows.filter(|row| row.state != PresenceState::Offline).collect())
    }

    async fn named(&self, stored: Vec<Stored>) -> Result<Vec<Option<PresenceRow>>> {
        let users: Vec<UserNid> = stored.iter().map(|stored| stored.user).collect();
        let names = self.0.deps.interner.user_names(&users).await?;
        let named = stored.into_iter().zip(names);
        Ok(named.map(|(stored, name)| row(stored, name.as_deref())).collect())
    }
}
