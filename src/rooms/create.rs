//! POST /createRoom: all events of a new room, durable together or not at all.

use std::sync::Arc;

use chatd_base::{Refusal, Result, RoomNid, ShardId};
use chatd_config::EncryptedByDefault;
use chatd_storage::{effects, lane::NewRoom};
use ruma_common::{
    OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, RoomVersionId, UserId,
    room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    Rooms,
    compose::{Composed, Prepared, compose},
    lane::{Job, SealedEvent},
    live::Live,
    owner::Slot,
    seal::Draft,
};

/// The body of the request (spec: POST /createRoom).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CreateRoom {
    pub visibility: Option<Access>,
    pub room_alias_name: Option<String>,
    pub name: Option<String>,
    pub topic: Option<String>,
    pub invite: Vec<OwnedUserId>,
    pub invite_3pid: Vec<Value>,
    pub room_version: Option<String>,
    pub creation_content: Map<String, Value>,
    pub initial_state: Vec<InitialState>,
    pub preset: Option<Preset>,
    pub is_direct: bool,
    pub power_level_content_override: Map<String, Value>,
}

/// Whether the room is published in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    Public,
    Private,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    PrivateChat,
    TrustedPrivateChat,
    PublicChat,
}

#[derive(Debug, Deserialize)]
pub struct InitialState {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub state_key: String,
    pub content: Map<String, Value>,
}

/// A room that begins with more events does not delay what others wait for.
const LARGE: usize = 50;
/// Events that are sealed without a pause.
const AT_A_TIME: usize = 20;
/// Users that one request may invite (R8).
const MOST_INVITES: usize = 100;
/// Ids that are tried until one belongs to this instance; it owns a shard of 64 at least.
const MOST_IDS: usize = 4_096;
/// How often a room is made anew because its shard has moved.
const ATTEMPTS: usize = 3;

impl Rooms {
    /// Makes a room, one that this instance owns. On return all of its first events are durable.
    /// Refuses ([`Refusal::not_owner`]) if it owns none. A repeat with the same key gets the room
    /// of the first.
    pub async fn create(
        &self,
        creator: &UserId,
        request: CreateRoom,
        key: Option<Uuid>,
    ) -> Result<OwnedRoomId> {
        let made = self.create_new(creator, request, key).await;
        let (Err(error), Some(key)) = (&made, key) else { return made };
        if error.errcode() == Some(Refusal::NOT_OWNER) {
            return made;
        }
        match effects::get(&self.pool, key).await?.and_then(|effect| effect.result) {
            Some(room) => OwnedRoomId::try_from(room).map_err(chatd_base::Error::internal),
            None => made,
        }
    }

    async fn create_new(
        &self,
        creator: &UserId,
        request: CreateRoom,
        key: Option<Uuid>,
    ) -> Result<OwnedRoomId> {
        if !self.owner.owners.owns_any() {
            return Err(Refusal::not_owner(String::new()).into());
        }
        let version = self.version_of(&request)?;
        let rules = version.rules().ok_or_else(|| unsupported(version.as_str()))?;
        self.check_invites(&request)?;
        let alias = self.new_alias(&request).await?;
        let plan =
            Plan { rooms: self, creator, request: &request, version: &version, rules: &rules };
        let mut drafts = plan.drafts(alias.as_deref()).await?;
        if let Some(first) = drafts.first_mut() {
            first.origin_ts = Some(self.owner.creation_ms());
        }

        for _ in 0..ATTEMPTS {
            let (live, events) = self.seal_all(&drafts, &rules).await?;
            self.check_rules(creator, &live.room_id, &request, alias.as_deref())?;
            match self.commit(live, events, &request, &version, (alias.clone(), key)).await {
                // The shard went to another instance meanwhile; we may have others.
                Err(error) if error.errcode() == Some(Refusal::NOT_OWNER) => {}
                done => return done,
            }
        }
        Err(Refusal::not_owner(String::new()).into())
    }

