//! State resolution of room version 1 (spec: rooms/v1, state resolution).
//!
//! Disputed entries are settled type by type: power levels, join rules, memberships, then the
//! rest, each checked against what is settled already. Unlike later versions, a key that some
//! states lack is not in dispute as long as the others agree on it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chatd_base::{EventNid, KeyNid};
use ruma_common::{OwnedEventId, room_version_rules::RoomVersionRules};
use ruma_events::{StateEventType, TimelineEventType};
use sha1::{Digest, Sha1};

use crate::{
    pdu::Pdu,
    resolve::{Material, Split, name},
    rules::check_by_state,
};

/// State events by type and state key.
type Settled = HashMap<(StateEventType, String), Arc<Pdu>>;

/// Event ids that win the disputes of `split`.
pub fn resolve(rules: &RoomVersionRules, split: &Split, material: &Material) -> Vec<OwnedEventId> {
    let mut candidates: BTreeMap<KeyNid, Vec<Arc<Pdu>>> = BTreeMap::new();
    for (key, event) in split.disputed.iter().flatten() {
        let found = candidates.entry(*key).or_default();
        if let Some(pdu) = material.pdus.get(event).filter(|pdu| !holds(found, pdu.nid)) {
            found.push(pdu.clone());
        }
    }
    let mut settled: Settled = split
        .agreed
        .values()
        .filter_map(|event| material.pdus.get(event))
        .map(|pdu| (name(pdu), pdu.clone()))
        .collect();
    let mut winners: Vec<Arc<Pdu>> = Vec::new();
    let mut rounds: [Vec<Vec<Arc<Pdu>>>; 5] = Default::default();
    for mut events in candidates.into_values().filter(|events| !events.is_empty()) {
        events.sort_by_cached_key(order);
        let round = if events.len() == 1 { 0 } else { round(&events[0].kind) };
        rounds[round].push(events);
    }
    for (round, disputes) in rounds.into_iter().enumerate() {
        let won: Vec<Arc<Pdu>> = disputes
            .into_iter()
            .map(|events| match round {
                0 => events[0].clone(),
                4 => newest_allowed(rules, &events, &settled),
                _ => last_of_chain(rules, &events, &settled),
            })
            .collect();
        // Entries of one round do not see each other.
        settled.extend(won.iter().map(|pdu| (name(pdu), pdu.clone())));
        winners.extend(won);
    }
    winners.iter().map(|pdu| pdu.event_id.clone()).collect()
}

fn holds(events: &[Arc<Pdu>], nid: EventNid) -> bool {
    events.iter().any(|event| event.nid == nid)
}

/// Deepest first; of the same depth the one whose id has the smallest SHA-1.
fn order(pdu: &Arc<Pdu>) -> (Reverse<i64>, [u8; 20]) {
    (Reverse(pdu.depth), Sha1::digest(pdu.event_id.as_bytes()).into())
}

/// When a type is settled; 0 is for entries that nobody disputes after all.
fn round(kind: &TimelineEventType) -> usize {
    match kind {
        TimelineEventType::RoomPowerLevels => 1,
        TimelineEventType::RoomJoinRules => 2,
        TimelineEventType::RoomMember => 3,
        _ => 4,
    }
}

/// From the oldest on, each event has to be allowed with its predecessor in force.
fn last_of_chain(rules: &RoomVersionRules, events: &[Arc<Pdu>], settled: &Settled) -> Arc<Pdu> {
    let mut oldest_first = events.iter().rev();
    let mut winner = oldest_first.next().expect("a dispute has events").clone();
    let mut settled = settled.clone();
    for event in oldest_first {
        settled.insert(name(&winner), winner.clone());
        if !is_allowed(rules, event, &settled) {
            break;
        }
        winner = event.clone();
    }
    winner
}

/// The newest event that is allowed, or the oldest of all if none is.
fn newest_allowed(rules: &RoomVersionRules, events: &[Arc<Pdu>], settled: &Settled) -> Arc<Pdu> {
    let allowed = events.iter().find(|event| is_allowed(rules, event, settled));
    allowed.or(events.last()).expect("a dispute has events").clone()
}

fn is_allowed(rules: &RoomVersionRules, event: &Arc<Pdu>, settled: &Settled) -> bool {
    check_by_state(&rules.authorization, event, |kind, key| {
        settled.get(&(kind.clone(), key.to_owned())).cloned()
    })
    .is_ok()
}
