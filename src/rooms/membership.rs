//! Joining, leaving, inviting, knocking, kicking and banning.

use chatd_base::{Refusal, Requester, Result};
use chatd_storage::{Batch, notices::Notice, rooms};
use chatd_streams::events::Membership;
use ruma_common::{OwnedRoomId, RoomId, RoomOrAliasId, UserId};
use ruma_state_res::events::RoomPowerLevelsIntField;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{Rooms, live::Live, owner::lock, seal::Draft};

/// What a membership request may carry.
#[derive(Debug, Default)]
pub struct Extra {
    pub reason: Option<String>,
    pub is_direct: bool,
    /// One of many, which must not delay what people wait for.
    pub is_bulk: bool,
    /// The same in a repeat of the request, which gets the event of the first.
    pub key: Option<Uuid>,
}

impl Rooms {
    /// The room that an id or a local alias names. Refuses what this server does not know.
    pub async fn resolve(&self, room: &RoomOrAliasId) -> Result<OwnedRoomId> {
        match <&RoomId>::try_from(room) {
            Ok(room_id) => Ok(room_id.to_owned()),
            Err(alias) => {
                let found = rooms::get_alias(&self.pool, alias.as_str()).await?;
                let room_id = found.ok_or_else(|| {
                    Refusal::not_found(format!("the room alias {alias} is not known here"))
                })?;
                OwnedRoomId::try_from(room_id).map_err(chatd_base::Error::internal)
            }
        }
    }

    /// Makes the requester a member. Does nothing for a user who is one.
    pub async fn join(&self, who: &Requester, room_id: &RoomId, extra: Extra) -> Result<()> {
        let slot = self.owner.slot(room_id).await.map_err(not_here)?;
        if membership(&lock(&slot).lock(), &who.user_id) == Some(Membership::Join) {
            return Ok(());
        }
        let mut content = self.member_content(&who.user_id).await?;
        content.extend(self.authorisation(who, room_id).await?);
        self.set_membership(&who.user_id, &who.user_id, room_id, Membership::Join, content, extra)
            .await?;
        self.inherit(who, room_id).await;
        Ok(())
    }

    /// What a join of a restricted room has to say beside the profile: the local member in whose
    /// name it is allowed, if the user is in one of the rooms that open it.
    pub(crate) async fn authorisation(
        &self,
        who: &Requester,
        room_id: &RoomId,
    ) -> Result<Map<String, Value>> {
        match self.join_authorisation(&who.user_id, room_id).await {
            // The rules refuse it, and say why.
            Err(error) if error.errcode().is_some_and(|code| code != Refusal::NOT_OWNER) => {
                Ok(Map::new())
            }
            done => done,
        }
    }

    /// The same for any user whose membership is in memory. Refuses if this server cannot tell
    /// whether the user may join, if it may not, or if nobody here can vouch for it.
    pub(crate) async fn join_authorisation(
        &self,
        user: &UserId,
        room_id: &RoomId,
    ) -> Result<Map<String, Value>> {
        let mut content = Map::new();
        let slot = self.owner.slot(room_id).await?;
        let (current, restricted) = {
            let live = lock(&slot).lock();
            (membership(&live, user), restriction(&live))
        };
        let is_in = matches!(current, Some(Membership::Invite | Membership::Join));
        let Some(rooms) = restricted.filter(|_| !is_in) else { return Ok(content) };
        let ids: Vec<&str> = rooms.iter().map(String::as_str).collect();
        let nid = self.users.deps.interner.known_users(&[user.as_str()]).await?;
        let is_member = match nid.first().copied().flatten() {
            Some(nid) => rooms::is_joined_to_any(&self.pool, nid, &ids).await?,
            None => false,
        };
        if !is_member {
            let is_here = user.server_name() == self.owner.signer.server_name;
            if !is_here && rooms::list_with_locals(&self.pool, &ids).await?.len() < ids.len() {
                return Err(Refusal::new(
                    400,
                    "M_UNABLE_TO_AUTHORISE_JOIN",
                    "this server is not in all rooms that open this one",
                )
                .into());
            }
            return Err(
                Refusal::forbidden("you are in none of the rooms that open this one").into()
            );
        }
        let authoriser = self.authorising_user(&lock(&slot).lock());
        let authoriser = authoriser.ok_or_else(|| {
            let message = "nobody on this server may let others into the room";
            Refusal::new(400, "M_UNABLE_TO_GRANT_JOIN", message)
        })?;
        content.insert("join_authorised_via_users_server".to_owned(), authoriser.into());
        Ok(content)
    }

