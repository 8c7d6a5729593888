//! A stored collection of rooms with what Synapse made of them (`recorded/*.jsonl`, see `record`),
//! played without Synapse: of the events as they stand there, hashes, ids and where they are real
//! signatures have to be right; the code here has to reject the same ones, and to come to the same
//! state after each.
//!
//! - `random_*.jsonl`: random rooms (`play`), chosen for what happens in them (`recording`).
//!   Each of their events is judged by Synapse's code by its auth events and by the state before it.
//! - `lived_*.jsonl`: rooms of chatd and a real Synapse server that were parted from each other while
//!   both were active (`tests/it/federation/partition.rs`), as Synapse's database has them
//!   (`tests/synapse/room.py`).
//!
//! Synapse's state at an event of those is the one after it, or before it if it is rejected, as its state
//! groups have it. Of rooms that it has joined it knows what came before from the answers of chatd,
//! and has worked out the states there. Soft failure depends on what a server had at the time, so it
//! is no part of what is compared; a soft-failed event is in the state after it for Synapse too. At the
//! end of a room that was lived, the state of its newest events together is compared with Synapse's
//! current state.

use chatd_base::event_form::as_signed;
use chatd_kit::other::{Pdu as Wire, VERSIONS};
use ruma_common::{CanonicalJsonObject, canonical_json::redact};
use ruma_signatures::{Verified, content_hash, verify_event};
use serde_json::{Value, value::RawValue};

use super::{
    lab::Lab,
    record::{self, Change, Event, Record, Told},
    *,
};
use crate::incoming;

/// A room that is played event by event.
struct Player<'a> {
    head: &'a record::Head,
    lab: Lab,
    nids: HashMap<OwnedEventId, EventNid>,
    /// What Synapse says of the states after events.
    told: HashMap<OwnedEventId, Told>,
}

/// Plays a room; fails at the first thing that is another than in the record.
fn play(record: &Record) -> Result<Lab, String> {
    let mut lab = Lab::empty(&record.head.version);
    lab.room_id = record.head.id.clone();
    let mut player = Player { head: &record.head, lab, nids: HashMap::new(), told: HashMap::new() };
    for event in &record.events {
        player.event(event).map_err(|why| format!("{}: {why}", event.id))?;
    }
    if let Some(end) = &record.end {
        let heads: Vec<EventNid> = end.heads.iter().map(|head| player.nids[head]).collect();
        let merged = player.lab.merge(&heads);
        let wanted = record::changed(player.told[&end.heads[0]].clone(), &end.changed);
        same(&wanted, &told(&player.lab, &merged)).map_err(|why| format!("at the end: {why}"))?;
    }
    Ok(player.lab)
}

impl Player<'_> {
    fn event(&mut self, event: &Event) -> Result<(), String> {
        let whole: CanonicalJsonObject = json(&event.pdu)?;
        self.check_signed(&whole)?;
        let room = self.head.id.clone();
        let mut pdu = incoming::read(whole, &self.lab.rules, &room)
            .map_err(|error| format!("{error:?}"))?
            .pdu;
        if pdu.event_id != event.id {
            return Err(format!("it is {} here", pdu.event_id));
        }
        (pdu.nid, pdu.key) = self.lab.numbers(&pdu.kind.to_string(), pdu.state_key.as_deref());
        let nid = pdu.nid;
        let (prev, auth) = (self.known(&pdu.prev_events)?, self.known(&pdu.auth_events)?);
        let wire = Wire { id: event.id.to_string(), json: json(&event.pdu)? };
        let first = pdu.prev_events.first();
        let told_before = first.map(|first| self.told[first].clone()).unwrap_or_default();
        let before = self.lab.before(&prev);
        self.lab.take(pdu, wire, auth, before);
        self.nids.insert(event.id.clone(), nid);
        match (self.lab.refused.get(&nid), &event.refused) {
            (Some(ours), None) => return Err(format!("rejected here only: {ours}")),
            (None, Some(theirs)) => return Err(format!("rejected by Synapse only: {theirs}")),
            _ => {}
        }
        let wanted = record::changed(told_before, &event.changed);
        same(&wanted, &told(&self.lab, &self.lab.after[&nid]))?;
        self.told.insert(event.id.clone(), wanted);
        Ok(())
    }

    /// The content hash has to be right, and the signatures where there are keys. A real event may have
    /// come to Synapse when it was redacted already: then its hash is still that of what it was.
    fn check_signed(&self, event: &CanonicalJsonObject) -> Result<(), String> {
        let rules = &self.lab.rules;
        if !self.head.keys.is_empty() {
            let is_redacted =
                || redact(event.clone(), &rules.redaction, None).ok().as_ref() == Some(event);
            return match verify_event(&self.head.keys, &as_signed(event, &rules.redaction), rules) {
                Ok(Verified::All) => Ok(()),
                Ok(Verified::Signatures) if is_redacted() => Ok(()),
                other => Err(format!("hash and signatures: {other:?}")),
            };
        }
        let hash = content_hash(event).map_err(|error| error.to_string())?.encode();
        let told = event.get("hashes").and_then(|hashes| hashes.as_object()?.get("sha256"));
        match told.and_then(|told| told.as_str()) == Some(hash.as_str()) {
            true => Ok(()),
            false => Err(format!("the content hash is {hash} here")),
        }
    }

    fn known(&self, ids: &[OwnedEventId]) -> Result<Vec<EventNid>, String> {
        let nid = |id| self.nids.get(id).copied().ok_or_else(|| format!("{id} is not recorded"));
        ids.iter().map(nid).collect()
    }
}

