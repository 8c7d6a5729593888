//! Rooms whose graph forks, in memory.

use chatd_kit::other::{Pdu as Wire, canonical};
use ruma_common::{
    OwnedRoomId, OwnedUserId, RoomId, RoomVersionId,
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion},
};
use ruma_signatures::add_content_hash_to_event;
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::judge;

pub(super) const VERSIONS: [&str; 6] = ["1", "2", "6", "10", "11", "12"];
pub(super) const ALICE: &str = "@alice:a.example";
pub(super) const BOB: &str = "@bob:b.example";
pub(super) const CAROL: &str = "@carol:c.example";

/// A room of which everything is in memory.
pub(super) struct Lab {
    pub(super) rules: RoomVersionRules,
    pub(super) room_id: OwnedRoomId,
    pub(super) events: HashMap<EventNid, Arc<Pdu>>,
    /// The events as servers exchange them.
    pub(super) wire: HashMap<EventNid, Wire>,
    edges: AuthEdges,
    pub(super) after: HashMap<EventNid, StateMap>,
    /// Why events are rejected.
    pub(super) refused: HashMap<EventNid, String>,
    /// Events before which states had to be resolved.
    pub(super) disputes: usize,
    keys: HashMap<(String, String), KeyNid>,
}

/// An event to be added.
pub(super) struct Draft<'a> {
    pub(super) prev: &'a [EventNid],
    pub(super) sender: &'a str,
    pub(super) kind: &'a str,
    pub(super) key: Option<&'a str>,
    pub(super) content: Value,
    pub(super) redacts: Option<OwnedEventId>,
    pub(super) origin_ts: i64,
    /// That of the newest predecessor and one more, if absent.
    pub(super) depth: Option<i64>,
}

impl Lab {
    /// A room without any event.
    pub(super) fn empty(version: &str) -> Self {
        Self {
            rules: RoomVersionId::try_from(version).unwrap().rules().unwrap(),
            room_id: RoomId::parse("!room:a.example").unwrap(),
            events: HashMap::new(),
            wire: HashMap::new(),
            edges: HashMap::new(),
            after: HashMap::new(),
            refused: HashMap::new(),
            disputes: 0,
            keys: HashMap::new(),
        }
    }

    /// A public room of Alice, in which Bob and Carol are moderators.
    pub(super) fn new(version: &str) -> (Self, EventNid) {
        let mut lab = Self::empty(version);
        let create = json!({"room_version": version, "creator": ALICE});
        let mut at = lab.add(&[], ALICE, "m.room.create", "", create);
        at = lab.add(&[at], ALICE, "m.room.member", ALICE, json!({"membership": "join"}));
        at = lab.levels(&[at], ALICE, json!({BOB: 50, CAROL: 50}));
        at = lab.add(&[at], ALICE, "m.room.join_rules", "", json!({"join_rule": "public"}));
        for user in [BOB, CAROL] {
            at = lab.add(&[at], user, "m.room.member", user, json!({"membership": "join"}));
        }
        at = lab.add(&[at], ALICE, "m.room.topic", "", json!({"topic": "old"}));
        (lab, at)
    }

    pub(super) fn levels(&mut self, prev: &[EventNid], sender: &str, mut users: Value) -> EventNid {
        if !self.rules.authorization.explicitly_privilege_room_creators {
            users[ALICE] = 100.into();
        }
        self.add(prev, sender, "m.room.power_levels", "", json!({"users": users}))
    }

    /// Adds a state event after `prev`, at a time that follows all others.
    pub(super) fn add(
        &mut self,
        prev: &[EventNid],
        sender: &str,
        kind: &str,
        key: &str,
        content: Value,
    ) -> EventNid {
        let origin_ts = self.next();
        self.add_at(origin_ts, prev, sender, kind, key, content)
    }

