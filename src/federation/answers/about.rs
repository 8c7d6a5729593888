//! What this server tells of its users, aliases and public rooms.

use std::collections::BTreeMap;

use chatd_base::{Refusal, Result, UserNid};
use chatd_rooms::read::{Listing, ListingPage, ListingQuery};
use chatd_storage::{devices, resident, rooms};
use chatd_users::key_query::{Queried, Wanted};
use ruma_common::{OwnedUserId, RoomAliasId, RoomId, UserId};
use serde_json::{Map, Value, json};

use super::Answers;
use crate::Complexity;

/// Users about whom one request may ask (R8).
const MOST_USERS: usize = 10_000;
/// Rooms on one page of the directory.
const MOST_LISTED: usize = 1_000;

impl Answers {
    /// The room that an alias of this server names, and servers that are in it.
    pub async fn directory(&self, alias: &RoomAliasId) -> Result<Value> {
        let unknown = || Refusal::not_found(format!("there is no room {alias}"));
        if *alias.server_name() != *self.deps.config.server_name {
            return Err(unknown().into());
        }
        let room_id = rooms::get_alias(self.pool(), alias.as_str()).await?.ok_or_else(unknown)?;
        let mut servers = vec![self.deps.config.server_name.clone()];
        if let Ok(room) = <&RoomId>::try_from(room_id.as_str()) {
            servers.extend(self.deps.rooms.hosts.servers_in_room(room).await?);
        }
        Ok(json!({ "room_id": room_id, "servers": servers }))
    }

    /// How complex a room is. Refuses all but those that anybody may join or read.
    pub async fn complexity(&self, room: &RoomId) -> Result<Complexity> {
        let summary = self.deps.reader.summaries(&[room.as_str()], None).await?.pop();
        let listing = summary.map(|room| room.summary.listing);
        let is_open =
            |room: &Listing| room.world_readable || room.join_rule.as_deref() == Some("public");
        if !listing.as_ref().is_some_and(is_open) {
            return Err(Refusal::not_found("the room is not known here").into());
        }
        self.deps.rooms.whole_for_server(room).await?;
        let count = resident::count_state(self.pool(), room.as_str()).await?;
        Ok(Complexity::of_state(usize::try_from(count).unwrap_or_default()))
    }

    /// A user's profile, or one field of it.
    pub async fn profile(&self, user: &UserId, field: Option<&str>) -> Result<Map<String, Value>> {
        if !self.deps.config.profiles.allow_lookup_over_federation {
            let message = "profiles are not told to other servers";
            return Err(Refusal::forbidden(message).into());
        }
        let nid = self.local_user(user).await?;
        let profile = self.deps.users.profiles.get(nid).await?;
        if !profile.is_local {
            return Err(unknown_user(user).into());
        }
        let is_wanted = |name: &str| field.is_none_or(|field| field == name);
        let members = profile.fields.iter().filter(|(name, _)| is_wanted(name));
        Ok(members.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// The devices of a user of this server that have keys, as of the newest change at least: what
    /// is told of later changes has a larger `stream_id`.
    pub async fn devices(&self, user: &UserId) -> Result<Value> {
        let nid = self.local_user(user).await?;
        let stream_id = devices::get_last_change(self.pool(), nid).await?;
        let wanted = BTreeMap::from([(user.to_owned(), Vec::new())]);
        let keys = self.keys_of(&wanted).await?;
        let of_user = keys.device_keys.get(user.as_str());
        let all: Vec<Value> = of_user.into_iter().flatten().map(device).collect();
        let mut answer = json!({ "user_id": user, "stream_id": stream_id, "devices": all });
        let cross_signing =
            [("master_key", &keys.master_keys), ("self_signing_key", &keys.self_signing_keys)];
        for (name, keys) in cross_signing {
            if let Some(key) = keys.get(user.as_str()) {
                answer[name] = key.clone();
            }
        }
        Ok(answer)
    }

    /// Keys of devices of users of this server; all devices where none is named.
    pub async fn device_keys(&self, wanted: BTreeMap<OwnedUserId, Vec<String>>) -> Result<Value> {
        if wanted.len() > MOST_USERS {
            return Err(Refusal::invalid_param(format!("more than {MOST_USERS} users")).into());
        }
        let keys = self.keys_of(&self.of_this_server(wanted)).await?;
        Ok(json!({
            "device_keys": keys.device_keys,
            "master_keys": keys.master_keys,
            "self_signing_keys": keys.self_signing_keys,
        }))
    }

    /// Keys with what other servers may know of them.
    async fn keys_of(&self, wanted: &Wanted) -> Result<Queried> {
        let mut keys = self.deps.users.keys.query_for_servers(wanted).await?;
        if !self.deps.config.profiles.allow_device_names_over_federation {
            let devices = keys.device_keys.values_mut().flat_map(|devices| devices.values_mut());
            for device in devices {
                if let Some(unsigned) = device.get_mut("unsigned").and_then(Value::as_object_mut) {
                    unsigned.remove("device_display_name");
                }
            }
        }
        Ok(keys)
    }

    /// One-time keys of devices of users of this server; each is given away once.
    pub async fn claim_keys(
        &self,
        wanted: BTreeMap<OwnedUserId, BTreeMap<String, String>>,
    ) -> Result<Value> {
        let claimed = self.deps.users.keys.claim(&self.of_this_server(wanted)).await?;
        Ok(json!({ "one_time_keys": claimed }))
    }

    /// The directory of public rooms.
    pub async fn public_rooms(&self, mut query: ListingQuery) -> Result<ListingPage> {
        if !self.deps.config.rooms.allow_public_rooms_over_federation {
            let message = "the room directory is not told to other servers";
            return Err(Refusal::forbidden(message).into());
        }
        let limit = query.limit.filter(|limit| *limit > 0).unwrap_or(MOST_LISTED);
        query.limit = Some(limit.min(MOST_LISTED));
        self.deps.reader.listings(&query).await
    }

    fn of_this_server<T>(&self, by_user: BTreeMap<OwnedUserId, T>) -> BTreeMap<OwnedUserId, T> {
        let us = &self.deps.config.server_name;
        by_user.into_iter().filter(|(user, _)| user.server_name() == us).collect()
    }

    async fn local_user(&self, user: &UserId) -> Result<UserNid> {
        let is_local = user.server_name() == self.deps.config.server_name;
        let nids = self.deps.users.deps.interner.known_users(&[user.as_str()]).await?;
        let nid = nids.into_iter().next().flatten().filter(|_| is_local);
        nid.ok_or_else(|| unknown_user(user).into())
    }
}

/// A device in the list of its user's.
fn device((id, keys): (&String, &Value)) -> Value {
    let mut keys = keys.clone();
    let name = keys.get("unsigned").and_then(|unsigned| unsigned.get("device_display_name"));
    let name = name.cloned();
    if let Some(keys) = keys.as_object_mut() {
        keys.remove("unsigned");
    }
    let mut device = json!({ "device_id": id, "keys": keys });
    if let Some(name) = name {
        device["device_display_name"] = name;
    }
    device
}

fn unknown_user(user: &UserId) -> Refusal {
    Refusal::not_found(format!("there is no user {user}"))
}
