//! Synapse as a judge of rooms: `tests/synapse/judge.py`, which is given events and answers what
//! Synapse makes of them.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use ruma_common::RoomId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{record::Told, *};

/// Synapse as a judge.
pub(super) struct Judge {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Judge {
    pub(super) fn start() -> Option<Self> {
        let test = std::env::current_exe().unwrap();
        let mut found = test.ancestors().map(|folder| folder.join("synapse/bin/python"));
        let python: PathBuf = found.find(|program| program.exists())?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/synapse/judge.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Some(Self { child, to, from: BufReader::new(from) })
    }

    /// What Synapse makes of a room: of each of its events, which come after those that they refer
    /// to, or of those before the first on which it fails, and that failure.
    pub(super) fn ask<'a>(
        &mut self,
        (version, room_id): (&str, &RoomId),
        events: impl Iterator<Item = (&'a Pdu, &'a Value)>,
    ) -> (Vec<Answer>, Option<String>) {
        let events: Vec<Value> = events
            .map(|(pdu, json)| json!({"id": pdu.event_id, "prev": pdu.prev_events, "event": json}))
            .collect();
        let room = json!({"version": version, "room_id": room_id, "events": events});
        writeln!(self.to, "{room}").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        let mut answer: Value = serde_json::from_str(&line).unwrap();
        let error = answer["error"].as_str().map(str::to_owned);
        (serde_json::from_value(answer["events"].take()).unwrap(), error)
    }
}

/// What Synapse says of an event.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    /// Why it is rejected.
    pub(super) refused: Option<String>,
    /// Types, keys and events of the state after it.
    state: Vec<(String, String, OwnedEventId)>,
}

impl Answer {
    pub(super) fn state(&self) -> Told {
        let entries = self.state.iter();
        entries.map(|(kind, key, id)| ((kind.clone(), key.clone()), id.clone())).collect()
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