    /// Asks to be let in.
    pub async fn knock(&self, who: &Requester, room_id: &RoomId, extra: Extra) -> Result<()> {
        self.owner.slot(room_id).await.map_err(not_here)?;
        let content = self.member_content(&who.user_id).await?;
        self.set_membership(&who.user_id, &who.user_id, room_id, Membership::Knock, content, extra)
            .await
    }

    /// Leaves, or rejects an invite, or withdraws a knock.
    pub async fn leave(&self, who: &UserId, room_id: &RoomId, extra: Extra) -> Result<()> {
        self.set_membership(who, who, room_id, Membership::Leave, Map::new(), extra).await
    }

    /// Invites a user of this server; one of another has to hear of it first.
    pub async fn invite(
        &self,
        who: &Requester,
        user: &UserId,
        room_id: &RoomId,
        extra: Extra,
    ) -> Result<()> {
        self.check_may_invite(who)?;
        let content = self.member_content(user).await?;
        self.set_membership(&who.user_id, user, room_id, Membership::Invite, content, extra).await
    }

    /// Removes a user who is in the room, invited or knocking.
    pub async fn kick(
        &self,
        who: &UserId,
        user: &UserId,
        room_id: &RoomId,
        extra: Extra,
    ) -> Result<()> {
        let current = self.current(user, room_id).await?;
        if !matches!(current, Some(Membership::Join | Membership::Invite | Membership::Knock)) {
            let refusal = Refusal::forbidden("the target user is not in the room");
            return self.refuse_new(extra.key, refusal).await;
        }
        self.set_membership(who, user, room_id, Membership::Leave, Map::new(), extra).await
    }

    /// Bans a user, whether or not they are in the room.
    pub async fn ban(
        &self,
        who: &UserId,
        user: &UserId,
        room_id: &RoomId,
        extra: Extra,
    ) -> Result<()> {
        self.set_membership(who, user, room_id, Membership::Ban, Map::new(), extra).await
    }

    /// Lifts a ban.
    pub async fn unban(
        &self,
        who: &UserId,
        user: &UserId,
        room_id: &RoomId,
        extra: Extra,
    ) -> Result<()> {
        if self.current(user, room_id).await? != Some(Membership::Ban) {
            let refusal = Refusal::forbidden("the target user is not banned");
            return self.refuse_new(extra.key, refusal).await;
        }
        self.set_membership(who, user, room_id, Membership::Leave, Map::new(), extra).await
    }

    /// Hides a room that the user has left.
    pub async fn forget(&self, who: &Requester, room_id: &RoomId) -> Result<()> {
        let Some(room) = rooms::get(&self.pool, room_id.as_str()).await? else {
            return Err(Refusal::unknown(format!("the room {room_id} is not known")).into());
        };
        let mut batch = Batch::new();
        let forgotten = rooms::set_forgotten(&mut batch, who.user, room.nid);
        let notice = Notice::Forgotten { user: who.user, room_id: room_id.to_string() };
        self.users.deps.notices.tell(&mut batch, notice);
        if self.pool.commit(batch).await?.of(forgotten).is_empty() {
            return Err(Refusal::unknown("you can only forget a room that you have left").into());
        }
        self.reader.look_again(who.user, room_id);
        Ok(())
    }

