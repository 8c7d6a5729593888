//! Events that others finish: a room's next event as another server is to sign it (make_join,
//! make_leave, make_knock), and an invite that the server of the invited user signs as well.

use chatd_base::{Refusal, Requester, Result};
use chatd_storage::rooms;
use chatd_streams::{Raw, events::Membership};
use ruma_common::{CanonicalJsonObject, EventId, OwnedEventId, RoomId, RoomVersionId, UserId};
use serde_json::{Map, Value};

use crate::{
    Rooms, compose, effect,
    membership::{Extra, membership_draft},
    owner::lock,
    seal::{self, Draft},
};

/// An event that is not complete yet.
#[derive(Clone, Debug)]
pub struct Template {
    pub version: RoomVersionId,
    pub event: CanonicalJsonObject,
}

/// An invite that this server has signed.
#[derive(Clone, Debug)]
pub struct SignedInvite {
    pub version: RoomVersionId,
    pub event: CanonicalJsonObject,
    /// What the invited user is shown of the room.
    pub shown: Vec<Raw>,
}

impl Rooms {
    /// The version of a room that somebody here is in; refuses others with `M_NOT_FOUND`.
    pub async fn version(&self, room_id: &RoomId) -> Result<RoomVersionId> {
        let row = rooms::get(&self.pool, room_id.as_str()).await?;
        let row = row.filter(|row| !row.heads.is_empty());
        let row = row.ok_or_else(|| Refusal::not_found(format!("unknown room {room_id}")))?;
        RoomVersionId::try_from(row.version.as_str()).map_err(chatd_base::Error::internal)
    }

    /// The event by which a user of another server would get that membership, by its own doing.
    /// Refuses what the room does not allow.
    pub async fn member_template(
        &self,
        user: &UserId,
        membership: Membership,
        room_id: &RoomId,
    ) -> Result<Template> {
        let version = self.version(room_id).await?;
        let mut draft = membership_draft(user, user, membership, Map::new(), Extra::default());
        let slot = self.owner.slot(room_id).await?;
        self.owner.load_members(&slot, &draft).await?;
        if membership == Membership::Join {
            draft.content.extend(self.join_authorisation(user, room_id).await?);
            // The one who vouches has to be known too.
            self.owner.load_members(&slot, &draft).await?;
        }
        let event = compose::template(&lock(&slot).lock(), &draft, self.owner.now_ms())?;
        Ok(Template { version, event })
    }

    /// An invite of a user of another server, complete and signed, without effect as yet. Refuses
    /// what the room does not allow.
    pub async fn signed_invite(&self, room_id: &RoomId, draft: &Draft) -> Result<SignedInvite> {
        self.whole(room_id).await?;
        let version = self.version(room_id).await?;
        let slot = self.owner.slot(room_id).await?;
        self.owner.load_members(&slot, draft).await?;
        let live = lock(&slot).lock();
        let mut event = compose::template(&live, draft, self.owner.now_ms())?;
        seal::complete(&self.owner.signer, &live.rules, &mut event)?;
        let content =
            serde_json::value::to_raw_value(&draft.content).map_err(chatd_base::Error::internal)?;
        let shown = effect::stripped_state(&live, draft, &content);
        Ok(SignedInvite { version, event, shown })
    }

    /// Refuses a join of a restricted room that this server cannot vouch for.
    pub async fn check_join_rule(&self, user: &UserId, room_id: &RoomId) -> Result<()> {
        let draft = membership_draft(user, user, Membership::Join, Map::new(), Extra::default());
        let slot = self.owner.slot(room_id).await?;
        self.owner.load_members(&slot, &draft).await?;
        self.join_authorisation(user, room_id).await.map(drop)
    }

    /// An invite as its event is to say it. Refuses if the configuration lets nobody invite.
    pub async fn invite_draft(
        &self,
        who: &Requester,
        user: &UserId,
        extra: Extra,
    ) -> Result<Draft> {
        self.check_may_invite(who)?;
        let content = self.member_content(user).await?;
        Ok(membership_draft(&who.user_id, user, Membership::Invite, content, extra))
    }

    /// Name and picture of a user, as its membership events carry them.
    pub async fn profile_content(&self, user: &UserId) -> Result<Map<String, Value>> {
        self.member_content(user).await
    }

    /// The events that somebody is shown of the room who is not in it, as other servers get them.
    pub async fn shown_events(&self, room_id: &RoomId) -> Result<Vec<CanonicalJsonObject>> {
        let ids: Vec<OwnedEventId> = {
            let slot = self.owner.slot(room_id).await?;
            let live = lock(&slot).lock();
            effect::STRIPPED
                .iter()
                .filter_map(|kind| Some(live.body(kind, "")?.event_id.clone()))
                .collect()
        };
        let ids: Vec<&EventId> = ids.iter().map(|id| &**id).collect();
        self.federation_events(room_id, &ids).await
    }

    /// What somebody is shown of the room who knocks at it.
    pub async fn shown_of(&self, room_id: &RoomId) -> Result<Vec<Raw>> {
        let slot = self.owner.slot(room_id).await?;
        let live = lock(&slot).lock();
        Ok(effect::room_state_shown(&live))
    }

    /// The event with this server's signature added.
    pub fn countersign(
        &self,
        version: &RoomVersionId,
        event: &mut CanonicalJsonObject,
    ) -> Result<()> {
        let rules = version
            .rules()
            .ok_or_else(|| Refusal::unsupported_room_version(format!("room version {version}")))?;
        seal::hash_and_sign(&self.owner.signer, &rules, event)
    }

    /// The event, finished and signed by this server.
    pub fn finish(&self, version: &RoomVersionId, event: &mut CanonicalJsonObject) -> Result<()> {
        let rules = version
            .rules()
            .ok_or_else(|| Refusal::unsupported_room_version(format!("room version {version}")))?;
        seal::complete(&self.owner.signer, &rules, event)
    }
}
