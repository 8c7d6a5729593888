//! What another server remembers of a room: its events, in the order in which they came.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ruma_common::room_version_rules::RoomVersionRules;

use super::pdu::{Pdu, rules_of};

/// (type, state key) → event id.
pub type State = BTreeMap<(String, String), String>;

/// The events of one room.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) room_id: String,
    pub(crate) version: String,
    pub(crate) rules: RoomVersionRules,
    events: HashMap<String, Held>,
    /// The state where its knowledge begins: nothing in a room of its own.
    base: State,
    /// The state after `heads`.
    current: State,
    heads: Vec<String>,
}

#[derive(Debug)]
struct Held {
    pdu: Pdu,
    /// When it came; `None` for what is known only as part of a state.
    place: Option<usize>,
}

impl Memory {
    pub(crate) fn new(room_id: &str, version: &str) -> Self {
        Self {
            room_id: room_id.to_owned(),
            version: version.to_owned(),
            rules: rules_of(version),
            events: HashMap::new(),
            base: State::new(),
            current: State::new(),
            heads: Vec::new(),
        }
    }

    /// Begins with this state, of which nothing earlier is known.
    pub(crate) fn begin(&mut self, state: &[Pdu], chain: &[Pdu]) {
        for pdu in chain.iter().chain(state) {
            let held = Held { pdu: pdu.clone(), place: None };
            self.events.entry(pdu.id.clone()).or_insert(held);
        }
        let entries = state.iter().filter_map(|pdu| Some((pdu.state_entry()?, pdu.id.clone())));
        self.base = entries.collect();
        self.current = self.base.clone();
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Pdu> {
        self.events.get(id).map(|held| &held.pdu)
    }

    pub(crate) fn heads(&self) -> &[String] {
        &self.heads
    }

    pub(crate) fn current(&self) -> &State {
        &self.current
    }

    /// Takes an event in after all others; it becomes a head.
    pub(crate) fn add(&mut self, pdu: &Pdu) {
        if self.events.get(&pdu.id).is_some_and(|held| held.place.is_some()) {
            return;
        }
        let prev: BTreeSet<String> = pdu.references("prev_events").into_iter().collect();
        let follows_all = self.heads.iter().all(|head| prev.contains(head));
        let place = Some(self.events.len());
        self.events.insert(pdu.id.clone(), Held { pdu: pdu.clone(), place });
        self.heads.retain(|head| !prev.contains(head));
        self.heads.push(pdu.id.clone());
        match pdu.state_entry() {
            Some(entry) if follows_all => drop(self.current.insert(entry, pdu.id.clone())),
            None if follows_all => {}
            _ => self.current = self.state_after(&self.heads),
        }
    }

    /// The state after `ids`. Where branches disagree, what came last holds: this server does not
    /// resolve.
    pub(crate) fn state_after(&self, ids: &[String]) -> State {
        let mut state = self.base.clone();
        for pdu in self.ancestors(ids, usize::MAX) {
            if let Some(entry) = pdu.state_entry() {
                state.insert(entry, pdu.id.clone());
            }
        }
        state
    }

    /// The state before `id`.
    pub(crate) fn state_before(&self, id: &str) -> State {
        let prev = self.get(id).map(|pdu| pdu.references("prev_events"));
        self.state_after(&prev.unwrap_or_default())
    }

    /// `ids` and what is before them, oldest first; at most the last `limit`.
    pub(crate) fn ancestors(&self, ids: &[String], limit: usize) -> Vec<&Pdu> {
        let mut found = BTreeMap::new();
        let mut open: Vec<String> = ids.to_vec();
        while let Some(id) = open.pop() {
            let Some(held) = self.events.get(&id) else { continue };
            let Some(place) = held.place else { continue };
            if found.insert(place, &held.pdu).is_none() {
                open.extend(held.pdu.references("prev_events"));
            }
        }
        let skipped = found.len().saturating_sub(limit);
        found.into_values().skip(skipped).collect()
    }

    /// What `ids` are allowed by, and what that is allowed by, and so on; without `ids`.
    pub(crate) fn auth_chain(&self, ids: impl IntoIterator<Item = String>) -> Vec<&Pdu> {
        let mut found = BTreeMap::new();
        let mut open: Vec<String> = ids.into_iter().collect();
        while let Some(id) = open.pop() {
            for auth in self.get(&id).map(|pdu| pdu.references("auth_events")).unwrap_or_default() {
                if let Some(pdu) = self.get(&auth)
                    && found.insert(auth.clone(), pdu).is_none()
                {
                    open.push(auth);
                }
            }
        }
        found.into_values().collect()
    }

    /// The events of a state.
    pub(crate) fn events_of(&self, state: &State) -> Vec<&Pdu> {
        state.values().filter_map(|id| self.get(id)).collect()
    }
}
