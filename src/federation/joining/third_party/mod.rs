//! Inviting somebody of whom only an address is known (spec: third-party invites).
//!
//! An identity server says whose address it is; that user is invited as ever. If it is nobody's
//! yet, the identity server writes to the address, and an event stands in the room for whoever comes
//! (`m.room.third_party_invite`). When somebody has, the identity server signs who it is, and that
//! is exchanged for an invite: at a server that is in the room (`exchange`).

mod everywhere;
mod exchange;
mod identity;
mod signatures;

use chatd_base::{Refusal, Requester, Result};
use chatd_config::Secret;
use chatd_rooms::{
    membership::Extra,
    third_party::{Letterhead, pending_draft},
};
use ruma_common::{OwnedServerName, RoomId, UserId};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use self::identity::{IdentityServer, Stored};
use super::Joining;

pub use exchange::Redeemed;

/// Whom to invite, and who may know that person.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ByAddress {
    pub id_server: OwnedServerName,
    /// Told to other instances of this server only.
    #[serde(serialize_with = "expose")]
    pub id_access_token: Secret,
    /// `email`, `msisdn` …
    pub medium: String,
    pub address: String,
}

fn expose<S: Serializer>(token: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(token.expose())
}

impl Joining {
    /// Invites whoever has the address: a user, if `may_invite` that one, or an event that stands for
    /// one. Refuses if the configuration or the room do not let the requester invite, or if the
    /// identity server does not take the invite. `key` is that of the request, and of this address
    /// in it.
    pub async fn invite_by_address(
        &self,
        who: &Requester,
        room_id: &RoomId,
        by: &ByAddress,
        key: Option<Uuid>,
        may_invite: impl FnOnce(&UserId) -> Result<()>,
    ) -> Result<()> {
        let rooms = &self.deps.rooms;
        rooms.check_may_invite(who)?;
        if !self.deps.config.rooms.looks_addresses_up {
            let message = "this server does not look third-party identifiers up";
            return Err(Refusal::forbidden(message).into());
        }
        // A repeat of a request that was done writes no second letter, nor does one that comes while
        // the first is still being done.
        let _turn = match key {
            Some(key) => Some(self.letters.take(key).await),
            None => None,
        };
        if rooms.is_done(key).await? {
            return Ok(());
        }
        let head = rooms.letterhead(&who.user_id, room_id).await?;
        let identity = IdentityServer::new(&self.deps.servers.outside, by)?;
        if let Some(user) = identity.look_up().await {
            may_invite(&user)?;
            return self.invite(who, &user, room_id, Extra { key, ..Extra::default() }).await;
        }
        let stored = identity.store_invite(&letter(who, room_id, by, &head)).await?;
        let mut draft =
            pending_draft(&who.user_id, &stored.token, pending(&stored, &identity.validity_url()?));
        draft.key = key;
        rooms.send(room_id, &draft).await.map(drop)
    }
}

/// What the identity server writes to the address.
fn letter(who: &Requester, room_id: &RoomId, by: &ByAddress, head: &Letterhead) -> Value {
    let mut letter = json!({
        "medium": by.medium,
        "address": by.address,
        "room_id": room_id,
        "room_alias": head.alias,
        "room_avatar_url": head.avatar_url,
        "room_join_rules": head.join_rule,
        "room_name": head.name,
        "sender": who.user_id,
        "sender_display_name": head.sender_name,
        "sender_avatar_url": head.sender_avatar_url,
    });
    if let Some(kind) = &head.kind {
        letter["room_type"] = kind.as_str().into();
    }
    letter
}

/// What the event says that stands for whoever comes.
fn pending(stored: &Stored, validity_url: &str) -> Map<String, Value> {
    let keys = stored.keys(validity_url);
    let first = keys.first().cloned().unwrap_or_default();
    let mut content = Map::from_iter([
        ("display_name".to_owned(), stored.display_name.as_str().into()),
        ("public_keys".to_owned(), json!(keys)),
        ("public_key".to_owned(), first.public_key.into()),
    ]);
    if let Some(url) = first.key_validity_url {
        content.insert("key_validity_url".to_owned(), url.into());
    }
    content
}
