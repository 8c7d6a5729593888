//! POST /rooms/{roomId}/upgrade: a room of another version takes the place of one.
//!
//! The new room comes first, under a key that the old room, the user and the version make. What
//! follows is state that may be set twice. So a request that is repeated, also one that a crash cut
//! off, goes on with the room that there is.

use std::sync::Arc;

use chatd_base::{Refusal, Requester, Result, RoomNid};
use chatd_storage::{
    Batch, directory,
    events::StoredEvent,
    notices::Notice,
    room_state::{self, StateFilter},
    rooms,
};
use chatd_streams::events::Membership;
use ruma_common::{OwnedRoomId, OwnedUserId, RoomId, UserId, room_version_rules::RoomVersionRules};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    Rooms,
    create::{Access, CreateRoom, InitialState, object},
    owner::{digest, lock},
    seal::Draft,
};

/// The body of the request (spec: POST /rooms/{roomId}/upgrade).
#[derive(Debug, Deserialize)]
pub struct Upgrade {
    pub new_version: String,
    #[serde(default)]
    pub additional_creators: Vec<OwnedUserId>,
}

const TOMBSTONE: &str = "m.room.tombstone";
const LEVELS: &str = "m.room.power_levels";
const ALIAS: &str = "m.room.canonical_alias";
/// State that the new room begins with, besides power levels and bans.
const KEPT: [&str; 9] = [
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    ALIAS,
];
/// The rooms of a space go with it.
const CHILD: &str = "m.space.child";
/// Bans and rooms of a space that go with a room (R8).
const MOST_MANY: usize = 4_000;
/// Members of the create event that are made anew.
const REMADE: [&str; 4] = ["creator", "room_version", "predecessor", "additional_creators"];
/// The least level that may speak and invite in a room that was replaced.
const QUIET: i64 = 50;
/// The largest number that events may have.
const HIGHEST: i64 = (1 << 53) - 1;
/// Members of power levels that are levels themselves, and those that have some.
const LEVEL: [&str; 7] =
    ["users_default", "events_default", "state_default", "ban", "kick", "redact", "invite"];
const OF_LEVELS: [&str; 3] = ["users", "events", "notifications"];

/// The room that is replaced.
struct Old<'a> {
    id: &'a RoomId,
    /// Its last event.
    last: Option<String>,
    /// What of its state goes on, and what has to be known of it.
    state: Vec<Arc<StoredEvent>>,
    is_published: bool,
}

impl Rooms {
    /// Makes a room of another version that takes the place of `old`, which this instance owns,
    /// and says so there. On return all of it is durable.
    pub async fn upgrade(
        &self,
        who: &Requester,
        old: &RoomId,
        request: &Upgrade,
    ) -> Result<OwnedRoomId> {
        let version = self.known_version(&request.new_version)?;
        let rules = version.rules().ok_or_else(|| Refusal::unsupported_room_version("unknown"))?;
        let old = self.read_old(who, old).await?;
        let levels = Levels::of(&old, &who.user_id, &request.additional_creators, &rules);
        let body = old.successor(request, &rules, levels.as_ref());
        let key = digest(old.id, &who.user_id, "upgrade", &request.new_version);
        let new = self.create(&who.user_id, body, Some(key)).await?;
        let say = |kind: &str, content| Draft::state(who.user_id.clone(), kind, "", content);
        let is_told = old.content(TOMBSTONE).is_some_and(|tombstone| {
            tombstone.get("replacement_room").is_some_and(|room| *room == new.as_str())
        });
        if !is_told {
            if let Some(last) = levels.and_then(|levels| levels.last) {
                self.send_there(&new, say(LEVELS, last)).await?;
            }
            directory::move_aliases(&self.pool, old.id.as_str(), new.as_str()).await?;
            let content = json!({ "body": "This room has been replaced", "replacement_room": new });
            self.send(old.id, &say(TOMBSTONE, object(content))).await?;
        }
        self.inherit_from(who, old.id, &new).await;
        if old.is_published {
            self.withdraw(old.id).await?;
        }
        if old.content(ALIAS).is_some_and(|aliases| !aliases.is_empty()) {
            self.send_if_allowed(old.id, &say(ALIAS, Map::new())).await?;
        }
        if let Some(quiet) = old.content(LEVELS).and_then(quieter) {
            self.send_if_allowed(old.id, &say(LEVELS, quiet)).await?;
        }
        Ok(new)
    }

