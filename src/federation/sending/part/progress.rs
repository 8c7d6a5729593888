//! What the tables say of how far a sender has come: a token for all servers, and rows for those
//! that have missed something. Written once a second while anything happens.

use std::collections::BTreeMap;

use chatd_base::{Position, Result, WriterId};
use chatd_storage::sending::{self, OwedRoom, Progress, Told};
use chatd_streams::StreamToken;

use super::{Part, missed::Seen};
use crate::sending::{
    destination::{Destination, Ledger, Owed},
    shards::least,
};

/// How often the tables are written.
pub(super) const WRITE_EVERY_MS: u64 = 1_000;
/// What waits for longer is noted as missed, so that the token can move on.
const SLOW_MS: u64 = 3_000;

impl Part {
    /// Writes how far everybody has been told, and who has missed what. Messages to devices that
    /// were taken are removed at once, before more are sent.
    pub(super) async fn write_if_due(&mut self) -> Result<()> {
        let now_ms = self.with.now_ms();
        let is_due = now_ms >= self.written_ms + WRITE_EVERY_MS || now_ms < self.written_ms;
        if self.ledger.taken.is_empty() && !(self.is_dirty && is_due) {
            return Ok(());
        }
        self.written_ms = now_ms;
        for (server, one) in &mut self.destinations {
            one.note_slow(server, now_ms.saturating_sub(SLOW_MS), &mut self.ledger);
        }
        self.measure();
        let told = self.told();
        let is_new = told.is_some() && self.written != told;
        // What waits in memory is noted later at the latest.
        self.is_dirty = self.destinations.values().any(|one| one.waiting() > 0);
        if !is_new && self.ledger.is_empty() {
            return Ok(());
        }
        let progress = self.progress(told.clone());
        sending::write(self.with.pool(), progress).await?;
        if told.is_some() {
            self.written = told;
        }
        Ok(())
    }

    fn measure(&self) {
        let with_work = self.destinations.values().filter(|one| one.has_work() || one.is_busy);
        self.pending[0].set(with_work.count() as f64);
        let events: usize = self.destinations.values().map(Destination::waiting).sum();
        self.pending[1].set(events as f64);
    }

    /// Up to where all servers have been told, or are noted; `None` while that is behind what
    /// the tables say of some of them. Receipts and presence are told twice rather than not at all.
    fn told(&self) -> Option<Told> {
        let mut events: BTreeMap<WriterId, Position> = self
            .with
            .streams()
            .events
            .positions()
            .into_keys()
            .map(|writer| (writer, self.events.of(writer)))
            .collect();
        let mut device_lists = self.device_lists.clone();
        for one in self.destinations.values() {
            for event in one.unnoted() {
                let told = events.entry(event.writer).or_insert(self.events.min);
                *told = (*told).min(Position(event.pos.0 - 1));
            }
            if let Some(oldest) = one.oldest_device() {
                device_lists = least(&device_lists, &StreamToken::at(Position(oldest.0 - 1)));
            }
        }
        let events = StreamToken::from_writers(&events);
        let is_further = |(began, devices): &(StreamToken, StreamToken)| {
            events.is_at_least(began) && device_lists.is_at_least(devices)
        };
        let is_true = self.began.values().all(is_further);
        let Seen { receipts, presence, .. } = self.told_of_edus();
        is_true.then(|| Told {
            events: events.to_string(),
            device_lists: device_lists.to_string(),
            receipts: receipts.to_string(),
            presence: presence.to_string(),
        })
    }

    fn progress(&mut self, told: Option<Told>) -> Progress {
        let Ledger { rooms, devices, taken } = std::mem::take(&mut self.ledger);
        let mut progress = Progress { shards: self.shards.clone(), told, ..Progress::default() };
        for ((server, room), owed) in rooms {
            let server = server.to_string();
            match owed {
                Some(Owed { since, ahead }) => {
                    progress.owed_rooms.push(OwedRoom { server, room, since, ahead });
                }
                None => progress.settled_rooms.push((server, room)),
            }
        }
        for (server, since) in devices {
            match since {
                Some(since) => progress.owed_devices.push((server.to_string(), since.to_string())),
                None => progress.settled_devices.push(server.to_string()),
            }
        }
        progress.taken = taken.into_iter().map(|(server, at)| (server.to_string(), at)).collect();
        progress
    }
}
