//! Invites of somebody of whom only an address is known: what has to be known of the room for
//! them, and the events that they lead to.

use chatd_base::{Refusal, Result};
use chatd_streams::events::Membership;
use ruma_common::{RoomId, UserId};
use ruma_state_res::events::RoomPowerLevelsIntField;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    Rooms,
    live::Live,
    membership::{Extra, membership_draft},
    owner::lock,
    seal::Draft,
};

/// The event that stands for somebody until it is known who that is.
const PENDING: &str = "m.room.third_party_invite";

/// What the invited person is told of a room. What is not set is empty.
#[derive(Clone, Debug, Default)]
pub struct Letterhead {
    pub alias: String,
    pub avatar_url: String,
    pub join_rule: String,
    pub name: String,
    pub kind: Option<String>,
    pub sender_name: String,
    pub sender_avatar_url: String,
}

impl Letterhead {
    fn of(live: &Live, sender: &UserId) -> Self {
        let text = |kind: &str, key: &str, field: &str| {
            let body = live.body(kind, key);
            body.and_then(|body| body.content_str(field)).unwrap_or_default()
        };
        let name = text("m.room.member", sender.as_str(), "displayname");
        Self {
            alias: text("m.room.canonical_alias", "", "alias"),
            avatar_url: text("m.room.avatar", "", "url"),
            join_rule: text("m.room.join_rules", "", "join_rule"),
            name: text("m.room.name", "", "name"),
            kind: live.body("m.room.create", "").and_then(|body| body.content_str("type")),
            sender_name: if name.is_empty() { sender.to_string() } else { name },
            sender_avatar_url: text("m.room.member", sender.as_str(), "avatar_url"),
        }
    }
}

impl Rooms {
    /// What somebody whom `sender` invites is told of the room. Refuses if `sender` may not invite
    /// anybody.
    pub async fn letterhead(&self, sender: &UserId, room_id: &RoomId) -> Result<Letterhead> {
        let slot = self.owner.slot(room_id).await?;
        let live = lock(&slot).lock();
        if !live.members.iter().any(|member| member.user_id == sender) {
            return Err(Refusal::forbidden("you are not in the room").into());
        }
        if !live.powers().reaches(sender, RoomPowerLevelsIntField::Invite) {
            return Err(Refusal::forbidden("you may not invite anybody into the room").into());
        }
        Ok(Letterhead::of(&live, sender))
    }

    /// Whether a request has done what it asks for: this is its repeat.
    pub async fn is_done(&self, key: Option<Uuid>) -> Result<bool> {
        let Some(key) = key else { return Ok(false) };
        Ok(chatd_storage::rooms::get_txn_event(&self.pool, key).await?.is_some())
    }

    /// What stands in the room for somebody who is invited, under the token of the invite.
    pub async fn pending_invite(
        &self,
        room_id: &RoomId,
        token: &str,
    ) -> Result<Option<Map<String, Value>>> {
        let slot = self.owner.slot(room_id).await?;
        let live = lock(&slot).lock();
        let Some(body) = live.body(PENDING, token) else { return Ok(None) };
        serde_json::from_str(body.content.get()).map(Some).map_err(chatd_base::Error::internal)
    }
}

/// The event by which `sender` invites whoever is going to show `token`.
pub fn pending_draft(sender: &UserId, token: &str, content: Map<String, Value>) -> Draft {
    Draft::state(sender.to_owned(), PENDING, token, content)
}

/// The invite of the user whom an identity server has named in `signed`. It is the sender's of the
/// pending invite, of whatever server.
pub fn redeemed_draft(
    sender: &UserId,
    user: &UserId,
    display_name: Option<&Value>,
    signed: Map<String, Value>,
) -> Draft {
    let mut by = Map::from_iter([("signed".to_owned(), Value::Object(signed))]);
    if let Some(name) = display_name {
        by.insert("display_name".to_owned(), name.clone());
    }
    let content = Map::from_iter([("third_party_invite".to_owned(), Value::Object(by))]);
    membership_draft(sender, user, Membership::Invite, content, Extra::default())
}
