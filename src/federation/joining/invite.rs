//! Inviting users of other servers: the other server signs the invite before it becomes part of the
//! room, so that no user is invited who does not hear of it. The room goes on meanwhile.

use bytes::Bytes;
use chatd_base::{Position, Refusal, Requester, Result};
use chatd_rooms::{
    Draft, Route, Sent, SignedInvite, Standing, Verdict, event_id, membership::Extra,
};
use chatd_servers::{Ask, Failure};
use chatd_streams::events::Membership;
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, RoomId, RoomVersionId, ServerName, UserId,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Joining, candidates::unreached, template::is_unknown};
use crate::uri;

#[derive(Deserialize)]
struct Answer {
    event: CanonicalJsonObject,
}

/// The membership that is there already.
fn sent_before(standing: &Standing) -> Sent {
    Sent { event_id: standing.event.event_id.clone(), position: Position(0) }
}

impl Joining {
    /// Invites a user of any server.
    pub async fn invite(
        &self,
        who: &Requester,
        user: &UserId,
        room_id: &RoomId,
        extra: Extra,
    ) -> Result<()> {
        let rooms = &self.deps.rooms;
        if user.server_name() == self.deps.config.server_name {
            return rooms.invite(who, user, room_id, extra).await;
        }
        let draft = rooms.invite_draft(who, user, extra).await?;
        self.invite_with(who, user, room_id, draft).await.map(drop)
    }

    /// Invites a user of another server by this event. An invite that is there already stays.
    pub async fn invite_with(
        &self,
        who: &Requester,
        user: &UserId,
        room_id: &RoomId,
        draft: Draft,
    ) -> Result<Sent> {
        self.deps.rooms.check_may_invite(who)?;
        self.invite_as(&who.user_id, user, room_id, draft).await
    }

    /// The same in the name of `sender`, who may be of another server yet if the invite is one that
    /// an identity server has signed.
    pub(super) async fn invite_as(
        &self,
        sender: &UserId,
        user: &UserId,
        room_id: &RoomId,
        draft: Draft,
    ) -> Result<Sent> {
        let rooms = &self.deps.rooms;
        let _turn = self.turn_of(user, room_id).await;
        let is_there = |standing: &Standing| {
            standing.membership == Membership::Invite && standing.event.sender == *sender
        };
        if let Some(there) = rooms.owner.standing(user, room_id).await?.filter(is_there) {
            return Ok(sent_before(&there));
        }
        let invite = rooms.signed_invite(room_id, &draft).await?;
        let event = self.ask_to_sign(user.server_name(), room_id, invite).await?;
        // Whoever has come meanwhile is invited no more: the rules would let what an identity server
        // has signed put them out again.
        let is_in = |standing: &Standing| standing.membership == Membership::Join;
        if let Some(there) = rooms.owner.standing(user, room_id).await?.filter(is_in) {
            return Ok(sent_before(&there));
        }
        let received = rooms.owner.receive_as(room_id, event, Route::Made).await?;
        match received.verdict {
            Verdict::Accepted | Verdict::Known => {
                Ok(Sent { event_id: received.event_id, position: received.position })
            }
            Verdict::SoftFailed(why) | Verdict::Rejected(why) => {
                Err(Refusal::forbidden(why).into())
            }
            Verdict::Missing(_) => Err(chatd_base::Error::internal(
                "an invite refers to events that this server has not",
            )),
        }
    }

    /// Has the other server sign the invite; the event with its signature added.
    async fn ask_to_sign(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        invite: SignedInvite,
    ) -> Result<CanonicalJsonObject> {
        let id = event_id(&invite.version, &invite.event)?;
        let shown = self.shown(room_id, &invite).await?;
        let asked = self.ask_both_ways(server, room_id, &id, &invite, &shown).await;
        let answer = asked.map_err(|failure| unreached(&[(server.to_owned(), failure)]))?;
        let mut event = invite.event;
        let odd = |why: &str| {
            let why = format!("{server} has not signed the invite: {why}");
            Refusal::new(502, "M_UNKNOWN", why)
        };
        if event_id(&invite.version, &answer).ok().as_deref() != Some(&*id) {
            return Err(odd("it answers another event").into());
        }
        let signed = answer.get("signatures").and_then(CanonicalJsonValue::as_object);
        let theirs = signed.and_then(|signatures| signatures.get(server.as_str()));
        let theirs = theirs.cloned().ok_or_else(|| odd("its signature is missing"))?;
        if let Some(CanonicalJsonValue::Object(signatures)) = event.get_mut("signatures") {
            signatures.insert(server.to_string(), theirs);
        }
        let rules = invite.version.rules().ok_or_else(|| odd("it is of no version"))?;
        let checked = self.deps.servers.keyring.check_events(vec![event.clone()], &rules).await?;
        match checked.into_iter().next() {
            Some(Ok(_)) => Ok(event),
            _ => Err(odd("its signature is wrong").into()),
        }
    }

    /// What the invited user is shown: in rooms whose id is their first event, servers check the
    /// events, and so are given all of each.
    async fn shown(&self, room_id: &RoomId, invite: &SignedInvite) -> Result<Vec<Value>> {
        let stripped = invite.shown.iter().map(|raw| serde_json::from_str(raw.get()));
        let stripped: Vec<Value> =
            stripped.collect::<Result<_, _>>().map_err(chatd_base::Error::internal)?;
        let has_hash_id = room_id.server_name().is_none();
        if !has_hash_id {
            return Ok(stripped);
        }
        let whole = self.deps.rooms.shown_events(room_id).await?;
        let own = stripped.into_iter().filter(|event| event["type"] == "m.room.member");
        Ok(whole.into_iter().map(|event| json!(event)).chain(own).collect())
    }

    /// Asks by the second version of the endpoint, and in old rooms by the first, if the server does
    /// not know that.
    async fn ask_both_ways(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        id: &EventId,
        invite: &SignedInvite,
        shown: &[Value],
    ) -> Result<CanonicalJsonObject, Failure> {
        let client = &self.deps.servers.client;
        let bytes = |value: &Value| Bytes::from(value.to_string());
        let body = json!({
            "event": invite.event,
            "room_version": invite.version,
            "invite_room_state": shown,
        });
        let target = uri!("/_matrix/federation/v2/invite/{}/{}", room_id, id);
        let asked = client.ask_json::<Answer>(server, Ask::put(target).json(bytes(&body))).await;
        let is_old = matches!(invite.version, RoomVersionId::V1 | RoomVersionId::V2);
        match asked {
            Err(failure) if is_old && is_unknown(&failure) => {
                let mut body = json!(invite.event);
                body["unsigned"] = json!({ "invite_room_state": shown });
                let target = uri!("/_matrix/federation/v1/invite/{}/{}", room_id, id);
                let ask = Ask::put(target).json(bytes(&body));
                let (_, answer): (u16, Answer) = client.ask_json(server, ask).await?;
                Ok(answer.event)
            }
            asked => asked.map(|answer| answer.event),
        }
    }
}
