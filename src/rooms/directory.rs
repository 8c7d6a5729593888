//! Changes of the directory: aliases, and which rooms are published.

use chatd_base::{Refusal, Requester, Result};
use chatd_storage::{Batch, directory, notices::Notice, rooms};
use chatd_streams::events::Membership;
use ruma_common::{RoomAliasId, RoomId, UserId};
use serde_json::{Map, Value};

use crate::{Rooms, owner::lock, seal::Draft};

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
        self.check_alias_rules(&who.user_id, room_id, alias)?;
        if !directory::insert_alias(&self.pool, alias.as_str(), room.nid, who.user).await? {
            let message = format!("room alias {alias} already exists");
            return Err(Refusal::new(409, "M_UNKNOWN", message).into());
        }
        Ok(())
    }

    /// Refuses aliases that the config does not let the user give.
    pub(crate) fn check_alias_rules(
        &self,
        user: &UserId,
        room_id: &RoomId,
        alias: &RoomAliasId,
    ) -> Result<(), Refusal> {
        let rules = &self.config.rooms;
        if rules.may_create_alias(user.as_str(), room_id.as_str(), alias.as_str()) {
            return Ok(());
        }
        Err(Refusal::forbidden("this server does not let you create that alias"))
    }

    /// Refuses rooms that the config does not let the user publish.
    pub(crate) fn check_publication_rules(
        &self,
        user: &UserId,
        room_id: &RoomId,
        aliases: &[&str],
    ) -> Result<(), Refusal> {
        if self.config.rooms.may_publish(user.as_str(), room_id.as_str(), aliases) {
            return Ok(());
        }
        Err(Refusal::forbidden("this server does not let you publish that room"))
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
        // Before the alias goes, so that a repeat of the request finishes what a crash cut off.
        self.forget_canonical(&who.user_id, &room_id, alias).await?;
        directory::delete_alias(&self.pool, alias.as_str()).await?;
        Ok(())
    }

    /// Takes an alias out of the room's `m.room.canonical_alias`, if the user may.
    async fn forget_canonical(
        &self,
        user: &UserId,
        room_id: &RoomId,
        alias: &RoomAliasId,
    ) -> Result<()> {
        let slot = self.owner.slot(room_id).await?;
        let content: Option<Map<String, Value>> = {
            let live = lock(&slot).lock();
            let body = live.body(GUARD, "");
            body.and_then(|body| serde_json::from_str(body.content.get()).ok())
        };
        let Some(content) = content.and_then(|content| without(content, alias.as_str())) else {
            return Ok(());
        };
        match self.send(room_id, &Draft::state(user.to_owned(), GUARD, "", content)).await {
            Err(error) if error.errcode() == Some("M_FORBIDDEN") => Ok(()),
            sent => sent.map(|_| ()),
        }
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
        if is_public {
            let aliases = directory::list_aliases(&self.pool, room.nid).await?;
            let aliases: Vec<&str> = aliases.iter().map(String::as_str).collect();
            self.check_publication_rules(&who.user_id, room_id, &aliases)?;
        }
        let mut batch = Batch::new();
        directory::set_published(&mut batch, room_id.as_str(), is_public);
        self.users.deps.notices.tell(&mut batch, Notice::Directory);
        self.pool.commit(batch).await?;
        self.reader.directory_changed();
        Ok(())
    }
}

/// An `m.room.canonical_alias` that no longer has `alias`; `None` if it does not have it now.
fn without(mut content: Map<String, Value>, alias: &str) -> Option<Map<String, Value>> {
    let mut has_it = false;
    if content.get("alias").is_some_and(|given| given == alias) {
        content.remove("alias");
        has_it = true;
    }
    if let Some(Value::Array(more)) = content.get_mut("alt_aliases") {
        let before = more.len();
        more.retain(|given| given != alias);
        has_it |= more.len() < before;
        if more.is_empty() {
            content.remove("alt_aliases");
        }
    }
    has_it.then_some(content)
}
