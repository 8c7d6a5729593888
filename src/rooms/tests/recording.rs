//! Random rooms are recorded for `recorded`: of many, those in which most happens that no other room
//! of their version has shown, with what Synapse says of them.
//!
//! `CHATD_RECORD_ROOMS=1` records anew; without it the rooms that are there are shown to Synapse again.
//! Both need Synapse (`tests/synapse/install.sh`).

use chatd_kit::other::{VERSIONS, rules_of};
use serde_json::{Value, value::to_raw_value};

use super::{
    lab::Lab,
    oracle::{Answer, Judge},
    play,
    record::{self, Event, Head, Record, Told},
    recorded::acts_of,
    *,
};
use crate::incoming;

/// Random rooms of each version from which is chosen.
const CHOICE: u64 = 500;
/// About as much as the rooms of a version may take.
const MOST_BYTES: usize = 29_000;
/// How much it counts what becomes of a dispute, and that something happens which every collection has
/// to have.
const DISPUTE: usize = 5;
const WANTED: usize = 40;

/// A room, what happens in it, and what it takes.
struct Candidate {
    seed: u64,
    lab: Lab,
    happens: BTreeSet<String>,
    bytes: usize,
}

impl Candidate {
    fn of(version: &str, seed: u64) -> Self {
        let lab = play::room(version, seed);
        let happens = lab.in_order().iter().flat_map(|nid| happens(&lab, *nid)).collect();
        let bytes = lab.wire.values().map(|wire| wire.json.to_string().len() + 150).sum();
        Self { seed, lab, happens, bytes }
    }

    /// What it shows that is not in `shown`, in proportion to its size.
    fn worth(&self, shown: &BTreeSet<String>) -> usize {
        let new = self.happens.difference(shown);
        let worth = |what: &String| match what.split_once(' ') {
            Some(("of", _)) => DISPUTE,
            Some(("a", _)) => WANTED,
            _ => 1,
        };
        new.map(worth).sum::<usize>() * 1_000_000 / self.bytes
    }
}

/// An event's kind and what becomes of it, and of the disputes before it.
fn happens(lab: &Lab, nid: EventNid) -> Vec<String> {
    let pdu = &lab.events[&nid];
    let kind = kind_of(pdu);
    let verdict = lab.refused.get(&nid).map_or("allowed".to_owned(), |why| without_names(why));
    let mut found = vec![format!("{kind}: {verdict}")];
    found.extend(acts_of(lab, pdu).map(str::to_owned));
    let prev: Vec<EventNid> = pdu.prev_events.iter().map(|id| by_id(lab, id)).collect();
    let states: Vec<StateMap> = prev.iter().map(|prev| lab.after[prev].clone()).collect();
    let merged = lab.merge(&prev);
    let disputed: BTreeSet<KeyNid> =
        Split::of(&states).disputed.iter().flat_map(|state| state.keys().copied()).collect();
    for key in disputed {
        let winner = merged.get(&key);
        let any = winner.or_else(|| states.iter().find_map(|state| state.get(&key)));
        let place = winner
            .and_then(|winner| states.iter().position(|state| state.get(&key) == Some(winner)));
        let kind = any.map(|event| kind_of(&lab.events[event])).unwrap_or_default();
        let outcome = match (winner, place) {
            (None, _) => "none".to_owned(),
            (Some(_), None) => "an older one".to_owned(),
            (Some(_), Some(place)) => format!("number {place}"),
        };
        found.push(format!("of {} states: {kind}: {outcome}", states.len()));
    }
    found
}

fn by_id(lab: &Lab, id: &EventId) -> EventNid {
    lab.events.values().find(|pdu| *pdu.event_id == *id).unwrap().nid
}

fn kind_of(pdu: &Pdu) -> String {
    let word = pdu.content_str("membership").or_else(|| pdu.content_str("join_rule"));
    let more = ["third_party_invite", "join_authorised_via_users_server"];
    let more = more.iter().filter(|name| pdu.content.get().contains(**name));
    let more: Vec<&str> = more.copied().collect();
    format!("{} {} {more:?}", pdu.kind, word.unwrap_or_default())
}

/// A reason without the names and numbers in it.
fn without_names(why: &str) -> String {
    let is_word =
        |word: &&str| word.chars().all(|c| c.is_ascii_alphabetic() || "`'_.,".contains(c));
    why.split(' ').filter(is_word).collect::<Vec<_>>().join(" ")
}

/// Versions in which much is decided in another way than in those before. What others of the same age
/// have shown need not be shown again, but for disputes.
const AGES: [&str; 6] = ["1", "2", "6", "8", "10", "12"];