    /// The events of a new room, and its memory after them.
    async fn seal_all(
        &self,
        drafts: &[Draft],
        rules: &RoomVersionRules,
    ) -> Result<(Live, Vec<SealedEvent>)> {
        let owner = &self.owner;
        let room = owner.next_room().await?;
        let Some((creation, others)) = drafts.split_first() else {
            return Err(chatd_base::Error::internal("a room without events"));
        };
        owner.number_names(drafts).await?;
        let prepared = owner.prepare_new(creation).await?;
        let (mut live, event) = self.found(room, rules, creation, prepared)?;
        let began_ms = event.new.origin_ts;
        let mut events = Vec::with_capacity(drafts.len());
        events.push(event);
        for (number, draft) in others.iter().enumerate() {
            // Each is signed; others go on meanwhile.
            if number % AT_A_TIME == AT_A_TIME - 1 {
                tokio::task::yield_now().await;
            }
            let mut prepared = owner.prepare_new(draft).await?;
            // The first one may be of a moment to come.
            prepared.now_ms = prepared.now_ms.max(began_ms);
            match compose(&mut live, &owner.signer, draft, &prepared).map_err(invalid_state)? {
                Composed::Event(event) => events.push(*event),
                Composed::Unchanged(_) => {}
            }
        }
        Ok((live, events))
    }

    /// Seals the first event so that the room's id falls into a shard of this instance. The id of
    /// a room of version 12 follows from that event, so there its time is what is varied: forward,
    /// so that no other room has the same.
    fn found(
        &self,
        room: RoomNid,
        rules: &RoomVersionRules,
        creation: &Draft,
        prepared: Prepared,
    ) -> Result<(Live, SealedEvent)> {
        let owner = &self.owner;
        let mut creation = creation.clone();
        let has_hash_id = rules.authorization.room_create_event_id_as_room_id;
        for _ in 0..MOST_IDS {
            let room_id = RoomId::new_v1(&owner.signer.server_name);
            if !has_hash_id && !owner.owners.is_own(&room_id) {
                continue;
            }
            let mut live = Live::new(room, room_id, rules.clone(), ShardId(0), 0);
            match compose(&mut live, &owner.signer, &creation, &prepared).map_err(invalid_state)? {
                Composed::Event(event) if owner.owners.is_own(&live.room_id) => {
                    return Ok((live, *event));
                }
                Composed::Event(_) | Composed::Unchanged(_) => {
                    creation.origin_ts = Some(owner.creation_ms());
                }
            }
        }
        Err(Refusal::not_owner(String::new()).into())
    }

    /// Refuses what the config does not let the user do with the directory.
    fn check_rules(
        &self,
        creator: &UserId,
        room_id: &RoomId,
        request: &CreateRoom,
        alias: Option<&str>,
    ) -> Result<(), Refusal> {
        if let Some(alias) = alias.and_then(|alias| <&RoomAliasId>::try_from(alias).ok()) {
            self.check_alias_rules(creator, room_id, alias)?;
        }
        if request.visibility == Some(Access::Public) {
            let aliases: Vec<&str> = alias.into_iter().collect();
            self.check_publication_rules(creator, room_id, &aliases)?;
        }
        Ok(())
    }

    async fn commit(
        &self,
        mut live: Live,
        events: Vec<SealedEvent>,
        request: &CreateRoom,
        version: &RoomVersionId,
        (alias, key): (Option<String>, Option<Uuid>),
    ) -> Result<OwnedRoomId> {
        let (shard, epoch) = self.owner.owners.own(&live.room_id).await?;
        (live.shard, live.epoch) = (shard, epoch);
        let (room, room_id) = (live.room, live.room_id.clone());
        let creator = events
            .first()
            .map(|event| event.new.sender)
            .ok_or_else(|| chatd_base::Error::internal("a room without events"))?;
        let new_room = NewRoom {
            nid: room,
            room_id: room_id.to_string(),
            version: version.to_string(),
            creator,
            created_ts: self.owner.now_ms(),
            is_public: request.visibility == Some(Access::Public),
            alias: alias.clone(),
            key,
        };
        let slot = Arc::new(Slot::with(live));
        let is_bulk = events.len() > LARGE;
        let job = |outcome| Job {
            slot: slot.clone(),
            room,
            shard,
            epoch,
            new_room: Some(new_room),
            events,
            outcome,
            place: None,
            hold: None,
        };
        match self.owner.commit_new(slot.clone(), is_bulk, job).await {
            // The alias may have been taken while the events were made.
            Err(error) if alias.is_some() && error.errcode().is_none() => {
                self.new_alias(request).await?;
                Err(error)
            }
            done => done.map(|()| room_id),
        }
    }