    /// Adds a state event at a time.
    pub(super) fn add_at(
        &mut self,
        origin_ts: i64,
        prev: &[EventNid],
        sender: &str,
        kind: &str,
        key: &str,
        content: Value,
    ) -> EventNid {
        let key = Some(key);
        let draft =
            Draft { prev, sender, kind, key, content, redacts: None, origin_ts, depth: None };
        self.add_draft(draft, |_, _| {})
    }

    /// Adds an event after `change` has had the events that it names to show that it is allowed.
    /// One that is not allowed is rejected.
    pub(super) fn add_draft(
        &mut self,
        draft: Draft<'_>,
        change: impl FnOnce(&Self, &mut Vec<EventNid>),
    ) -> EventNid {
        let (nid, key) = self.numbers(draft.kind, draft.key);
        let before = self.before(draft.prev);
        let mut pdu = self.pdu(nid, key, &draft);
        let mut auth = self.named(&pdu, &before);
        change(self, &mut auth);
        pdu.auth_events = auth.iter().map(|auth| self.events[auth].event_id.clone()).collect();
        let wire = self.wired(&pdu, &draft, &auth);
        pdu.event_id = OwnedEventId::try_from(wire.id.as_str()).unwrap();
        let is_create = draft.kind == "m.room.create";
        if is_create && draft.prev.is_empty() && self.has_hash_id() {
            self.room_id = crate::seal::room_id_of_create(&pdu.event_id.clone()).unwrap();
        }
        self.take(pdu, wire, auth, before);
        nid
    }

    /// The numbers of the next event and of what it is the state of.
    pub(super) fn numbers(&mut self, kind: &str, key: Option<&str>) -> (EventNid, Option<KeyNid>) {
        (EventNid(self.next() + 1), key.map(|key| self.key(kind, key)))
    }

    /// The state before an event that is to follow `prev`.
    pub(super) fn before(&mut self, prev: &[EventNid]) -> StateMap {
        let states: Vec<StateMap> = prev.iter().map(|prev| self.after[prev].clone()).collect();
        self.disputes += usize::from(!Split::of(&states).events().is_empty());
        self.merge(prev)
    }

    /// Takes in a complete event that names `auth`, judged by that and by the state before it.
    pub(super) fn take(&mut self, mut pdu: Pdu, wire: Wire, auth: Vec<EventNid>, before: StateMap) {
        let (nid, key) = (pdu.nid, pdu.key);
        let named: Vec<Arc<Pdu>> = auth.iter().map(|auth| self.events[auth].clone()).collect();
        let in_force = |kind: &str, key: &str| {
            self.get(&before, kind, key).map(|event| self.events[&event].clone())
        };
        let allowed = judge::allowed(&self.rules.authorization, &pdu, &named, in_force);
        pdu.rejected = allowed.is_err();
        let mut after = before;
        match (allowed, key) {
            (Ok(()), Some(key)) => drop(after.insert(key, nid)),
            (Ok(()), None) => {}
            (Err(why), _) => drop(self.refused.insert(nid, why)),
        }
        self.after.insert(nid, after);
        self.edges.insert(nid, auth);
        self.wire.insert(nid, wire);
        self.events.insert(nid, Arc::new(pdu));
    }

    /// All events in the order in which they were added.
    pub(super) fn in_order(&self) -> Vec<EventNid> {
        let mut order: Vec<EventNid> = self.events.keys().copied().collect();
        order.sort();
        order
    }

    fn next(&self) -> i64 {
        i64::try_from(self.events.len()).unwrap()
    }

    fn has_hash_id(&self) -> bool {
        self.rules.authorization.room_create_event_id_as_room_id
    }

    fn key(&mut self, kind: &str, key: &str) -> KeyNid {
        let next = KeyNid(i64::try_from(self.keys.len()).unwrap() + 1);
        *self.keys.entry((kind.to_owned(), key.to_owned())).or_insert(next)
    }

