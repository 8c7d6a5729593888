//! Adding events to rooms: finds the owner and hands the draft over.

use chatd_base::{Refusal, Requester, Result};
use chatd_storage::rooms;
use chatd_streams::events::Membership;
use chatd_users::profiles::Profile;
use ruma_common::{RoomAliasId, RoomId, UserId};
use serde_json::{Map, Value};

use crate::{
    Rooms,
    owner::{Sent, lock},
    seal::Draft,
};

impl Rooms {
    /// Appends `draft` to its room. On return the event is durable (R1). A repeat with the same
    /// transaction id returns the first event. Refuses rooms that another instance owns
    /// ([`Refusal::not_owner`]) before anything is done.
    pub async fn send(&self, room_id: &RoomId, draft: &Draft) -> Result<Sent> {
        if draft.kind == "m.room.member"
            && draft.state_key.as_deref() != Some(draft.sender.as_str())
        {
            // What somebody else becomes depends on what they are.
            self.whole(room_id).await?;
        }
        self.owner.append(room_id, draft).await
    }

    /// Redacts an event.
    pub async fn redact(&self, room_id: &RoomId, mut draft: Draft) -> Result<Sent> {
        if let Some(target) = &draft.redacts {
            let slot = self.owner.slot(room_id).await?;
            let in_content = lock(&slot).lock().rules.redaction.content_field_redacts;
            if in_content {
                draft.content.insert("redacts".to_owned(), target.as_str().into());
            }
        }
        self.send(room_id, &draft).await
    }

    /// Sets state on behalf of a client: membership events get the profile of their user, and
    /// aliases must point here.
    pub async fn put_state(
        &self,
        who: &Requester,
        room_id: &RoomId,
        mut draft: Draft,
    ) -> Result<Sent> {
        match draft.kind.as_str() {
            "m.room.member" => self.complete_member(who, room_id, &mut draft).await?,
            "m.room.canonical_alias" => self.check_aliases(room_id, &draft.content).await?,
            _ => {}
        }
        self.send(room_id, &draft).await
    }

    async fn complete_member(
        &self,
        who: &Requester,
        room_id: &RoomId,
        draft: &mut Draft,
    ) -> Result<()> {
        let user = draft.state_key.as_deref().unwrap_or_default();
        let user = UserId::parse(user).map_err(|_| {
            Refusal::invalid_param("the state key of `m.room.member` is not a user id")
        })?;
        let membership = draft.content.get("membership").and_then(Value::as_str);
        match membership.and_then(Membership::from_word) {
            None => {
                Err(Refusal::bad_json("`membership` is missing or has an unknown value").into())
            }
            Some(Membership::Leave | Membership::Ban) => Ok(()),
            Some(membership) => {
                let mut content = self.member_content(&user).await?;
                if membership == Membership::Join && user == who.user_id {
                    content.extend(self.authorisation(who, room_id).await?);
                }
                content.extend(std::mem::take(&mut draft.content));
                draft.content = content;
                Ok(())
            }
        }
    }

    /// Aliases that an `m.room.canonical_alias` adds must belong to the room (`M_BAD_ALIAS`).
    async fn check_aliases(&self, room_id: &RoomId, content: &Map<String, Value>) -> Result<()> {
        let slot = self.owner.slot(room_id).await?;
        let current: Value = {
            let live = lock(&slot).lock();
            let body = live.body("m.room.canonical_alias", "");
            body.and_then(|body| serde_json::from_str(body.content.get()).ok()).unwrap_or_default()
        };
        let known = aliases_in(current.as_object().unwrap_or(&Map::new()))?;
        let added: Vec<String> =
            aliases_in(content)?.into_iter().filter(|alias| !known.contains(alias)).collect();
        let targets = rooms::list_alias_targets(&self.pool, &added).await?;
        for alias in added {
            let points_here =
                targets.iter().any(|(a, room)| *a == alias && room == room_id.as_str());
            if !points_here {
                return Err(Refusal::new(
                    400,
                    "M_BAD_ALIAS",
                    format!("the alias {alias} does not point to this room"),
                )
                .into());
            }
        }
        Ok(())
    }

    /// Whether the user may send state of that type in the room: for what is not an event itself,
    /// such as aliases and the directory.
    pub async fn may_send_state(
        &self,
        user: &UserId,
        room_id: &RoomId,
        kind: &str,
    ) -> Result<bool> {
        let slot = self.owner.slot(room_id).await?;
        let live = lock(&slot).lock();
        Ok(live.powers().may_send_state(user, kind))
    }

    /// `displayname` and `avatar_url` of users, as their membership events carry them.
    pub(crate) async fn member_contents(
        &self,
        users: impl Iterator<Item = &UserId>,
    ) -> Result<Vec<Map<String, Value>>> {
        let names: Vec<&str> = users.map(UserId::as_str).collect();
        let nids = self.users.deps.interner.users(&names).await?;
        let profiles = self.users.profiles.get_many(&nids).await?;
        Ok(profiles.iter().map(|profile| member_content(profile)).collect())
    }

    pub(crate) async fn member_content(&self, user: &UserId) -> Result<Map<String, Value>> {
        Ok(self.member_contents(std::iter::once(user)).await?.pop().unwrap_or_default())
    }
}

fn member_content(profile: &Profile) -> Map<String, Value> {
    let mut content = Map::new();
    if let Some(name) = profile.displayname() {
        content.insert("displayname".to_owned(), name.into());
    }
    if let Some(url) = profile.avatar_url() {
        content.insert("avatar_url".to_owned(), url.into());
    }
    content
}

/// `alias` and `alt_aliases` of an `m.room.canonical_alias`.
fn aliases_in(content: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let wrong = |what| Refusal::invalid_param(format!("`{what}` is not a valid room alias"));
    let one = |value: &Value, what| match value.as_str() {
        Some(alias) if RoomAliasId::parse(alias).is_ok() => Ok(alias.to_owned()),
        _ => Err(wrong(what)),
    };
    let mut aliases = Vec::new();
    match content.get("alias") {
        None | Some(Value::Null) => {}
        Some(Value::String(empty)) if empty.is_empty() => {}
        Some(alias) => aliases.push(one(alias, "alias")?),
    }
    match content.get("alt_aliases") {
        None | Some(Value::Null) => {}
        Some(Value::Array(more)) => {
            for alias in more {
                aliases.push(one(alias, "alt_aliases")?);
            }
        }
        Some(_) => return Err(wrong("alt_aliases")),
    }
    Ok(aliases)
}
