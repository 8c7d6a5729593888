//! Changes of the directory: aliases, and which rooms are published.

use chatd_base::{Refusal, Requester, Result};
use chatd_storage::{directory, rooms};
use chatd_streams::events::Membership;
use ruma_common::{RoomAliasId, RoomId};

use crate::Rooms;

/// Whoever may send this state may change what the directory says of a room.
const GUARD: &str = "m.room.canonical_alias";

impl Rooms {
    /// Lets a local alias point to a room. Refuses aliases that are taken, and users who are not
    /// in the room where the config asks for that.
    pub async fn add_alias(
        &self,
        who: &Requester,
        alias: &RoomAliasId,
        room_id: &RoomId,
    ) -> Result<()> {
        if *alias.server_name() != *self.config.server_name {
            return Err(Refusal::invalid_param("the alias belongs to another server").into());
        }
        let room = rooms::get(&self.pool, room_id.as_str())
            .await?
            .ok_or_else(|| Refusal::not_found("unknown room"))?;
        let membership = rooms::get_membership(&self.pool, who.user, room.nid).await?;
        let is_member = membership == Some(Membership::Join.letter());
        if self.config.rooms.require_membership_for_aliases && !who.is_admin && !is_member {
            return Err(Refusal::forbidden("you must be in the room to give it an alias").into());
        }
        if !directory::insert_alias(&self.pool, alias.as_str(), room.nid, who.user).await? {
            let message = format!("room alias {alias} already exists");
            return Err(Refusal::new(409, "M_UNKNOWN", message).into());
        }
        Ok(())
    }

    /// Removes a local alias; for those who made it, admins, and who may change the room's
    /// canonical alias.
    pub async fn remove_alias(&self, who: &Requester, alias: &RoomAliasId) -> Result<()> {
        let unknown = || Refusal::not_found(format!("room alias {alias} not found"));
        let (room_id, creator) =
            directory::get_alias_owner(&self.pool, alias.as_str()).await?.ok_or_else(unknown)?;
        let room_id = RoomId::parse(&room_id).map_err(chatd_base::Error::internal)?;
        let may = creator == who.user
            || who.is_admin
            || self.may_send_state(&who.user_id, &room_id, GUARD).await?;
        if !may {
            return Err(Refusal::forbidden("you may not delete this alias").into());
        }
        directory::delete_alias(&self.pool, alias.as_str()).await?;
        Ok(())
    }

    /// Puts a room into the directory or takes it out.
    pub async fn publish(&self, who: &Requester, room_id: &RoomId, is_public: bool) -> Result<()> {
        let room = rooms::get(&self.pool, room_id.as_str())
            .await?
            .ok_or_else(|| Refusal::not_found("unknown room"))?;
        let membership = rooms::get_membership(&self.pool, who.user, room.nid).await?;
        let may = who.is_admin
            || membership == Some(Membership::Join.letter())
                && self.may_send_state(&who.user_id, room_id, GUARD).await?;
        if !may {
            let message = "you may not change what the directory says of this room";
            return Err(Refusal::forbidden(message).into());
        }
        directory::set_published(&self.pool, room_id.as_str(), is_public).await?;
        self.reader.directory_changed();
        Ok(())
    }
}