    fn version_of(&self, request: &CreateRoom) -> Result<RoomVersionId, Refusal> {
        match &request.room_version {
            Some(version) => self.known_version(version),
            None => Ok(self.config.rooms.default_version.clone()),
        }
    }

    /// Refuses versions of rooms that this server does not make.
    pub(crate) fn known_version(&self, version: &str) -> Result<RoomVersionId, Refusal> {
        let is_stable = (1..=12_u8).any(|number| number.to_string() == *version);
        match RoomVersionId::try_from(version) {
            Ok(known) if is_stable => Ok(known),
            _ => Err(unsupported(version)),
        }
    }

    fn check_invites(&self, request: &CreateRoom) -> Result<(), Refusal> {
        if request.invite.len() + request.invite_3pid.len() > MOST_INVITES {
            return Err(Refusal::invalid_param(format!(
                "at most {MOST_INVITES} users can be invited"
            )));
        }
        Ok(())
    }

    /// The full alias, if one is asked for and free.
    async fn new_alias(&self, request: &CreateRoom) -> Result<Option<String>> {
        let Some(name) = &request.room_alias_name else { return Ok(None) };
        let alias = format!("#{name}:{}", self.owner.signer.server_name);
        let is_valid = !name.is_empty()
            && !name.contains([':', '\0', '#'])
            && !name.contains(char::is_whitespace)
            && RoomAliasId::parse(&alias).is_ok();
        if !is_valid {
            return Err(
                Refusal::invalid_param("`room_alias_name` is not a valid local part").into()
            );
        }
        if chatd_storage::rooms::get_alias(&self.pool, &alias).await?.is_some() {
            return Err(Refusal::room_in_use(format!("the alias {alias} is taken")).into());
        }
        Ok(Some(alias))
    }
}

fn unsupported(version: &str) -> Refusal {
    Refusal::unsupported_room_version(format!("this server does not know room version {version}"))
}

/// What the rules refuse here is state that the request asks for.
fn invalid_state(error: chatd_base::Error) -> chatd_base::Error {
    match error {
        chatd_base::Error::Refused(refusal) if refusal.errcode == "M_FORBIDDEN" => {
            Refusal::invalid_room_state(format!("the room cannot be made so: {}", refusal.message))
                .into()
        }
        other => other,
    }
}

/// What a request makes of the defaults.
struct Plan<'a> {
    rooms: &'a Rooms,
    creator: &'a UserId,
    request: &'a CreateRoom,
    version: &'a RoomVersionId,
    rules: &'a RoomVersionRules,
}

