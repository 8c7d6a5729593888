//! A room that another server is in, and events to be made for it: sound ones, and lies.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

use ruma_common::{
    UserId,
    room_version_rules::{EventIdFormatVersion, RoomIdFormatVersion, RoomVersionRules},
};
use ruma_events::TimelineEventType;
use ruma_state_res::auth_types_for_event;
use serde_json::{Value, json, value::to_raw_value};

use super::{
    key::{Key, now_ms},
    memory::{Memory, State},
    pdu::{Pdu, rules_of},
};

/// A room as another server knows it; cheap to clone.
#[derive(Clone, Debug)]
pub struct Room {
    pub(crate) memory: Arc<Mutex<Memory>>,
    /// The server and the key that sign what is made here.
    server: String,
    key: Key,
}

impl Room {
    pub(crate) fn of(memory: Memory, server: &str, key: &Key) -> Self {
        let memory = Arc::new(Mutex::new(memory));
        Self { memory, server: server.to_owned(), key: key.clone() }
    }

    /// A public room of `version` that `creator` has made; `create` is added to the content of
    /// its create event.
    pub(crate) fn create(
        server: &str,
        key: &Key,
        version: &str,
        creator: &str,
        create: &Value,
    ) -> Self {
        let rules = rules_of(version);
        let mut content = json!({"room_version": version});
        if !rules.authorization.use_room_create_sender {
            content["creator"] = creator.into();
        }
        extend(&mut content, create);
        let id_is_hash = rules.room_id_format == RoomIdFormatVersion::V2;
        let made_up = format!("!{:016x}:{server}", rand::random::<u64>());
        let room = Self::of(Memory::new(&made_up, version), server, key);
        let first = room.draft(creator, "m.room.create", content).state("");
        let first = first.with("origin_server_ts", creation_ms()).make();
        if id_is_hash {
            room.memory().room_id = first.id.replacen('$', "!", 1);
        }
        room.memory().add(&first);
        room.set(creator, "m.room.member", creator, json!({"membership": "join"}));
        // From version 12 on creators stand above all levels, and are not in the list.
        let users = if id_is_hash { json!({}) } else { json!({creator: 100}) };
        room.set(creator, "m.room.power_levels", "", json!({"users": users}));
        room.set(creator, "m.room.join_rules", "", json!({"join_rule": "public"}));
        let visibility = json!({"history_visibility": "shared"});
        room.set(creator, "m.room.history_visibility", "", visibility);
        room
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("no test panics while it looks at a room")
    }

    /// `!…`
    pub fn id(&self) -> String {
        self.memory().room_id.clone()
    }

    /// Its version.
    pub fn version(&self) -> String {
        self.memory().version.clone()
    }

    /// The rules of its version.
    pub fn rules(&self) -> RoomVersionRules {
        self.memory().rules.clone()
    }

    /// An event to be made by `sender`.
    pub fn draft(&self, sender: &str, kind: &str, content: Value) -> Draft {
        Draft {
            room: self.clone(),
            event: json!({"sender": sender, "type": kind, "content": content}),
            after: None,
            allowed_by: None,
            signer: (self.server.clone(), self.key.clone()),
        }
    }

    /// A text.
    pub fn say(&self, sender: &str, text: &str) -> Pdu {
        self.draft(sender, "m.room.message", json!({"msgtype": "m.text", "body": text})).add()
    }

    /// A piece of state.
    pub fn set(&self, sender: &str, kind: &str, key: &str, content: Value) -> Pdu {
        self.draft(sender, kind, content).state(key).add()
    }

    /// Takes an event in that somebody else has made.
    pub fn take(&self, pdu: &Pdu) {
        self.memory().add(pdu);
    }

    /// One of its events.
    pub fn event(&self, id: &str) -> Option<Pdu> {
        self.memory().get(id).cloned()
    }

    /// The events that none refers to yet.
    pub fn heads(&self) -> Vec<String> {
        self.memory().heads().to_vec()
    }

    /// Its current state, as this server sees it.
    pub fn current(&self) -> State {
        self.memory().current().clone()
    }

    /// The current event of a piece of state.
    pub fn state(&self, kind: &str, key: &str) -> Option<Pdu> {
        let memory = self.memory();
        let id = memory.current().get(&(kind.to_owned(), key.to_owned()))?;
        memory.get(id).cloned()
    }

    /// `membership` of a user; empty if there is none.
    pub fn membership(&self, user: &str) -> String {
        let member = self.state("m.room.member", user);
        let membership = member.as_ref().and_then(|pdu| pdu.json["content"]["membership"].as_str());
        membership.unwrap_or_default().to_owned()
    }

    /// All servers with a joined member.
    pub fn servers(&self) -> Vec<String> {
        let memory = self.memory();
        let mut servers: Vec<String> = memory
            .events_of(memory.current())
            .into_iter()
            .filter(|pdu| pdu.json["content"]["membership"] == "join")
            .filter_map(|pdu| Some(pdu.text("state_key").split_once(':')?.1.to_owned()))
            .collect();
        servers.sort();
        servers.dedup();
        servers
    }
}

