//! What an identity server has signed of who has come becomes an invite, at a server that is in the
//! room.

use std::time::Duration;

use bytes::Bytes;
use chatd_base::{Refusal, Result};
use chatd_rooms::{Standing, third_party::redeemed_draft};
use chatd_servers::{Ask, Retries};
use chatd_streams::events::Membership;
use ruma_common::{OwnedRoomId, OwnedUserId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use url::Url;

use super::{
    super::{Joining, candidates::unreached},
    identity::IdentityKey,
    signatures::{Signatures, keys_of},
};
use crate::uri;

/// Keys that have signed one invite of which it is asked whether they count (R8).
const MOST_ASKED: usize = 4;
/// For another server that is to make an invite.
const WITHIN: Duration = Duration::from_secs(10);

/// Somebody who was invited by an address has come.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Redeemed {
    pub room_id: OwnedRoomId,
    /// Who has invited.
    pub sender: OwnedUserId,
    /// Who has come.
    pub mxid: OwnedUserId,
    /// What the identity server has signed of it.
    pub signed: Map<String, Value>,
}

impl Redeemed {
    fn token(&self) -> Result<&str, Refusal> {
        let token = self.signed.get("token").and_then(Value::as_str);
        token.ok_or_else(|| Refusal::bad_json("`token` is missing in what was signed"))
    }
}

impl Joining {
    /// Makes an invite of what an identity server has signed; at the owner of the room. If nobody
    /// here is in the room, a server that is has to do it.
    pub async fn redeem_here(&self, redeemed: &Redeemed) -> Result<()> {
        if !self.deps.rooms.owner.is_in(&redeemed.room_id).await? {
            return self.forward(redeemed).await;
        }
        self.exchange(redeemed).await
    }

    /// The same for another server, which says that it knows who has come. Refuses if nobody here
    /// is in the room.
    pub async fn exchange_for(&self, origin: &ServerName, redeemed: &Redeemed) -> Result<()> {
        let door = self.deps.rooms.owner.door(&redeemed.room_id, origin).await;
        match door {
            Ok(door) if !door.admits => {
                Err(Refusal::forbidden("the room keeps this server out").into())
            }
            Ok(door) if door.is_joined => self.exchange(redeemed).await,
            Err(error) if error.errcode() != Some("M_FORBIDDEN") => Err(error),
            _ => {
                let message = format!("nobody here is in {}", redeemed.room_id);
                Err(Refusal::not_found(message).into())
            }
        }
    }

    /// Puts the invite into the room. The rules of the room say whether what was signed counts;
    /// the server of the user who has come signs too, if it is not this one. For whoever is in the
    /// room or invited already, nothing changes, whatever happens in the room meanwhile.
    async fn exchange(&self, redeemed: &Redeemed) -> Result<()> {
        let Redeemed { room_id, sender, mxid, signed } = redeemed;
        let rooms = &self.deps.rooms;
        let pending = rooms.pending_invite(room_id, redeemed.token()?).await?;
        let is_done = |standing: &Standing| {
            matches!(standing.membership, Membership::Invite | Membership::Join)
        };
        if rooms.owner.standing(mxid, room_id).await?.as_ref().is_some_and(is_done) {
            return Ok(());
        }
        let pending = pending.ok_or_else(|| Refusal::forbidden("there is no such invite"))?;
        self.check_keys(&pending, signed).await?;
        let draft = redeemed_draft(sender, mxid, pending.get("display_name"), signed.clone());
        if mxid.server_name() == self.deps.config.server_name {
            return rooms.send(room_id, &draft).await.map(drop);
        }
        self.invite_as(sender, mxid, room_id, draft).await.map(drop)
    }

    /// Refuses if no key of the invite has signed, or none of those that have counts any more.
    async fn check_keys(
        &self,
        pending: &Map<String, Value>,
        signed: &Map<String, Value>,
    ) -> Result<()> {
        let signatures = Signatures::of(signed)?;
        let keys = keys_of(pending);
        let signers = keys.iter().filter(|key| signatures.has_one_by(&key.public_key));
        let mut last = Refusal::forbidden("no key of the invite has signed who has come").into();
        for key in signers.take(MOST_ASKED) {
            match self.check_key(key).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Refuses if the key does not count any more.
    async fn check_key(&self, key: &IdentityKey) -> Result<()> {
        let Some(url) = &key.key_validity_url else { return Ok(()) };
        // Where that is, somebody in the room has said; why it cannot be asked is for the log only.
        let unchecked = |why: &dyn std::fmt::Display| {
            tracing::info!(url, %why, "it cannot be asked whether a key counts");
            Refusal::new(502, "M_UNKNOWN", "it cannot be asked whether the key counts")
        };
        let mut url = Url::parse(url).map_err(|error| unchecked(&error))?;
        url.query_pairs_mut().append_pair("public_key", &key.public_key);
        let asked = self.deps.servers.outside.get::<Value>(&url, None).await;
        let told = asked.map_err(|failure| unchecked(&failure))?;
        match told.get("valid").and_then(Value::as_bool) {
            Some(true) => Ok(()),
            _ => Err(Refusal::forbidden("the key that has signed does not count any more").into()),
        }
    }

    /// Has a server that is in the room make the invite: that of who has invited, or that of the
    /// room's id. Strangers name them, so they are asked once, and not for long.
    async fn forward(&self, redeemed: &Redeemed) -> Result<()> {
        let Redeemed { room_id, sender, mxid, signed } = redeemed;
        let body = json!({
            "type": "m.room.member",
            "room_id": room_id,
            "sender": sender,
            "state_key": mxid,
            "content": {"membership": "invite", "third_party_invite": {"signed": signed}},
        });
        let target = uri!("/_matrix/federation/v1/exchange_third_party_invite/{}", room_id);
        let ask = Ask::put(target).json(Bytes::from(body.to_string()));
        let ask = ask.within(WITHIN).retries(Retries::None);
        let mut servers = vec![sender.server_name()];
        servers.extend(room_id.server_name().filter(|name| *name != sender.server_name()));
        let mut failures = Vec::new();
        for server in servers.into_iter().filter(|name| *name != self.deps.config.server_name) {
            match self.deps.servers.client.ask_json::<Value>(server, ask.clone()).await {
                Ok(_) => return Ok(()),
                Err(failure) => {
                    tracing::info!(room.id = %room_id, %server, %failure,
                        "a server has not made an invite of what was signed");
                    failures.push((server.to_owned(), failure));
                }
            }
        }
        Err(unreached(&failures).into())
    }
}