    /// The event without its id and what allows it.
    fn pdu(&self, nid: EventNid, key: Option<KeyNid>, draft: &Draft<'_>) -> Pdu {
        let deepest = draft.prev.iter().map(|prev| self.events[prev].depth).max().unwrap_or(0);
        let has_room = !(draft.kind == "m.room.create" && self.has_hash_id());
        Pdu {
            nid,
            key,
            event_id: OwnedEventId::try_from(format!("${}:a.example", nid.0)).unwrap(),
            room_id: has_room.then(|| self.room_id.clone()),
            sender: OwnedUserId::try_from(draft.sender).unwrap(),
            origin_ts: draft.origin_ts,
            depth: draft.depth.unwrap_or(deepest + 1),
            kind: draft.kind.into(),
            state_key: draft.key.map(str::to_owned),
            content: to_raw_value(&draft.content).unwrap(),
            prev_events: draft.prev.iter().map(|prev| self.events[prev].event_id.clone()).collect(),
            auth_events: Vec::new(),
            redacts: draft.redacts.clone(),
            rejected: false,
            hash: None,
        }
    }

    /// The events of a state that an event has to name.
    fn named(&self, pdu: &Pdu, before: &StateMap) -> Vec<EventNid> {
        let is_create = |kind: &str| kind == "m.room.create";
        if is_create(&pdu.kind.to_string()) {
            return Vec::new();
        }
        deciding_keys(&self.rules, [&Arc::new(pdu.clone())].into_iter())
            .iter()
            .filter(|(kind, _)| !(is_create(kind) && self.has_hash_id()))
            .filter_map(|(kind, key)| self.get(before, kind, key))
            .collect()
    }

    /// The event as its server sends it, but for the signatures, which are made up.
    fn wired(&self, pdu: &Pdu, draft: &Draft<'_>, auth: &[EventNid]) -> Wire {
        let references = |events: &[EventNid]| -> Vec<Value> {
            let ids = events.iter().map(|event| self.events[event].event_id.as_str());
            match self.rules.events_reference_format {
                EventsReferenceFormatVersion::V1 => {
                    ids.map(|id| json!([id, {"sha256": "made up"}])).collect()
                }
                _ => ids.map(Value::from).collect(),
            }
        };
        let authorising = draft.content["join_authorised_via_users_server"].as_str();
        let signers = [Some(draft.sender), authorising].into_iter().flatten();
        let signatures: serde_json::Map<String, Value> = signers
            .filter_map(|user| {
                Some((user.split_once(':')?.1.to_owned(), json!({"ed25519:a": "x"})))
            })
            .collect();
        let mut event = json!({
            "sender": draft.sender,
            "origin_server_ts": draft.origin_ts,
            "depth": pdu.depth,
            "type": draft.kind,
            "content": draft.content,
            "prev_events": references(draft.prev),
            "auth_events": references(auth),
            "signatures": signatures,
        });
        if let Some(room_id) = &pdu.room_id {
            event["room_id"] = room_id.as_str().into();
        }
        if let Some(key) = draft.key {
            event["state_key"] = key.into();
        }
        if let Some(redacts) = &draft.redacts {
            event["redacts"] = redacts.as_str().into();
        }
        if self.rules.event_id_format == EventIdFormatVersion::V1 {
            let server = pdu.sender.server_name();
            event["event_id"] = format!("${}:{server}", pdu.nid.0).into();
        }
        let mut event = canonical(event);
        add_content_hash_to_event(&mut event).unwrap();
        Wire::of(serde_json::to_value(event).unwrap(), &self.rules)
    }

    pub(super) fn merge(&self, prev: &[EventNid]) -> StateMap {
        let states: Vec<StateMap> = prev.iter().map(|prev| self.after[prev].clone()).collect();
        let split = Split::of(&states);
        if split.events().is_empty() {
            return split.agreed;
        }
        let common = common_chain(&self.edges, &split.agreed);
        let material = Material { pdus: self.events.clone(), edges: self.edges.clone(), common };
        resolve(&self.rules, &split, &material).unwrap()
    }

    /// The event that `state` has for a key.
    pub(super) fn get(&self, state: &StateMap, kind: &str, key: &str) -> Option<EventNid> {
        state.get(self.keys.get(&(kind.to_owned(), key.to_owned()))?).copied()
    }
}