impl Plan<'_> {
    fn preset(&self) -> Preset {
        self.request.preset.unwrap_or(match self.request.visibility {
            Some(Access::Public) => Preset::PublicChat,
            _ => Preset::PrivateChat,
        })
    }

    /// The events in the order that the spec gives.
    async fn drafts(&self, alias: Option<&str>) -> Result<Vec<Draft>> {
        let members = self.rooms.member_contents(
            std::iter::once(self.creator).chain(self.request.invite.iter().map(|user| &**user)),
        );
        let mut members = members.await?.into_iter();
        let mut join = members.next().unwrap_or_default();
        join.insert("membership".to_owned(), "join".into());
        let mut drafts = vec![
            self.state("m.room.create", "", self.creation()),
            self.state("m.room.member", self.creator.as_str(), join),
            self.state("m.room.power_levels", "", self.power_levels()),
        ];
        if let Some(alias) = alias {
            drafts.push(self.state(
                "m.room.canonical_alias",
                "",
                object(json!({ "alias": alias })),
            ));
        }
        drafts.extend(self.preset_state());
        for state in &self.request.initial_state {
            if state.kind != "m.room.power_levels" {
                drafts.push(self.state(&state.kind, &state.state_key, state.content.clone()));
            }
        }
        if let Some(name) = &self.request.name {
            drafts.push(self.state("m.room.name", "", object(json!({ "name": name }))));
        }
        if let Some(topic) = &self.request.topic {
            let rich = json!({ "m.text": [{ "body": topic, "mimetype": "text/plain" }] });
            let content = object(json!({ "topic": topic, "m.topic": rich }));
            drafts.push(self.state("m.room.topic", "", content));
        }
        // Those of other servers are invited when the room is there.
        let here = &self.rooms.owner.signer.server_name;
        let invites = self.request.invite.iter().zip(members);
        for (user, mut invite) in invites.filter(|(user, _)| user.server_name() == here) {
            invite.insert("membership".to_owned(), "invite".into());
            if self.request.is_direct {
                invite.insert("is_direct".to_owned(), true.into());
            }
            drafts.push(self.state("m.room.member", user.as_str(), invite));
        }
        Ok(drafts)
    }

    fn state(&self, kind: &str, state_key: &str, content: Map<String, Value>) -> Draft {
        Draft::state(self.creator.to_owned(), kind, state_key, content)
    }

    fn creation(&self) -> Map<String, Value> {
        let mut content = self.request.creation_content.clone();
        content.insert("room_version".to_owned(), self.version.as_str().into());
        content.remove("creator");
        if !self.rules.authorization.use_room_create_sender {
            content.insert("creator".to_owned(), self.creator.as_str().into());
        }
        let trusts_all = self.preset() == Preset::TrustedPrivateChat;
        if self.rules.authorization.additional_room_creators && trusts_all {
            let mut creators: Vec<Value> = match content.remove("additional_creators") {
                Some(Value::Array(given)) => given,
                _ => Vec::new(),
            };
            for user in &self.request.invite {
                if !creators.iter().any(|given| given == user.as_str()) {
                    creators.push(user.as_str().into());
                }
            }
            if !creators.is_empty() {
                content.insert("additional_creators".to_owned(), creators.into());
            }
        }
        content
    }

    fn power_levels(&self) -> Map<String, Value> {
        let given = self
            .request
            .initial_state
            .iter()
            .find(|state| state.kind == "m.room.power_levels" && state.state_key.is_empty());
        if let Some(given) = given {
            return given.content.clone();
        }
        let privileged = self.rules.authorization.explicitly_privilege_room_creators;
        let mut users = Map::new();
        if !privileged {
            users.insert(self.creator.to_string(), 100.into());
            if self.preset() == Preset::TrustedPrivateChat {
                users.extend(self.request.invite.iter().map(|user| (user.to_string(), 100.into())));
            }
        }
        let invite = if self.preset() == Preset::PublicChat { 50 } else { 0 };
        let mut content = object(json!({
            "users": users,
            "users_default": 0,
            "events": {
                "m.room.name": 50,
                "m.room.power_levels": 100,
                "m.room.history_visibility": 100,
                "m.room.canonical_alias": 50,
                "m.room.avatar": 50,
                "m.room.tombstone": if privileged { 150 } else { 100 },
                "m.room.server_acl": 100,
                "m.room.encryption": 100,
            },
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": invite,
            "historical": 100,
        }));
        let overrides = &self.rooms.config.rooms.default_power_level_content_override;
        let by_preset = match self.preset() {
            Preset::PrivateChat => &overrides.private_chat,
            Preset::TrustedPrivateChat => &overrides.trusted_private_chat,
            Preset::PublicChat => &overrides.public_chat,
        };
        content.extend(by_preset.clone().unwrap_or_default());
        content.extend(self.request.power_level_content_override.clone());
        content
    }

    /// Events of the preset that the request does not give itself.
    fn preset_state(&self) -> Vec<Draft> {
        let preset = self.preset();
        let (join_rule, guests) = match preset {
            Preset::PublicChat => ("public", "forbidden"),
            Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", "can_join"),
        };
        let mut wanted = vec![
            ("m.room.join_rules", json!({ "join_rule": join_rule })),
            ("m.room.history_visibility", json!({ "history_visibility": "shared" })),
            ("m.room.guest_access", json!({ "guest_access": guests })),
        ];
        let encrypts = match self.rooms.config.rooms.encrypted_by_default {
            EncryptedByDefault::All => true,
            EncryptedByDefault::Invite => preset != Preset::PublicChat,
            EncryptedByDefault::Off => false,
        };
        if encrypts {
            wanted.push(("m.room.encryption", json!({ "algorithm": "m.megolm.v1.aes-sha2" })));
        }
        wanted
            .into_iter()
            .filter(|(kind, _)| {
                let given = &self.request.initial_state;
                !given.iter().any(|state| state.kind == *kind && state.state_key.is_empty())
            })
            .map(|(kind, content)| self.state(kind, "", object(content)))
            .collect()
    }
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