    /// Refuses users who may not replace the room.
    async fn read_old<'a>(&self, who: &Requester, id: &'a RoomId) -> Result<Old<'a>> {
        let unknown = || Refusal::forbidden("you are not in that room, or it does not exist");
        let room = rooms::get(&self.pool, id.as_str()).await?.ok_or_else(unknown)?;
        let membership = rooms::get_membership(&self.pool, who.user, room.nid).await?;
        if membership != Some(Membership::Join.letter()) {
            return Err(unknown().into());
        }
        if !self.may_send_state(&who.user_id, id, TOMBSTONE).await? {
            return Err(Refusal::forbidden("you may not upgrade this room").into());
        }
        // Who is banned is known with the members only.
        self.wholes.wait(room.nid).await?;
        let state = self.state_that_goes_on(room.nid).await?;
        let is_published = self.reader.is_published(id).await?
            && self.check_publication_rules(&who.user_id, id, &[]).is_ok();
        let slot = self.owner.slot(id).await?;
        let last = lock(&slot).lock().heads.last().map(|head| head.event_id.to_string());
        Ok(Old { id, last, state, is_published })
    }

    /// The state of a room of which its successor has something. Refuses rooms with too much.
    async fn state_that_goes_on(&self, room: RoomNid) -> Result<Vec<Arc<StoredEvent>>> {
        let own = ["m.room.create", TOMBSTONE, LEVELS];
        let keys: Vec<(&str, &str)> = KEPT.iter().chain(&own).map(|kind| (*kind, "")).collect();
        let single = StateFilter { keys: Some(&keys), ..StateFilter::default() };
        let children = StateFilter { kind: Some(CHILD), ..StateFilter::default() };
        let (mut state, children, bans) = futures::try_join!(
            room_state::list(&self.pool, room, None, &single),
            room_state::list(&self.pool, room, None, &children),
            room_state::list_bans(&self.pool, room, MOST_MANY + 1),
        )?;
        if children.len() + bans.len() > MOST_MANY {
            let message = format!("bans and rooms of a space go with a room, {MOST_MANY} at most");
            return Err(Refusal::invalid_room_state(message).into());
        }
        state.extend(children.into_iter().chain(bans));
        Ok(state)
    }

    /// Takes a room out of the directory, in which its successor is.
    async fn withdraw(&self, room: &RoomId) -> Result<()> {
        let mut batch = Batch::new();
        directory::set_published(&mut batch, room.as_str(), false);
        self.users.deps.notices.tell(&mut batch, Notice::Directory);
        self.pool.commit(batch).await?;
        self.reader.directory_changed();
        Ok(())
    }

    /// Sends to a room that may belong to another instance by now.
    async fn send_there(&self, room: &OwnedRoomId, draft: Draft) -> Result<()> {
        match self.send_all(vec![(room.clone(), draft)]).await.pop() {
            Some((_, sent)) => sent,
            None => Ok(()),
        }
    }

    async fn send_if_allowed(&self, room: &RoomId, draft: &Draft) -> Result<()> {
        match self.send(room, draft).await {
            Err(error) if error.errcode() == Some("M_FORBIDDEN") => Ok(()),
            sent => sent.map(drop),
        }
    }
}

