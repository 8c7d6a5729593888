//! Membership events as servers exchange them, before anything is believed of them but their form.

use chatd_base::{Refusal, Result};
use chatd_rooms::event_id;
use chatd_streams::events::Membership;
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedUserId, RoomId, RoomVersionId,
    ServerName,
};

/// What a membership event says.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub event_id: OwnedEventId,
    pub sender: OwnedUserId,
    /// The user whom it is about.
    pub user: OwnedUserId,
    pub membership: Membership,
    /// Who vouches for a join.
    pub authoriser: Option<OwnedUserId>,
}

impl Member {
    /// Refuses what is no membership event of that room.
    pub fn read(
        event: &CanonicalJsonObject,
        version: &RoomVersionId,
        room_id: &RoomId,
    ) -> Result<Self> {
        if text(event, "type") != Some("m.room.member") {
            return Err(Refusal::bad_json("the event is not an `m.room.member`").into());
        }
        if text(event, "room_id") != Some(room_id.as_str()) {
            return Err(Refusal::bad_json("the event belongs to another room").into());
        }
        let content = event.get("content").and_then(CanonicalJsonValue::as_object);
        let content = content.ok_or_else(|| wrong("content"))?;
        let membership = text(content, "membership").and_then(Membership::from_word);
        let user = |object: &CanonicalJsonObject, name| {
            let user = text(object, name).and_then(|user| OwnedUserId::try_from(user).ok());
            user.ok_or_else(|| wrong(name))
        };
        let vouches = "join_authorised_via_users_server";
        Ok(Self {
            event_id: event_id(version, event)?,
            sender: user(event, "sender")?,
            user: user(event, "state_key")?,
            membership: membership.ok_or_else(|| wrong("membership"))?,
            authoriser: match content.contains_key(vouches) {
                true => Some(user(content, vouches)?),
                false => None,
            },
        })
    }

    /// Refuses what a user of `server` does not do by itself, or another membership.
    pub fn check_own(&self, server: &ServerName, membership: Membership) -> Result<(), Refusal> {
        if self.sender != self.user {
            return Err(Refusal::invalid_param("the event is about somebody else than its sender"));
        }
        if self.sender.server_name() != server {
            return Err(Refusal::forbidden(format!("{} is not a user of {server}", self.sender)));
        }
        if self.membership != membership {
            let message = format!("the event is no `{}`", membership.as_str());
            return Err(Refusal::invalid_param(message));
        }
        Ok(())
    }
}

/// A member of an object, if it is a string.
pub(crate) fn text<'a>(object: &'a CanonicalJsonObject, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

fn wrong(name: &str) -> Refusal {
    Refusal::bad_json(format!("`{name}` of the event is missing or not valid"))
}
