//! Account data of users, global and per room, and tags, which are a part of it.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Requester, Result, RoomNid, UserNid};
use chatd_config::StreamName;
use chatd_storage::account_data;
use chatd_streams::{
    Raw, Streams, Writer,
    account_data::{AccountData as AccountDataStream, AccountDataRow},
};
use ruma_common::RoomId;
use serde_json::{Map, Value, value::to_raw_value};

use crate::{
    Deps,
    fully_read::FULLY_READ,
    locks::UserLocks,
    room_nids::RoomNids,
    succession::{Estate, Succession},
};

/// Entries that the server writes itself.
const MANAGED: &[&str] = &[FULLY_READ, "m.push_rules"];
/// Longest type of an entry, in bytes.
const MAX_TYPE_BYTES: usize = 255;
/// Largest content, in bytes.
const MAX_CONTENT_BYTES: usize = 512 * 1024;
/// Longest tag, in bytes, and most tags of a room.
const MAX_TAG_BYTES: usize = 255;
const MAX_TAGS: usize = 100;
const TAGS: &str = "m.tag";
/// Which rooms are chats with whom.
const DIRECT: &str = "m.direct";

/// Account data of this server's users.
pub struct AccountData {
    pub(crate) deps: Deps,
    writer: Writer<AccountDataStream>,
    rooms: Arc<RoomNids>,
    pub(crate) locks: UserLocks,
}

impl AccountData {
    pub(crate) fn new(deps: &Deps, rooms: &Arc<RoomNids>) -> Self {
        let streams = &deps.streams;
        let writer = Writer::open(streams, &streams.account_data, &deps.pool, &deps.stop);
        Self { deps: deps.clone(), writer, rooms: rooms.clone(), locks: UserLocks::new() }
    }

    /// One entry, global if `room` is absent; refuses with 404 if there is none.
    pub async fn get(&self, who: &Requester, room: Option<&RoomId>, kind: &str) -> Result<String> {
        let room = self.room(room).await?;
        let content = account_data::get(&self.deps.pool, who.user, room, kind).await?;
        content.ok_or_else(|| Refusal::not_found("there is no such account data").into())
    }

    /// Replaces one entry. On return it is durable. Refuses entries that the server manages.
    pub async fn put(
        &self,
        who: &Requester,
        room: Option<&RoomId>,
        kind: &str,
        content: Raw,
    ) -> Result<()> {
        if MANAGED.contains(&kind) {
            let message = format!("{kind} cannot be set here");
            return Err(Refusal::new(405, "M_BAD_JSON", message).into());
        }
        if kind.len() > MAX_TYPE_BYTES {
            return Err(Refusal::invalid_param("the type is too long").into());
        }
        let content = bounded(content)?;
        let room = self.room(room).await?;
        let _line = self.locks.of(who.user).await;
        self.write(who.user, room, kind, content).await
    }

    /// Writes an entry, also one that the server manages.
    pub(crate) async fn write(
        &self,
        user: UserNid,
        room: RoomNid,
        kind: &str,
        content: Raw,
    ) -> Result<()> {
        let room = (room != RoomNid::default()).then_some(room);
        self.writer.append(AccountDataRow { user, room, kind: kind.to_owned(), content }).await?;
        Ok(())
    }

    /// The user's tags of a room, as an object.
    pub async fn tags(&self, who: &Requester, room: &RoomId) -> Result<Map<String, Value>> {
        let room = self.room(Some(room)).await?;
        self.read_tags(who.user, room).await
    }

    /// Gives a room a tag, or changes one.
    pub async fn put_tag(
        &self,
        who: &Requester,
        room: &RoomId,
        tag: &str,
        content: Map<String, Value>,
    ) -> Result<()> {
        if tag.len() > MAX_TAG_BYTES {
            return Err(Refusal::invalid_param("the tag is too long").into());
        }
        if content.get("order").is_some_and(|order| !order.is_number()) {
            return Err(Refusal::bad_json("order must be a number").into());
        }
        let room = self.room(Some(room)).await?;
        let _line = self.locks.of(who.user).await;
        let mut tags = self.read_tags(who.user, room).await?;
        tags.insert(tag.to_owned(), Value::Object(content));
        if tags.len() > MAX_TAGS {
            let message = format!("a room may have {MAX_TAGS} tags");
            return Err(Refusal::invalid_param(message).into());
        }
        self.write_tags(who.user, room, tags).await
    }

    /// Takes a tag from a room; one that is not there is no error.
    pub async fn delete_tag(&self, who: &Requester, room: &RoomId, tag: &str) -> Result<()> {
        let room = self.room(Some(room)).await?;
        let _line = self.locks.of(who.user).await;
        let mut tags = self.read_tags(who.user, room).await?;
        if tags.remove(tag).is_some() {
            self.write_tags(who.user, room, tags).await?;
        }
        Ok(())
    }

    async fn hand_on_tags(&self, one: &Succession) -> Result<()> {
        let (old, new) = (self.room(Some(&one.old)).await?, self.room(Some(&one.new)).await?);
        let old = self.read_tags(one.user, old).await?;
        match merged(old, self.read_tags(one.user, new).await?) {
            Some(tags) => self.write_tags(one.user, new, tags).await,
            None => Ok(()),
        }
    }

