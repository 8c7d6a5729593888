//! State resolution: what the state of a room is when branches of its event graph disagree.
//! Pure; `place` reads the events that it needs. Ruma has the algorithm of room version 2 and
//! later, `resolve_v1` that of version 1.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{EventNid, KeyNid};
use chatd_storage::snapshots::StateMap;
use ruma_common::{
    EventId, OwnedEventId,
    room_version_rules::{RoomVersionRules, StateResolutionVersion},
};
use ruma_events::{StateEventType, TimelineEventType};
use ruma_state_res::{auth_types_for_event, utils::event_id_set::EventIdSet};

use crate::{
    pdu::Pdu,
    resolve_v1,
    rules::{for_resolution, made_up},
};

/// Which entries several states agree on, and which they do not.
#[derive(Debug, Default)]
pub struct Split {
    pub agreed: StateMap,
    /// For each state, what it has for the keys that are in dispute.
    pub disputed: Vec<StateMap>,
}

impl Split {
    /// Compares states. A key that some state lacks is in dispute.
    pub fn of(states: &[StateMap]) -> Self {
        let mut votes: BTreeMap<(KeyNid, EventNid), usize> = BTreeMap::new();
        for entry in states.iter().flatten() {
            *votes.entry((*entry.0, *entry.1)).or_default() += 1;
        }
        let agreed: StateMap =
            votes.into_iter().filter(|(_, count)| *count == states.len()).map(|(e, _)| e).collect();
        let rest = |state: &StateMap| {
            let open = state.iter().filter(|(key, _)| !agreed.contains_key(key));
            open.map(|(key, event)| (*key, *event)).collect()
        };
        Self { disputed: states.iter().map(rest).collect(), agreed }
    }

    /// All events that are in dispute.
    pub fn events(&self) -> BTreeSet<EventNid> {
        self.disputed.iter().flat_map(|state| state.values().copied()).collect()
    }
}

/// Which state events each event names to show that it is allowed.
pub type AuthEdges = HashMap<EventNid, Vec<EventNid>>;

/// Everything that can be reached from `seeds` along `edges`, without the seeds themselves unless
/// another one leads to them.
pub fn auth_chain(
    edges: &AuthEdges,
    seeds: impl IntoIterator<Item = EventNid>,
) -> HashSet<EventNid> {
    let mut chain = HashSet::new();
    let mut open: Vec<EventNid> = seeds.into_iter().collect();
    while let Some(event) = open.pop() {
        for auth in edges.get(&event).into_iter().flatten() {
            if chain.insert(*auth) {
                open.push(*auth);
            }
        }
    }
    chain
}

/// What is no difference between the auth chains of states that agree on `agreed`: these events, and
/// all that authorises them. A state's own events count as known to it. To the letter of the spec
/// they would not, but servers have to come to the same state, and all others do it so.
pub fn common_chain(edges: &AuthEdges, agreed: &StateMap) -> HashSet<EventNid> {
    let mut chain = auth_chain(edges, agreed.values().copied());
    chain.extend(agreed.values());
    chain
}

/// What is needed to settle a dispute.
#[derive(Debug, Default)]
pub struct Material {
    /// Events in dispute, their auth chains, and the entries of the agreed state that decide
    /// whether these are allowed ([`deciding_keys`]).
    pub pdus: HashMap<EventNid, Arc<Pdu>>,
    /// Edges from the disputed events on.
    pub edges: AuthEdges,
    /// What is in the chains of all states, as [`common_chain`] has it.
    pub common: HashSet<EventNid>,
}

/// The (type, state key) pairs that the rules look at when they check `pdus`.
pub fn deciding_keys<'a>(
    rules: &RoomVersionRules,
    pdus: impl Iterator<Item = &'a Arc<Pdu>>,
) -> BTreeSet<(String, String)> {
    let mut keys = BTreeSet::from([("m.room.create".to_owned(), String::new())]);
    for pdu in pdus {
        let types = auth_types_for_event(
            &pdu.kind,
            &pdu.sender,
            pdu.state_key.as_deref(),
            &pdu.content,
            &rules.authorization,
        );
        // A malformed event is allowed by nothing.
        keys.extend(types.into_iter().flatten().map(|(kind, key)| (kind.to_string(), key)));
    }
    keys
}