/// The rooms that are to be recorded of a version, where its age has `shown` that so far.
fn chosen(version: &str, shown: &mut BTreeSet<String>) -> Vec<Candidate> {
    shown.retain(|what| !what.starts_with("of ") && !AGES.contains(&version));
    let first = version.parse::<u64>().unwrap() * 1_000;
    let seeds = first..first + CHOICE;
    let mut left: Vec<Candidate> = seeds.map(|seed| Candidate::of(version, seed)).collect();
    let (mut bytes, mut chosen) = (0, Vec::new());
    loop {
        left.retain(|room| bytes + room.bytes <= MOST_BYTES);
        // One that is full of disputes first, but so small that others go beside it.
        let is_full = |room: &Candidate| chosen.is_empty() && room.bytes <= MOST_BYTES / 2;
        let disputes = |room: &Candidate| if is_full(room) { room.lab.disputes } else { 0 };
        let order = |at: &usize| (disputes(&left[*at]), left[*at].worth(shown));
        let best = (0..left.len()).max_by_key(order);
        let Some(best) = best else { return chosen };
        let room = left.swap_remove(best);
        bytes += room.bytes;
        shown.extend(room.happens.iter().cloned());
        chosen.push(room);
    }
}

/// The room with Synapse's answers.
fn record(judge: &mut Judge, version: &str, room: &Candidate) -> Record {
    let lab = &room.lab;
    let order = lab.in_order();
    let events = order.iter().map(|nid| (&*lab.events[nid], &lab.wire[nid].json));
    let (answers, error) = judge.ask((version, &lab.room_id), events);
    assert_eq!(error, None, "Synapse fails on room {} of version {version}", room.seed);
    let states: HashMap<&EventId, Told> = order
        .iter()
        .zip(&answers)
        .map(|(nid, answer)| (&*lab.events[nid].event_id, answer.state()))
        .collect();
    let event = |(nid, answer): (&EventNid, &Answer)| {
        let pdu = &lab.events[nid];
        let before = pdu.prev_events.first().map(|first| states[&**first].clone());
        Event {
            id: pdu.event_id.clone(),
            refused: answer.refused.clone(),
            changed: record::changes(&before.unwrap_or_default(), &answer.state()),
            pdu: to_raw_value(&lab.wire[nid].json).unwrap(),
        }
    };
    let head = Head {
        id: lab.room_id.clone(),
        version: version.to_owned(),
        made: format!("random room {}", room.seed),
        keys: ruma_signatures::PublicKeyMap::new(),
    };
    Record { head, events: order.iter().zip(&answers).map(event).collect(), end: None }
}

fn record_all(judge: &mut Judge) {
    let mut shown = BTreeSet::new();
    for version in VERSIONS {
        let rooms = chosen(version, &mut shown);
        let text: String =
            rooms.iter().map(|room| record::written(&record(judge, version, room))).collect();
        let file = record::folder().join(format!("random_{version:0>2}.jsonl"));
        chatd_kit::say(format!("{}: {} rooms, {} bytes", file.display(), rooms.len(), text.len()));
        // In one step: other tests may be reading it.
        let made = file.with_extension("new");
        std::fs::write(&made, text).unwrap();
        std::fs::rename(made, file).unwrap();
    }
}

/// Shows a recorded room to Synapse again; says what is another than it was.
fn show(judge: &mut Judge, room: &Record) -> Result<(), String> {
    let (rules, room_id) = (rules_of(&room.head.version), &room.head.id);
    let read = |event: &Event| {
        let whole = serde_json::from_str(event.pdu.get()).unwrap();
        let pdu = incoming::read(whole, &rules, room_id).unwrap().pdu;
        (pdu, serde_json::from_str::<Value>(event.pdu.get()).unwrap())
    };
    let events: Vec<(Pdu, Value)> = room.events.iter().map(read).collect();
    let told = events.iter().map(|(pdu, json)| (pdu, json));
    let (answers, error) = judge.ask((&room.head.version, room_id), told);
    let mut states: HashMap<&EventId, Told> = HashMap::new();
    for ((event, (pdu, _)), answer) in room.events.iter().zip(&events).zip(&answers) {
        let before = pdu.prev_events.first().map(|first| states[&**first].clone());
        let recorded = record::changed(before.unwrap_or_default(), &event.changed);
        if answer.refused.is_some() != event.refused.is_some() {
            return Err(format!("{}: {:?} now", event.id, answer.refused));
        }
        let differing = record::changes(&recorded, &answer.state());
        if !differing.is_empty() {
            return Err(format!("{}: the state differs now: {differing:?}", event.id));
        }
        states.insert(&event.id, recorded);
    }
    error.map_or(Ok(()), Err)
}

#[test]
fn synapse_says_of_recorded_rooms_what_is_recorded() {
    let Some(mut judge) = Judge::start() else {
        chatd_kit::say("skipped: Synapse is not installed (tests/synapse/install.sh)");
        return;
    };
    if std::env::var_os("CHATD_RECORD_ROOMS").is_some() {
        record_all(&mut judge);
    }
    for (file, room) in record::all() {
        let shown = show(&mut judge, &room);
        assert_eq!(shown, Ok(()), "{file}, {} ({})", room.head.id, room.head.made);
    }
}
