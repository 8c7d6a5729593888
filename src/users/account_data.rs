//! Account data of users, global and per room, and tags, which are a part of it.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Requester, Result, RoomNid, UserNid};
use chatd_config::StreamName;
use chatd_storage::account_data;
use chatd_streams::{
    Raw, Writer,
    account_data::{AccountData as AccountDataStream, AccountDataRow},
};
use ruma_common::{OwnedRoomId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::to_raw_value};

use crate::{Deps, locks::UserLocks, room_nids::RoomNids};

/// Entries that the server writes itself.
const MANAGED: &[&str] = &["m.fully_read", "m.push_rules"];
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
const INHERIT: &str = "users.inherit_account_data";

/// A room has taken the place of another for a user.
#[derive(Deserialize, Serialize)]
struct Succession {
    user: UserNid,
    old: OwnedRoomId,
    new: OwnedRoomId,
}

/// Account data of this server's users.
pub struct AccountData {
    deps: Deps,
    writer: Writer<AccountDataStream>,
    rooms: Arc<RoomNids>,
    locks: UserLocks,
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
        if content.get().len() > MAX_CONTENT_BYTES {
            return Err(Refusal::too_large("the content is too large").into());
        }
        let room = self.room(room).await?;
        let _line = self.locks.of(who.user).await;
        self.write(who.user, room, kind, content).await
    }

    /// Writes an entry that the server manages (`m.fully_read`).
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

    /// Starts to answer the calls of other instances.
    pub(crate) fn answer_calls(self: &Arc<Self>) {
        let data = Arc::downgrade(self);
        self.deps.streams.calls.on(INHERIT, move |body| {
            let data = data.upgrade();
            async move {
                let data = data.ok_or_else(|| Refusal::not_owner(String::new()))?;
                let one = serde_json::from_slice(&body)
                    .map_err(|error| Refusal::bad_json(format!("no succession: {error}")))?;
                data.inherit_here(&one).await.map(|()| Vec::from("{}"))
            }
        });
    }

    /// Gives `new` the tags of `old`, and its place among the user's direct chats. On return it is
    /// durable. The writer of account data does it, so that no change of a client is lost.
    pub async fn inherit(&self, user: UserNid, old: &RoomId, new: &RoomId) -> Result<()> {
        let one = Succession { user, old: old.to_owned(), new: new.to_owned() };
        let streams = &self.deps.streams;
        if streams.writes(StreamName::AccountData) {
            return self.inherit_here(&one).await;
        }
        let body = serde_json::to_vec(&one).map_err(Error::internal)?;
        streams.others.ask_writer(StreamName::AccountData, INHERIT, body.into()).await?;
        Ok(())
    }

    async fn inherit_here(&self, one: &Succession) -> Result<()> {
        let Succession { user, old, new } = one;
        let (old_nid, new_nid) = (self.room(Some(old)).await?, self.room(Some(new)).await?);
        let _line = self.locks.of(*user).await;
        let (tags, mut all) =
            (self.read_tags(*user, old_nid).await?, self.read_tags(*user, new_nid).await?);
        let before = all.len();
        for (tag, content) in tags {
            all.entry(tag).or_insert(content);
        }
        if all.len() > before {
            self.write_tags(*user, new_nid, all).await?;
        }
        let everywhere = RoomNid::default();
        let direct = account_data::get(&self.deps.pool, *user, everywhere, DIRECT).await?;
        let direct = direct.and_then(|text| serde_json::from_str(&text).ok());
        if let Some(direct) = direct.and_then(|direct| succeed(direct, old, new)) {
            let content = to_raw_value(&direct).map_err(Error::internal)?.into();
            self.write(*user, everywhere, DIRECT, content).await?;
        }
        Ok(())
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
        self.write(user, room, TAGS, content.map_err(Error::internal)?.into()).await
    }

    async fn room(&self, room: Option<&RoomId>) -> Result<RoomNid> {
        match room {
            Some(room) => self.rooms.get(room).await,
            None => Ok(RoomNid::default()),
        }
    }
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