impl Old<'_> {
    /// The content of a piece of state without a key.
    fn content(&self, kind: &str) -> Option<Map<String, Value>> {
        let event = self.state.iter().find(|event| is(event, kind, Some("")))?;
        serde_json::from_str(event.content.get()).ok()
    }

    /// What the room begins with that takes its place.
    fn successor(
        &self,
        request: &Upgrade,
        rules: &RoomVersionRules,
        levels: Option<&Levels>,
    ) -> CreateRoom {
        let mut creation = self.content("m.room.create").unwrap_or_default();
        creation.retain(|member, _| !REMADE.contains(&member.as_str()));
        let predecessor = json!({ "room_id": self.id, "event_id": self.last });
        creation.insert("predecessor".to_owned(), predecessor);
        if rules.authorization.additional_room_creators && !request.additional_creators.is_empty() {
            let creators = json!(request.additional_creators);
            creation.insert("additional_creators".to_owned(), creators);
        }
        let mut initial_state: Vec<InitialState> = KEPT
            .iter()
            .filter_map(|kind| Some(entry(kind, "", self.content(kind)?)))
            .filter(|state| !state.content.is_empty())
            .collect();
        if let Some(levels) = levels {
            initial_state.push(entry(LEVELS, "", levels.first.clone()));
        }
        initial_state.extend(self.many(levels));
        CreateRoom {
            visibility: Some(if self.is_published { Access::Public } else { Access::Private }),
            room_version: Some(request.new_version.clone()),
            creation_content: creation,
            initial_state,
            ..CreateRoom::default()
        }
    }

    /// Bans, and the rooms of a space.
    fn many(&self, levels: Option<&Levels>) -> impl Iterator<Item = InitialState> {
        self.state.iter().filter_map(move |event| {
            let key = event.state_key.as_deref()?;
            let content: Map<String, Value> = serde_json::from_str(event.content.get()).ok()?;
            let goes_on = match &*event.kind {
                CHILD => !content.is_empty(),
                "m.room.member" => {
                    content.get("membership").is_some_and(|is| is == "ban")
                        && levels.is_none_or(|levels| levels.may_ban(key))
                }
                _ => false,
            };
            goes_on.then(|| entry(&event.kind, key, content))
        })
    }
}

/// The power levels of the new room.
struct Levels {
    /// With which whoever upgrades may set all the state that the room begins with.
    first: Map<String, Value>,
    /// Those that hold in the end, if they differ.
    last: Option<Map<String, Value>>,
    /// The level of whoever upgrades while the room is made; `None` is above all.
    own: Option<i64>,
}

impl Levels {
    /// `None` if the old room has none; then those of any new room hold.
    fn of(
        old: &Old<'_>,
        user: &UserId,
        creators: &[OwnedUserId],
        rules: &RoomVersionRules,
    ) -> Option<Self> {
        let mut last = old.content(LEVELS)?;
        if rules.authorization.integer_power_levels {
            write_as_numbers(&mut last);
        }
        if rules.authorization.explicitly_privilege_room_creators {
            // Those are above all levels, and must not be in the list.
            if let Some(Value::Object(users)) = last.get_mut("users") {
                users.retain(|id, _| id != user.as_str() && !creators.iter().any(|one| one == id));
            }
            return Some(Self { first: last, last: None, own: None });
        }
        let users = last.get("users").and_then(Value::as_object).cloned().unwrap_or_default();
        let needed = most_needed(&last);
        let own = users.get(user.as_str()).map_or_else(|| level(&last, "users_default", 0), number);
        if own >= needed {
            return Some(Self { first: last, last: None, own: Some(own) });
        }
        let mut first = last.clone();
        let mut raised = users;
        raised.insert(user.to_string(), needed.into());
        first.insert("users".to_owned(), raised.into());
        // A creator of version 12 need not be in its list; in others somebody has to rule.
        let was_above_all = own < level(&last, "state_default", 50);
        let last = (!was_above_all).then_some(last);
        Some(Self { first, last, own: Some(needed) })
    }

    fn may_ban(&self, user: &str) -> bool {
        let users = self.first.get("users").and_then(Value::as_object);
        let theirs = users
            .and_then(|users| users.get(user))
            .map_or_else(|| level(&self.first, "users_default", 0), number);
        self.own.is_none_or(|own| own > theirs)
    }
}