/// An event to be made. Without further words it follows all heads, names what allows it, and is
/// hashed and signed as its room version says.
#[derive(Debug)]
#[must_use = "an event is made by `add`, `make` or `template`"]
pub struct Draft {
    room: Room,
    event: Value,
    after: Option<Vec<String>>,
    allowed_by: Option<Vec<String>>,
    signer: (String, Key),
}

impl Draft {
    /// As state with this key.
    pub fn state(self, key: &str) -> Self {
        self.with("state_key", key)
    }

    /// With any member: `depth`, `origin_server_ts`, `redacts`, `origin` …
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.event[member] = value.into();
        self
    }

    /// After these events, whether they exist or not.
    pub fn after<S: AsRef<str>>(mut self, ids: &[S]) -> Self {
        self.after = Some(ids.iter().map(|id| id.as_ref().to_owned()).collect());
        self
    }

    /// Allowed by these events, it says.
    pub fn allowed_by<S: AsRef<str>>(mut self, ids: &[S]) -> Self {
        self.allowed_by = Some(ids.iter().map(|id| id.as_ref().to_owned()).collect());
        self
    }

    /// Signed as `server` with `key`.
    pub fn signed_as(mut self, server: &str, key: &Key) -> Self {
        self.signer = (server.to_owned(), key.clone());
        self
    }

    /// Makes it, and takes it into this server's memory of the room.
    pub fn add(self) -> Pdu {
        let room = self.room.clone();
        let pdu = self.make();
        room.take(&pdu);
        pdu
    }

    /// Makes it, and forgets it.
    pub fn make(self) -> Pdu {
        let (room, signer) = (self.room.clone(), self.signer.clone());
        let mut event = self.template();
        let rules = room.rules();
        if rules.event_id_format == EventIdFormatVersion::V1 {
            let made_up = format!("${:016x}:{}", rand::random::<u64>(), signer.0);
            put_default(&mut event, "event_id", made_up);
        }
        Pdu::seal(event, &rules, &signer.0, &signer.1)
    }

    /// The event without hashes, signatures and id, as `make_join` answers it.
    pub fn template(self) -> Value {
        let memory = self.room.memory();
        let (rules, mut event) = (&memory.rules, self.event);
        let after = self.after.unwrap_or_else(|| memory.heads().to_vec());
        let state = if after == memory.heads() {
            memory.current().clone()
        } else {
            memory.state_after(&after)
        };
        let allowed_by = self.allowed_by.unwrap_or_else(|| deciding(rules, &state, &event));
        let depth = after.iter().filter_map(|id| memory.get(id)?.json["depth"].as_u64()).max();
        let references = |ids: &[String]| -> Value {
            ids.iter().map(|id| reference(&memory, id)).collect::<Vec<_>>().into()
        };
        put_default(&mut event, "prev_events", references(&after));
        put_default(&mut event, "auth_events", references(&allowed_by));
        put_default(&mut event, "depth", depth.unwrap_or(0) + 1);
        put_default(&mut event, "origin_server_ts", now_ms());
        put_default(&mut event, "origin", self.room.server.as_str());
        let names_itself =
            event["type"] == "m.room.create" && rules.room_id_format == RoomIdFormatVersion::V2;
        if !names_itself {
            put_default(&mut event, "room_id", memory.room_id.as_str());
        }
        event
    }
}

/// The time of a new room, which no other has: in some versions its id follows from its first
/// event.
fn creation_ms() -> u64 {
    static NEWEST: AtomicU64 = AtomicU64::new(0);
    let now = now_ms();
    let later = |newest: u64| Some(now.max(newest + 1));
    match NEWEST.fetch_update(Ordering::AcqRel, Ordering::Acquire, later) {
        Ok(newest) | Err(newest) => now.max(newest + 1),
    }
}

fn put_default(event: &mut Value, member: &str, value: impl Into<Value>) {
    if event.get(member).is_none() {
        event[member] = value.into();
    }
}

fn extend(content: &mut Value, more: &Value) {
    if let (Value::Object(content), Value::Object(more)) = (content, more) {
        content.extend(more.clone());
    }
}

/// A reference to an event of the room, or to one that nobody has.
fn reference(memory: &Memory, id: &str) -> Value {
    match memory.get(id) {
        Some(pdu) => pdu.reference(&memory.rules),
        None if memory.rules.event_id_format == EventIdFormatVersion::V1 => {
            json!([id, {"sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"}])
        }
        None => id.into(),
    }
}

/// The events of `state` that decide whether `event` is allowed.
fn deciding(rules: &RoomVersionRules, state: &State, event: &Value) -> Vec<String> {
    let Ok(sender) = <&UserId>::try_from(event["sender"].as_str().unwrap_or_default()) else {
        return Vec::new();
    };
    let content = to_raw_value(&event["content"]).expect("JSON is JSON");
    let kind = TimelineEventType::from(event["type"].as_str().unwrap_or_default());
    let key = event["state_key"].as_str();
    let types = auth_types_for_event(&kind, sender, key, &content, &rules.authorization);
    let types = types.unwrap_or_default().into_iter();
    let mut ids: Vec<String> =
        types.filter_map(|(kind, key)| state.get(&(kind.to_string(), key)).cloned()).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// All room versions that the specification calls stable.
pub const VERSIONS: &[&str] = &["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];