    async fn hand_on_direct(&self, one: &Succession) -> Result<()> {
        let everywhere = RoomNid::default();
        let direct = account_data::get(&self.deps.pool, one.user, everywhere, DIRECT).await?;
        let direct = direct.and_then(|text| serde_json::from_str(&text).ok());
        let Some(direct) = direct.and_then(|direct| succeed(direct, &one.old, &one.new)) else {
            return Ok(());
        };
        let content = to_raw_value(&direct).map_err(Error::internal)?.into();
        self.write(one.user, everywhere, DIRECT, bounded(content)?).await
    }

    async fn read_tags(&self, user: UserNid, room: RoomNid) -> Result<Map<String, Value>> {
        let Some(content) = account_data::get(&self.deps.pool, user, room, TAGS).await? else {
            return Ok(Map::new());
        };
        let mut content: Map<String, Value> =
            serde_json::from_str(&content).map_err(Error::internal)?;
        match content.remove("tags") {
            Some(Value::Object(tags)) => Ok(tags),
            _ => Ok(Map::new()),
        }
    }

    async fn write_tags(
        &self,
        user: UserNid,
        room: RoomNid,
        tags: Map<String, Value>,
    ) -> Result<()> {
        let content = to_raw_value(&serde_json::json!({ "tags": tags }));
        let content = bounded(content.map_err(Error::internal)?.into())?;
        self.write(user, room, TAGS, content).await
    }

    async fn room(&self, room: Option<&RoomId>) -> Result<RoomNid> {
        match room {
            Some(room) => self.rooms.get(room).await,
            None => Ok(RoomNid::default()),
        }
    }
}

impl Estate for AccountData {
    const STREAM: StreamName = StreamName::AccountData;
    const CALL: &str = "users.inherit_account_data";

    fn streams(&self) -> &Streams {
        &self.deps.streams
    }

    async fn hand_on(&self, one: &Succession) -> Result<()> {
        let _line = self.locks.of(one.user).await;
        let tags = self.hand_on_tags(one).await;
        self.hand_on_direct(one).await.and(tags)
    }
}

/// Refuses what is larger than an entry may be.
fn bounded(content: Raw) -> Result<Raw, Refusal> {
    match content.get().len() {
        ..=MAX_CONTENT_BYTES => Ok(content),
        _ => Err(Refusal::too_large("the content is too large")),
    }
}

/// The tags of a room with those of the one before, as many as a room may have; `None` if that
/// adds none.
fn merged(old: Map<String, Value>, mut tags: Map<String, Value>) -> Option<Map<String, Value>> {
    let before = tags.len();
    for (tag, content) in old {
        if tags.len() < MAX_TAGS {
            tags.entry(tag).or_insert(content);
        }
    }
    (tags.len() > before).then_some(tags)
}

/// Puts `new` beside `old` wherever that is a direct chat; `None` if nothing changes.
fn succeed(mut direct: Map<String, Value>, old: &RoomId, new: &RoomId) -> Option<Value> {
    let mut is_changed = false;
    for rooms in direct.values_mut().filter_map(Value::as_array_mut) {
        let has = |rooms: &[Value], room: &RoomId| rooms.iter().any(|one| one == room.as_str());
        if has(rooms, old) && !has(rooms, new) {
            rooms.push(new.as_str().into());
            is_changed = true;
        }
    }
    is_changed.then_some(Value::Object(direct))
}

#[cfg(test)]
mod tests {
    use ruma_common::room_id;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_direct_chat_stays_one_within_the_bounds_of_an_entry() {
        let (old, new) = (room_id!("!old:here"), room_id!("!new:here"));
        let direct = object(json!({"@a:x": [old], "@b:x": [old, new], "@c:x": ["!d:x"], "e": 1}));
        let after = succeed(direct, old, new).unwrap();
        let expected = json!({"@a:x": [old, new], "@b:x": [old, new], "@c:x": ["!d:x"], "e": 1});
        assert_eq!(after, expected);
        assert_eq!(succeed(object(after), old, new), None, "only once");

        let full = |room: &[&RoomId]| {
            let content = json!({"@a:x": room, "@b:x": "b".repeat(MAX_CONTENT_BYTES - 40)});
            (object(content.clone()), bounded(to_raw_value(&content).unwrap().into()))
        };
        let (direct, fits) = full(&[old]);
        assert!(fits.is_ok(), "a client can have written it");
        let after = succeed(direct, old, new).unwrap();
        let refused = bounded(to_raw_value(&after).unwrap().into());
        assert_eq!(refused.unwrap_err().status, 413);
    }

    #[test]
    fn tags_go_on_as_long_as_there_is_room_for_them() {
        let tags = |from: usize, to: usize| {
            (from..to).map(|number| (format!("u.{number}"), json!({"order": to}))).collect()
        };
        let (some, more): (Map<_, _>, Map<_, _>) = (tags(0, 60), tags(50, 120));
        let all = merged(some.clone(), more.clone()).unwrap();
        assert_eq!(all.len(), MAX_TAGS);
        assert!(more.iter().all(|(tag, content)| all[tag] == *content), "own ones stay");
        assert_eq!(merged(some, all), None, "only once");
        assert_eq!(merged(Map::new(), more), None);
    }
}
