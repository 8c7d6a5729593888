//! What a change of a user means for all their rooms: a new profile, or the end of the account.

use std::{sync::Arc, time::Duration};

use chatd_base::{Error, Result, Stop, UserNid};
use chatd_storage::{accounts, profiles, room_state};
use chatd_streams::events::Membership;
use ruma_common::{OwnedRoomId, RoomId, UserId};
use serde_json::Map;

use crate::{
    Draft, Rooms,
    membership::{Extra, membership_draft},
};

/// How often unfinished work is looked for, and how many users are worked on each time (R8).
const LOOK_EVERY: Duration = Duration::from_secs(3600);
const USERS_AT_ONCE: i64 = 100;

impl Rooms {
    /// Sends the user's profile of now to all rooms that they are in, if it has changed since. A
    /// room that refuses it is left as it is.
    pub async fn propagate_profile(&self, user: UserNid) -> Result<()> {
        for change in profiles::list_changes(&self.pool, Some(user), 1).await? {
            self.propagate(&change).await?;
        }
        Ok(())
    }

    /// What a server that ended meanwhile has left to do stays noted until it is done.
    async fn propagate(&self, change: &profiles::Change) -> Result<()> {
        let user_id = UserId::parse(&change.user_id).map_err(Error::internal)?;
        let rooms = room_state::list_joined_rooms(&self.pool, change.user).await?;
        let mut content = self.member_content(&user_id).await?;
        content.insert("membership".to_owned(), "join".into());
        let rooms = rooms.into_iter().filter_map(|(_, id)| RoomId::parse(&id).ok());
        let letters = rooms.map(|room| {
            let user = user_id.as_str();
            let draft = Draft::state(user_id.clone(), "m.room.member", user, content.clone());
            (room, draft.bulk())
        });
        let mut has_failed = false;
        for (room, sent) in self.send_all(letters.collect()).await {
            has_failed |= match &sent {
                Err(Error::Refused(refusal)) => refusal.status >= 500,
                Err(Error::Internal(_)) => true,
                Ok(()) => false,
            };
            note("profile not updated in a room", &room, sent);
        }
        if !has_failed {
            profiles::delete_change(&self.pool, change).await?;
        }
        Ok(())
    }

    /// Leaves all rooms, rejects all invites and withdraws all knocks of a user.
    pub async fn leave_all(&self, user: UserNid, user_id: &UserId) -> Result<()> {
        let rooms = room_state::list_rooms_to_leave(&self.pool, user).await?;
        let rooms = rooms.into_iter().filter_map(|id| RoomId::parse(&id).ok());
        let letters = rooms.map(|room| {
            let leave = Membership::Leave;
            let draft = membership_draft(user_id, user_id, leave, Map::new(), Extra::default());
            (room, draft.bulk())
        });
        for (room, left) in self.send_all(letters.collect()).await {
            note("a room was not left", &room, left);
        }
        Ok(())
    }
}

/// Until `stop`: takes closed accounts out of rooms that they are still in, since the server ended
/// before it was done, or since somebody has invited them meanwhile; and sends profiles to rooms
/// that have not heard of them.
pub async fn finish_what_was_begun(rooms: Arc<Rooms>, stop: Stop) {
    loop {
        if let Err(error) = finish_some(&rooms).await {
            tracing::warn!(%error, "could not finish what was begun in the rooms of a user");
        }
        if !stop.sleep(LOOK_EVERY).await {
            return;
        }
    }
}

async fn finish_some(rooms: &Rooms) -> Result<()> {
    for change in profiles::list_changes(&rooms.pool, None, USERS_AT_ONCE).await? {
        rooms.propagate(&change).await?;
    }
    for (user, user_id) in accounts::list_closed_in_rooms(&rooms.pool, USERS_AT_ONCE).await? {
        let user_id = UserId::parse(&user_id).map_err(Error::internal)?;
        rooms.leave_all(user, &user_id).await?;
    }
    Ok(())
}

fn note(what: &str, room: &OwnedRoomId, outcome: Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(room.id = %room, %error, "{what}");
    }
}