/// The state that follows from `split`. Fails only if `material` lacks something.
pub fn resolve(
    rules: &RoomVersionRules,
    split: &Split,
    material: &Material,
) -> Result<StateMap, ruma_state_res::Error> {
    let by_id: HashMap<&EventId, &Arc<Pdu>> =
        material.pdus.values().map(|pdu| (&*pdu.event_id, pdu)).collect();
    let resolved = match &rules.state_res {
        StateResolutionVersion::V1 => resolve_v1::resolve(rules, split, material),
        StateResolutionVersion::V2(v2) => {
            let states: Vec<_> = split
                .disputed
                .iter()
                .map(|disputed| named(disputed.iter().chain(&split.agreed), material))
                .collect();
            let chains = split.disputed.iter().map(|disputed| {
                let chain = auth_chain(&material.edges, disputed.values().copied());
                ids(chain.difference(&material.common), material)
            });
            ruma_state_res::resolve(
                &rules.authorization,
                v2,
                &states,
                chains.collect(),
                |id| seen(id, &by_id),
                |_| Some(ids(subgraph(split, material).iter(), material)),
            )?
            .into_values()
            .collect()
        }
        // The enum may grow; no room version that is supported here has another algorithm.
        _ => return Err(ruma_state_res::Error::FetchConflictedStateSubgraphFailed),
    };
    let mut state: StateMap = resolved
        .iter()
        .filter_map(|id| by_id.get(&**id))
        .filter_map(|pdu| Some((pdu.key?, pdu.nid)))
        .collect();
    state.extend(&split.agreed);
    Ok(state)
}

/// An event as ruma is told of it.
fn seen(id: &EventId, by_id: &HashMap<&EventId, &Arc<Pdu>>) -> Option<Pdu> {
    let is_rules = |id: &OwnedEventId| {
        by_id.get(&**id).is_some_and(|pdu| pdu.kind == TimelineEventType::RoomJoinRules)
    };
    match by_id.get(id) {
        Some(pdu) => Some(for_resolution(pdu, || pdu.auth_events.iter().any(is_rules))),
        None => made_up(id, by_id.values().next().copied()),
    }
}

/// Entries by name; those that are not in the material decide nothing and stay out.
fn named<'a>(
    entries: impl Iterator<Item = (&'a KeyNid, &'a EventNid)>,
    material: &Material,
) -> ruma_state_res::StateMap<OwnedEventId> {
    entries
        .filter_map(|(_, event)| material.pdus.get(event))
        .map(|pdu| (name(pdu), pdu.event_id.clone()))
        .collect()
}

/// Type and state key of a state event.
pub fn name(pdu: &Pdu) -> (StateEventType, String) {
    let state_key = pdu.state_key.clone().unwrap_or_default();
    (StateEventType::from(pdu.kind.to_string()), state_key)
}

fn ids<'a>(
    events: impl Iterator<Item = &'a EventNid>,
    material: &Material,
) -> EventIdSet<OwnedEventId> {
    events.filter_map(|event| Some(material.pdus.get(event)?.event_id.clone())).collect()
}

/// Events on the auth paths from one disputed event to another, both ends included (room version
/// 12).
fn subgraph(split: &Split, material: &Material) -> HashSet<EventNid> {
    let disputed = split.events();
    let mut backwards: AuthEdges = HashMap::new();
    for (event, auth) in &material.edges {
        for to in auth {
            backwards.entry(*to).or_default().push(*event);
        }
    }
    let mut below = auth_chain(&material.edges, disputed.iter().copied());
    let mut above = auth_chain(&backwards, disputed.iter().copied());
    below.extend(&disputed);
    above.extend(&disputed);
    below.intersection(&above).copied().collect()
}

#[cfg(test)]
#[path = "tests/auth.rs"]
mod auth_tests;
#[cfg(test)]
#[path = "tests/lab.rs"]
mod lab;
#[cfg(test)]
#[path = "tests/oracle.rs"]
mod oracle;
#[cfg(test)]
#[path = "tests/play.rs"]
mod play;
#[cfg(test)]
#[path = "tests/record.rs"]
mod record;
#[cfg(test)]
#[path = "tests/recorded.rs"]
mod recorded;
#[cfg(test)]
#[path = "tests/recording.rs"]
mod recording;
#[cfg(test)]
#[path = "tests/synapse.rs"]
mod synapse_tests;
#[cfg(test)]
#[path = "tests/resolve.rs"]
mod tests;
#[cfg(test)]
#[path = "tests/vouched.rs"]
mod vouched_tests;
