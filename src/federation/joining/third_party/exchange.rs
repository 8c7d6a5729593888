//! What an identity server has signed of who has come becomes an invite, at a server that is in the
//! room.

use bytes::Bytes;
use chatd_base::{Error, Refusal, Result};
use chatd_rooms::{Standing, third_party::redeemed_draft};
use chatd_servers::{Ask, Failure};
use chatd_streams::events::Membership;
use ruma_common::{
    AnyKeyName, OwnedRoomId, OwnedUserId, ServerName, SigningKeyId,
    canonical_json::try_from_json_map,
};
use ruma_signatures::verify_canonical_json_bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use url::Url;

use super::{super::Joining, identity::IdentityKey};
use crate::uri;

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
    /// the server of the user who has come signs too, if it is not this one.
    async fn exchange(&self, redeemed: &Redeemed) -> Result<()> {
        let Redeemed { room_id, sender, mxid, signed } = redeemed;
        let rooms = &self.deps.rooms;
        let standing = rooms.owner.standing(mxid, room_id).await?;
        let is_done = |standing: &Standing| {
            matches!(standing.membership, Membership::Invite | Membership::Join)
        };
        if standing.as_ref().is_some_and(is_done) {
            return Ok(());
        }
        let pending = rooms.pending_invite(room_id, redeemed.token()?).await?;
        let pending = pending.ok_or_else(|| Refusal::forbidden("there is no such invite"))?;
        self.check_key(&pending, signed).await?;
        let draft = redeemed_draft(sender, mxid, pending.get("display_name"), signed.clone());
        if mxid.server_name() == self.deps.config.server_name {
            return rooms.send(room_id, &draft).await.map(drop);
        }
        self.invite_as(sender, mxid, room_id, draft).await.map(drop)
    }

    /// Refuses if the key that has signed does not count any more.
    async fn check_key(
        &self,
        pending: &Map<String, Value>,
        signed: &Map<String, Value>,
    ) -> Result<()> {
        let keys = keys_of(pending);
        let Some(key) = keys.iter().find(|key| is_signed_by(signed, &key.public_key)) else {
            return Err(Refusal::forbidden("no key of the invite has signed who has come").into());
        };
        let Some(url) = &key.key_validity_url else { return Ok(()) };
        let unchecked = |why: &dyn std::fmt::Display| {
            let message = format!("it cannot be asked whether the key counts: {why}");
            Refusal::new(502, "M_UNKNOWN", message)
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
    /// room's id.
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
        let mut servers = vec![sender.server_name()];
        servers.extend(room_id.server_name().filter(|name| *name != sender.server_name()));
        let mut last = None;
        for server in servers.into_iter().filter(|name| *name != self.deps.config.server_name) {
            match self.deps.servers.client.ask_json::<Value>(server, ask.clone()).await {
                Ok(_) => return Ok(()),
                Err(failure) => {
                    tracing::info!(room.id = %room_id, %server, %failure,
                        "a server has not made an invite of what was signed");
                    last = Some(failure);
                }
            }
        }
        Err(match last {
            Some(Failure::Refused { status: status @ 400..500, errcode, error, .. })
                if errcode.starts_with("M_") =>
            {
                Error::from(Refusal::new(status, errcode, error))
            }
            _ => Refusal::new(502, "M_UNKNOWN", "no server could make the invite").into(),
        })
    }
}

/// The keys of which one has to sign.
fn keys_of(pending: &Map<String, Value>) -> Vec<IdentityKey> {
    let text = |name: &str| pending.get(name).and_then(Value::as_str).map(str::to_owned);
    let alone = text("public_key")
        .map(|public_key| IdentityKey { public_key, key_validity_url: text("key_validity_url") });
    let listed = pending.get("public_keys").and_then(Value::as_array).into_iter().flatten();
    let listed = listed.filter_map(|key| serde_json::from_value(key.clone()).ok());
    listed.chain(alone).collect()
}

/// Base64 as Matrix has it.
type Base64 = ruma_common::serde::Base64<ruma_common::serde::base64::Standard, Vec<u8>>;

/// Whether one of the signatures is by `public_key`.
fn is_signed_by(signed: &Map<String, Value>, public_key: &str) -> bool {
    let Ok(key) = Base64::parse(public_key) else {
        return false;
    };
    let mut bare = signed.clone();
    let signatures = bare.remove("signatures");
    bare.remove("unsigned");
    let Ok(bare) = try_from_json_map(bare) else { return false };
    let Ok(bytes) = serde_json::to_vec(&bare) else { return false };
    let all = signatures.as_ref().and_then(Value::as_object).into_iter().flat_map(Map::values);
    let mut each = all.filter_map(Value::as_object).flatten();
    each.any(|(id, signature)| {
        let Ok(id) = <&SigningKeyId<AnyKeyName>>::try_from(id.as_str()) else { return false };
        let signature = signature.as_str().and_then(|text| Base64::parse(text).ok());
        signature.is_some_and(|signature| {
            let algorithm = id.algorithm();
            let (key, signature) = (key.as_bytes(), signature.as_bytes());
            verify_canonical_json_bytes(&algorithm, key, signature, &bytes).is_ok()
        })
    })
}