/// The highest level that any state of a new room asks for.
fn most_needed(levels: &Map<String, Value>) -> i64 {
    let events = levels.get("events").and_then(Value::as_object);
    let named = events.into_iter().flat_map(|events| events.values().map(number));
    let general = [level(levels, "state_default", 50), level(levels, "ban", 50)];
    named.chain(general).max().unwrap_or(100)
}

/// Power levels with which few may speak and invite; `None` if it is so already.
fn quieter(mut levels: Map<String, Value>) -> Option<Map<String, Value>> {
    let least = QUIET.max(level(&levels, "users_default", 0).saturating_add(1)).min(HIGHEST);
    let mut is_changed = false;
    for field in ["events_default", "invite"] {
        if level(&levels, field, 0) < least {
            levels.insert(field.to_owned(), least.into());
            is_changed = true;
        }
    }
    is_changed.then_some(levels)
}

fn level(levels: &Map<String, Value>, field: &str, default: i64) -> i64 {
    levels.get(field).map_or(default, number)
}

/// A level; rooms before version 10 may have it as a text.
fn number(value: &Value) -> i64 {
    number_of(value).unwrap_or_default()
}

fn number_of(value: &Value) -> Option<i64> {
    let text = || value.as_str().and_then(|text| text.trim().parse().ok());
    Some(value.as_i64().or_else(text)?.clamp(-HIGHEST, HIGHEST))
}

/// Makes numbers of levels that are texts. What is no level at all is left out.
fn write_as_numbers(levels: &mut Map<String, Value>) {
    let rewrite = |levels: &mut Map<String, Value>, is_level: &dyn Fn(&str) -> bool| {
        let names: Vec<String> = levels.keys().filter(|name| is_level(name)).cloned().collect();
        for name in names {
            match levels.get(&name).and_then(number_of) {
                Some(number) => drop(levels.insert(name, number.into())),
                None => drop(levels.remove(&name)),
            }
        }
    };
    rewrite(levels, &|name| LEVEL.contains(&name));
    for field in OF_LEVELS {
        match levels.get_mut(field) {
            Some(Value::Object(of_levels)) => rewrite(of_levels, &|_| true),
            Some(_) => drop(levels.remove(field)),
            None => {}
        }
    }
}

fn is(event: &StoredEvent, kind: &str, state_key: Option<&str>) -> bool {
    *event.kind == *kind && event.state_key.as_deref() == state_key
}

fn entry(kind: &str, state_key: &str, content: Map<String, Value>) -> InitialState {
    InitialState { kind: kind.to_owned(), state_key: state_key.to_owned(), content }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_become_numbers() {
        let mut levels = object(json!({
            "users_default": "0", "ban": " 50 ", "kick": "fifty", "redact": 50, "other": "text",
            "users": {"@a:x": "100", "@b:x": 50, "@c:x": null},
            "events": {"m.room.name": "9223372036854775807"}, "notifications": "20",
        }));
        write_as_numbers(&mut levels);
        let expected = json!({
            "users_default": 0, "ban": 50, "redact": 50, "other": "text",
            "users": {"@a:x": 100, "@b:x": 50}, "events": {"m.room.name": HIGHEST},
        });
        assert_eq!(Value::Object(levels), expected);
    }

    #[test]
    fn few_may_speak_in_a_room_that_was_replaced() {
        for (before, expected) in [
            (json!({}), Some(json!({"events_default": 50, "invite": 50}))),
            (json!({"events_default": 50, "invite": 60}), None),
            (
                json!({"users_default": "60"}),
                Some(json!({"users_default": "60", "events_default": 61, "invite": 61})),
            ),
            (
                json!({"users_default": i64::MAX, "invite": HIGHEST}),
                Some(json!({
                    "users_default": i64::MAX, "invite": HIGHEST, "events_default": HIGHEST,
                })),
            ),
        ] {
            assert_eq!(quieter(object(before)), expected.map(object));
        }
    }
}
