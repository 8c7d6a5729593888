//! Recorded rooms as they stand in `recorded/*.jsonl`: a line that begins a room, a line for each of
//! its events, after those that it refers to, and where the room was a real one a line about its end.
//! Events are as servers exchange them. All else is what Synapse has said.

use std::path::{Path, PathBuf};

use ruma_common::{OwnedEventId, OwnedRoomId};
use ruma_signatures::PublicKeyMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::*;

/// State by type and key.
pub(super) type Told = BTreeMap<(String, String), OwnedEventId>;

/// Type, key, and the event that is now in force for them, if one is.
pub(super) type Change = (String, String, Option<OwnedEventId>);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Room(Head),
    Event(Event),
    End(End),
}

/// How a room begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) id: OwnedRoomId,
    pub(super) version: String,
    /// How it came to be.
    pub(super) made: String,
    /// What its servers have signed with; none where signatures are made up.
    #[serde(default, skip_serializing_if = "PublicKeyMap::is_empty")]
    pub(super) keys: PublicKeyMap,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Event {
    pub(super) id: OwnedEventId,
    /// Why it is rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
    /// What is in force after it that was not after the first of its predecessors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) changed: Vec<Change>,
    pub(super) pdu: Box<RawValue>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    /// The newest events.
    pub(super) heads: Vec<OwnedEventId>,
    /// What is in force that was not after the first of these.
    pub(super) changed: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) head: Head,
    pub(super) events: Vec<Event>,
    pub(super) end: Option<End>,
}

/// Where the collection is.
pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded")
}

/// The whole collection, each room with the name of its file.
pub(super) fn all() -> Vec<(String, Record)> {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
    let is_one = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "jsonl");
    let mut files: Vec<PathBuf> = files.filter(is_one).collect();
    files.sort();
    let named = |file: PathBuf| {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let rooms = read(&std::fs::read_to_string(&file).unwrap());
        rooms.into_iter().map(move |room| (name.clone(), room)).collect::<Vec<_>>()
    };
    files.into_iter().flat_map(named).collect()
}

fn read(text: &str) -> Vec<Record> {
    let mut rooms: Vec<Record> = Vec::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        match (line, rooms.last_mut()) {
            (Line::Room(head), _) => rooms.push(Record { head, events: Vec::new(), end: None }),
            (Line::Event(event), Some(room)) => room.events.push(event),
            (Line::End(end), Some(room)) => room.end = Some(end),
            (line, None) => panic!("before the first room: {line:?}"),
        }
    }
    rooms
}

/// The lines of a room.
pub(super) fn written(room: &Record) -> String {
    let events = room.events.iter().cloned().map(Line::Event);
    let lines = std::iter::once(Line::Room(room.head.clone())).chain(events);
    let lines = lines.chain(room.end.clone().map(Line::End));
    lines.map(|line| serde_json::to_string(&line).unwrap() + "\n").collect()
}

/// What has to be changed in one state to have the other.
pub(super) fn changes(from: &Told, to: &Told) -> Vec<Change> {
    let keys: BTreeSet<_> = from.keys().chain(to.keys()).collect();
    let changed = keys.into_iter().filter(|key| from.get(*key) != to.get(*key));
    changed.map(|key| (key.0.clone(), key.1.clone(), to.get(key).cloned())).collect()
}

/// A state after `changes`.
pub(super) fn changed(mut state: Told, changes: &[Change]) -> Told {
    for (kind, key, event) in changes {
        let entry = (kind.clone(), key.clone());
        match event {
            Some(event) => drop(state.insert(entry, event.clone())),
            None => drop(state.remove(&entry)),
        }
    }
    state
}