fn json<T: serde::de::DeserializeOwned>(text: &RawValue) -> Result<T, String> {
    serde_json::from_str(text.get()).map_err(|error| error.to_string())
}

/// A state as it is compared.
pub(super) fn told(lab: &Lab, state: &StateMap) -> Told {
    let events = state.values().map(|event| &lab.events[event]);
    let entry = |pdu: &Arc<Pdu>| {
        let key = pdu.state_key.clone().unwrap_or_default();
        ((pdu.kind.to_string(), key), pdu.event_id.clone())
    };
    events.map(entry).collect()
}

fn same(wanted: &Told, found: &Told) -> Result<(), String> {
    match record::changes(wanted, found).as_slice() {
        [] => Ok(()),
        others => Err(format!("the state differs from Synapse's: {others:?}")),
    }
}

#[test]
fn recorded_rooms_come_to_what_synapse_made_of_them() {
    let rooms = record::all();
    let wrong: Vec<String> = rooms
        .iter()
        .filter_map(|(file, record)| {
            let why = play(record).err()?;
            Some(format!("{file}, {} ({}): {why}", record.head.id, record.head.made))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} rooms:\n{}", wrong.len(), rooms.len(), wrong.join("\n"));
}

/// Whatever is changed in the record of an event, the player has to stumble on it there.
#[test]
fn a_changed_record_is_noticed() {
    let mut tried = 0;
    for (file, record) in record::all() {
        for at in (0..record.events.len()).step_by(5) {
            for (what, changed) in forgeries(&record, at) {
                let played = play(&changed).map(drop);
                let told = played.expect_err(&format!("{file}, event {at}: {what}"));
                let id = changed.events[at].id.as_str();
                assert!(told.starts_with(id), "{file}, event {at}: {what}: {told}");
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "only {tried} changes");
}

/// The record with something else at one event.
fn forgeries(record: &Record, at: usize) -> Vec<(&'static str, Record)> {
    let event = &record.events[at];
    let with = |change: &dyn Fn(&mut Event)| {
        let mut changed = record.clone();
        change(&mut changed.events[at]);
        changed
    };
    let mut found = vec![
        (
            "another verdict",
            with(&|event| {
                event.refused = match event.refused {
                    Some(_) => None,
                    None => Some("for no reason".to_owned()),
                };
            }),
        ),
        (
            "another event",
            with(&|event| {
                let mut pdu: Value = serde_json::from_str(event.pdu.get()).unwrap();
                pdu["origin_server_ts"] = 5_000.into();
                event.pdu = serde_json::value::to_raw_value(&pdu).unwrap();
            }),
        ),
        ("another id", with(&|event| event.id = OwnedEventId::try_from("$another:x").unwrap())),
    ];
    let more: Change = ("kit.more".to_owned(), String::new(), Some(event.id.clone()));
    found.push(("more state", with(&|event| event.changed.push(more.clone()))));
    if !event.changed.is_empty() {
        found.push(("less state", with(&|event| drop(event.changed.pop()))));
    }
    found
}

/// What there is of a room version in the collection.
#[derive(Debug, Default)]
struct Count {
    rooms: usize,
    lived: usize,
    events: usize,
    refused: usize,
    disputes: usize,
    acts: BTreeMap<&'static str, usize>,
}

/// So that nothing gets lost when rooms are recorded anew.
#[test]
fn the_collection_is_complete() {
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for (file, record) in record::all() {
        let lab = play(&record).unwrap_or_else(|why| panic!("{file}: {why}"));
        let count = counts.entry(record.head.version.clone()).or_default();
        count.rooms += 1;
        count.lived += usize::from(record.end.is_some());
        count.events += record.events.len();
        count.refused += lab.refused.len();
        count.disputes += lab.disputes;
        for pdu in lab.events.values() {
            acts_of(&lab, pdu).for_each(|act| *count.acts.entry(act).or_default() += 1);
        }
    }
    let mut acts: BTreeMap<&str, usize> = BTreeMap::new();
    for version in VERSIONS {
        let count = &counts[*version];
        chatd_kit::say(format!("version {version}: {count:?}"));
        assert!(count.rooms >= 1 && count.events >= 35, "version {version}: {count:?}");
        assert!(count.refused >= 10 && count.disputes >= 2, "version {version}: {count:?}");
        for (act, number) in &count.acts {
            *acts.entry(act).or_default() += number;
        }
    }
    chatd_kit::say(format!("{acts:?}"));
    let missing: Vec<&str> = ACTS.into_iter().filter(|act| !acts.contains_key(act)).collect();
    assert!(missing.is_empty(), "nowhere: {missing:?}");
    let lived: Vec<&str> =
        counts.iter().filter(|(_, count)| count.lived > 0).map(|(v, _)| v.as_str()).collect();
    assert!(["1", "2", "6", "10", "12"].iter().all(|version| lived.contains(version)), "{lived:?}");
    let number: usize = counts.values().map(|count| count.lived).sum();
    assert!(number >= 10, "only {number} rooms that were lived");
}

/// What happens somewhere, see [`acts_of`].
const ACTS: [&str; 9] = [
    "a ban",
    "a ban that is refused",
    "a change of levels",
    "a change of levels that is refused",
    "a third-party invite",
    "a third-party invite that is refused",
    "a redaction of state",
    "a restricted join",
    "a restricted join that is refused",
];

pub(super) fn acts_of(lab: &Lab, pdu: &Arc<Pdu>) -> impl Iterator<Item = &'static str> {
    let content: Value = serde_json::from_str(pdu.content.get()).unwrap();
    let is_refused = lab.refused.contains_key(&pdu.nid);
    let is = |membership: &str| {
        pdu.kind == TimelineEventType::RoomMember && content["membership"] == membership
    };
    let redacted = lab.events.values().find(|other| Some(&other.event_id) == pdu.redacts.as_ref());
    let both = |has: bool, [allowed, refused]: [&'static str; 2]| {
        has.then_some(if is_refused { refused } else { allowed })
    };
    let is_levels = pdu.kind == TimelineEventType::RoomPowerLevels;
    let by_address = is("invite") && content["third_party_invite"].is_object();
    let is_vouched = is("join")
        && content["join_authorised_via_users_server"].is_string()
        && pdu.auth_events.iter().any(|id| has_restricted_rule(lab, id));
    let is_redaction = redacted.is_some_and(|redacted| redacted.state_key.is_some());
    [
        both(is("ban"), ["a ban", "a ban that is refused"]),
        both(is_levels, ["a change of levels", "a change of levels that is refused"]),
        both(by_address, ["a third-party invite", "a third-party invite that is refused"]),
        both(is_vouched, ["a restricted join", "a restricted join that is refused"]),
        (is_redaction && !is_refused).then_some("a redaction of state"),
    ]
    .into_iter()
    .flatten()
}

fn has_restricted_rule(lab: &Lab, id: &EventId) -> bool {
    let found = lab.events.values().find(|pdu| *pdu.event_id == *id);
    let rule = found.and_then(|pdu| pdu.content_str("join_rule"));
    rule.is_some_and(|rule| rule == "restricted" || rule == "knock_restricted")
}
