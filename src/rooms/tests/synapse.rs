//! Random rooms, judged here and by Synapse: both have to allow the same events and come to the same
//! state, whatever people do, and wherever branches meet.
//!
//! A run prints its seed; `CHATD_ORACLE_SEED` repeats it, and `CHATD_ORACLE_ROOMS` is how many rooms
//! there are. Skipped, with a word, where Synapse is not installed (`tests/synapse/install.sh`).

use chatd_kit::other::VERSIONS;

use super::{lab::Lab, oracle::Judge, play, record::changes, recorded::told, *};

/// Differences that are told.
const MOST_TOLD: usize = 8;

/// The first event of which the two think differently, and how.
fn difference(lab: &Lab, judge: &mut Judge, version: &str) -> Option<String> {
    let order: Vec<EventNid> = lab.in_order();
    let events = order.iter().map(|nid| (&*lab.events[nid], &lab.wire[nid].json));
    let (answers, error) = judge.ask((version, &lab.room_id), events);
    for (nid, answer) in order.iter().zip(&answers) {
        let event = &lab.wire[nid].json;
        let (ours, theirs) = (lab.refused.get(nid), &answer.refused);
        if ours.is_some() != theirs.is_some() {
            return Some(format!("refused: {ours:?} here, {theirs:?} by Synapse: {event:#}"));
        }
        let (ours, theirs) = (told(lab, &lab.after[nid]), answer.state());
        let show = |id: Option<&OwnedEventId>| {
            let found = lab.wire.values().find(|wire| id.is_some_and(|id| *id == *wire.id));
            found.map_or("nothing".to_owned(), |wire| wire.json.to_string())
        };
        let lines: Vec<String> = changes(&ours, &theirs)
            .into_iter()
            .map(|(kind, state_key, id)| {
                let key = (kind, state_key);
                format!("{key:?}:\n  {}\n  {}", show(ours.get(&key)), show(id.as_ref()))
            })
            .collect();
        if !lines.is_empty() {
            let lines = lines.join("\n");
            return Some(format!("state after {event}, here and by Synapse:\n{lines}"));
        }
    }
    error.map(|error| format!("{error} at {:#}", lab.wire[&order[answers.len()]].json))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_rooms_are_judged_as_synapse_judges_them() {
    let Some(mut judge) = Judge::start() else {
        chatd_kit::say("skipped: Synapse is not installed (tests/synapse/install.sh)");
        return;
    };
    let seed = number("CHATD_ORACLE_SEED").unwrap_or_else(rand::random);
    let rooms = number("CHATD_ORACLE_ROOMS").unwrap_or(48);
    chatd_kit::say(format!("CHATD_ORACLE_SEED={seed} CHATD_ORACLE_ROOMS={rooms}"));
    let mut differences = Vec::new();
    let (mut count, mut refused, mut disputes) = (0, 0, 0);
    for number in 0..rooms {
        let version = VERSIONS[usize::try_from(number).unwrap() % VERSIONS.len()];
        let lab = play::room(version, seed.wrapping_add(number));
        count += lab.events.len();
        refused += lab.refused.len();
        disputes += lab.disputes;
        if let Some(difference) = difference(&lab, &mut judge, version) {
            differences.push(format!("room {number}, version {version}: {difference}"));
        }
    }
    chatd_kit::say(format!(
        "{count} events, {refused} of them refused, {disputes} after a dispute; {} of {rooms} rooms \
         differ",
        differences.len()
    ));
    for difference in differences.iter().take(MOST_TOLD) {
        chatd_kit::say(difference);
    }
    assert!(differences.is_empty(), "{} rooms differ", differences.len());
}