    /// Sends the membership event.
    async fn set_membership(
        &self,
        sender: &UserId,
        user: &UserId,
        room_id: &RoomId,
        membership: Membership,
        content: Map<String, Value>,
        extra: Extra,
    ) -> Result<()> {
        let draft = membership_draft(sender, user, membership, content, extra);
        self.send(room_id, &draft).await.map(|_| ())
    }

    /// Refuses a request, unless it is the repeat of one that has done what it asks for.
    async fn refuse_new(&self, key: Option<Uuid>, refusal: Refusal) -> Result<()> {
        if let Some(key) = key
            && rooms::get_txn_event(&self.pool, key).await?.is_some()
        {
            return Ok(());
        }
        Err(refusal.into())
    }

    async fn current(&self, user: &UserId, room_id: &RoomId) -> Result<Option<Membership>> {
        let slot = self.owner.slot(room_id).await?;
        let room = lock(&slot).lock().room;
        self.wholes.wait(room).await?;
        let known = self.users.deps.interner.known_users(&[user.as_str()]).await?;
        let Some(user) = known.first().copied().flatten() else { return Ok(None) };
        let letter = rooms::get_membership(&self.pool, user, room).await?;
        Ok(letter.and_then(Membership::from_letter))
    }

    /// A local member who may invite, in whose name a restricted join is allowed.
    fn authorising_user(&self, live: &Live) -> Option<String> {
        let powers = live.powers();
        let found = live
            .members
            .iter()
            .find(|member| powers.reaches(&member.user_id, RoomPowerLevelsIntField::Invite));
        found.map(|member| member.user_id.to_string())
    }

    /// Refuses if the configuration lets only admins invite.
    pub fn check_may_invite(&self, who: &Requester) -> Result<(), Refusal> {
        if self.config.rooms.block_non_admin_invites && !who.is_admin {
            return Err(Refusal::forbidden("invites have been disabled on this server"));
        }
        Ok(())
    }
}

/// A join of a room that is unknown here: there is no server to ask.
fn not_here(error: chatd_base::Error) -> chatd_base::Error {
    match error.errcode() {
        Some("M_FORBIDDEN") => Refusal::not_found("no server that is in the room is known").into(),
        _ => error,
    }
}

fn membership(live: &Live, user: &UserId) -> Option<Membership> {
    let word = live.body("m.room.member", user.as_str())?.content_str("membership")?;
    Membership::from_word(&word)
}

/// Rooms whose members may join, if the join rule is a restricted one.
fn restriction(live: &Live) -> Option<Vec<String>> {
    let content: Value =
        serde_json::from_str(live.body("m.room.join_rules", "")?.content.get()).ok()?;
    let rule = content.get("join_rule")?.as_str()?;
    if rule != "restricted" && rule != "knock_restricted" {
        return None;
    }
    let allow = content.get("allow").and_then(Value::as_array);
    let rooms = allow
        .into_iter()
        .flatten()
        .filter(|entry| entry.get("type").and_then(Value::as_str) == Some("m.room_membership"));
    Some(rooms.filter_map(|entry| Some(entry.get("room_id")?.as_str()?.to_owned())).collect())
}

/// The event by which `sender` gives `user` a membership.
pub(crate) fn membership_draft(
    sender: &UserId,
    user: &UserId,
    membership: Membership,
    mut content: Map<String, Value>,
    extra: Extra,
) -> Draft {
    content.insert("membership".to_owned(), membership.as_str().into());
    if let Some(reason) = extra.reason {
        content.insert("reason".to_owned(), reason.into());
    }
    if extra.is_direct {
        content.insert("is_direct".to_owned(), true.into());
    }
    let mut draft = Draft::state(sender.to_owned(), "m.room.member", user.as_str(), content);
    draft.is_bulk = extra.is_bulk;
    draft.key = extra.key;
    draft
}
