//! An invite of a user of this server.

use chatd_base::{Refusal, Result};
use chatd_rooms::OutOfBand;
use chatd_streams::events::Membership;
use ruma_common::{CanonicalJsonObject, EventId, RoomId, RoomVersionId, ServerName, UserId};
use serde_json::value::RawValue;

use super::{Resident, incompatible, kept_out};
use crate::event::Member;

/// An invite as the inviting server sends it.
pub struct Invited<'a> {
    pub origin: &'a ServerName,
    pub room_id: &'a RoomId,
    pub event_id: &'a EventId,
    pub version: RoomVersionId,
    pub event: CanonicalJsonObject,
    /// What the user is to be shown of the room.
    pub shown: Vec<Box<RawValue>>,
}

/// Events that somebody is shown of a room (R8).
const MOST_SHOWN: usize = 100;

impl Resident {
    /// Signs an invite and tells the user of it; the event with both signatures. In a room that this
    /// server is in, the user is told when the event comes with the others of the room.
    pub async fn invite(&self, invited: Invited<'_>) -> Result<CanonicalJsonObject> {
        let Invited { origin, room_id, event_id, version, event, mut shown } = invited;
        let rules = version.rules().ok_or_else(|| incompatible(&version))?;
        let member = Member::read(&event, &version, room_id)?;
        if member.membership != Membership::Invite {
            return Err(Refusal::invalid_param("the event is no `invite`").into());
        }
        if member.sender.server_name() != origin {
            let message = format!("{} is not a user of {origin}", member.sender);
            return Err(Refusal::forbidden(message).into());
        }
        if member.event_id != event_id {
            return Err(Refusal::invalid_param("the event has another id than the path").into());
        }
        if rules.authorization.room_create_event_id_as_room_id == room_id.server_name().is_some() {
            return Err(Refusal::invalid_param("the room's id is of another version").into());
        }
        self.check_invited(&member.user).await?;
        let rooms = &self.deps.rooms;
        let is_in = match rooms.owner.door(room_id, origin).await {
            Ok(door) if door.is_joined && !door.admits => return Err(kept_out()),
            Ok(door) => door.is_joined,
            Err(error) if error.errcode() == Some("M_FORBIDDEN") => false,
            Err(error) => return Err(error),
        };
        let mut event = self.check(event, &version).await?;
        rooms.countersign(&version, &mut event)?;
        if !is_in {
            shown.truncate(MOST_SHOWN);
            let note = OutOfBand { version, event: event.clone(), shown };
            rooms.owner.note(room_id, note).await?;
        }
        Ok(event)
    }

    /// Refuses invites of users whom nobody may invite.
    async fn check_invited(&self, user: &UserId) -> Result<()> {
        if user.server_name() != self.deps.config.server_name {
            return Err(Refusal::invalid_param("the invited user is not of this server").into());
        }
        if self.deps.config.rooms.block_non_admin_invites {
            return Err(Refusal::forbidden("this server does not accept room invites").into());
        }
        match self.deps.users.accounts.find(user.as_str()).await? {
            Some(account) if !account.deactivated => Ok(()),
            _ => Err(Refusal::forbidden(format!("{user} cannot be invited")).into()),
        }
    }
}
