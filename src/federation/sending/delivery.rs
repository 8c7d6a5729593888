//! One transaction on its way: what it holds, and what became of it.

use std::collections::{BTreeMap, VecDeque};

use chatd_base::{Position, Result, RoomNid};
use chatd_servers::Failure;
use chatd_storage::sending::DeviceChange;
use chatd_streams::StreamToken;
use ruma_common::OwnedServerName;

use super::{
    Sending,
    bodies::Place,
    catch_up,
    destination::{CaughtUp, Owed, Queued},
    devices,
    transaction::Transaction,
};

/// How long a server is left alone that refuses what it should take.
const REFUSED_MS: u64 = 600_000;
/// How long one is left alone that cannot tell who asks: it may not have the keys of this server
/// at the moment.
const UNKNOWN_MS: u64 = 60_000;
/// How long one is left alone about which nothing can be read.
const UNREAD_MS: u64 = 5_000;
/// How long one that was not there is left alone, if it has shown signs of life since, or if the
/// time for which it was to be left alone is over.
const BRIEFLY_MS: u64 = 1_000;
/// Changes of device lists in one transaction to a server that is behind.
const MOST_DEVICES: usize = 40;

/// What a server that is behind is owed.
#[derive(Debug)]
pub(super) struct Behind {
    pub owed: Vec<(RoomNid, Owed)>,
    /// Changes of device lists: after which token, and up to which.
    pub devices: Option<(StreamToken, StreamToken)>,
}

/// What is in a transaction that must arrive. One that was not taken, as far as this server
/// knows, is sent again as it was, so that a server which has it after all knows it by its id.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub events: Vec<Place>,
    pub changes: Vec<DeviceChange>,
    /// Messages to devices.
    pub messages: Vec<Position>,
    /// What is owed when it has been taken.
    pub then: CaughtUp,
}

impl Content {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.changes.is_empty() && self.messages.is_empty()
    }

    /// Of a server that was not behind.
    pub(super) fn of(events: &[Queued], changes: Vec<DeviceChange>) -> Self {
        let mut last: BTreeMap<RoomNid, Position> = BTreeMap::new();
        last.extend(events.iter().map(|event| (event.room, event.pos)));
        let owed = |pos: Position| Some(Owed { since: Position(pos.0 + 1), ahead: None });
        let rooms = last.into_iter().map(|(room, pos)| (room, owed(pos))).collect();
        let devices = changes.last().map(|change| StreamToken::at(change.pos));
        Self {
            events: events.iter().map(|event| (event.nid, event.room)).collect(),
            changes,
            messages: Vec::new(),
            then: CaughtUp { rooms, devices },
        }
    }
}

/// One transaction.
#[derive(Debug)]
pub(super) struct Delivery {
    pub server: OwnedServerName,
    pub transaction: Transaction,
    pub content: Content,
    behind: Option<Behind>,
    /// What goes out after it, if it is taken.
    rest: VecDeque<Content>,
    /// The server may have it.
    is_again: bool,
    has_more: bool,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Outcome {
    Accepted {
        /// Messages to devices that were taken.
        taken: Vec<Position>,
        /// There may be more of them.
        has_more: bool,
        then: CaughtUp,
        /// What the server gets next.
        rest: VecDeque<Content>,
    },
    Failed {
        /// It is left alone until then.
        until_ms: u64,
        /// What is sent again then.
        again: Box<Content>,
        /// There may be messages to devices in the table.
        has_more: bool,
    },
}

/// A transaction that has ended.
#[derive(Debug)]
pub(super) struct Done {
    pub server: OwnedServerName,
    pub outcome: Outcome,
}

impl Delivery {
    /// With what the server is owed, if it is behind.
    pub(super) fn new(server: OwnedServerName, content: Content, behind: Option<Behind>) -> Self {
        let transaction = Transaction::default();
        let rest = VecDeque::new();
        Self { server, transaction, content, behind, rest, is_again: false, has_more: false }
    }

    /// One that was not taken, as far as this server knows.
    pub(super) fn again(server: OwnedServerName, content: Content) -> Self {
        Self { is_again: true, ..Self::new(server, content, None) }
    }

    /// Adds messages to devices; there may be more if these are `limit`. What is sent again gets
    /// none that were not in it.
    pub(super) fn add_messages(&mut self, mut messages: Vec<(Position, String)>, limit: i64) {
        self.has_more = self.is_again || i64::try_from(messages.len()).unwrap_or(i64::MAX) >= limit;
        if self.is_again {
            messages.retain(|(pos, _)| self.content.messages.contains(pos));
        }
        self.content.messages = messages.iter().map(|(pos, _)| *pos).collect();
        for (pos, content) in messages {
            let edu = format!("{{\"edu_type\":\"m.direct_to_device\",\"content\":{content}}}");
            self.transaction.add_durable_edu('m', pos, edu);
        }
    }

    /// Sends it, with what a server that is behind is owed.
    pub(super) async fn make(mut self, with: &Sending) -> Done {
        let outcome = match self.add_owed(with).await {
            Ok(()) => self.send(with).await,
            Err(error) => {
                tracing::warn!(%error, "what a server is owed cannot be read");
                self.failed(with.now_ms() + UNREAD_MS, Content::default())
            }
        };
        Done { server: self.server, outcome }
    }

    async fn add_owed(&mut self, with: &Sending) -> Result<()> {
        let Some(behind) = self.behind.take() else { return Ok(()) };
        let (pool, config) = (with.pool(), &with.deps.config);
        self.rest = catch_up::next(pool, config, &self.server, &behind.owed).await?;
        let Content { events, then, .. } = self.rest.pop_front().unwrap_or_default();
        let bodies = with.bodies.load(&events).await?;
        for (nid, _) in &events {
            if let Some(body) = bodies.get(nid) {
                self.transaction.add_event(*nid, body.clone());
            }
        }
        (self.content.events, self.content.then) = (events, then);
        if let Some((since, told)) = &behind.devices {
            let (hosts, own) = (&with.deps.rooms.hosts, with.own_name());
            let limit = MOST_DEVICES.min(self.transaction.room_for_edus());
            let (changes, end) =
                devices::missed(pool, hosts, own, &self.server, (since, told), limit).await?;
            let edus = devices::edus(&with.deps.users, &changes).await?;
            for change in &changes {
                if let Some(edu) = edus.get(&change.pos) {
                    self.transaction.add_durable_edu('d', change.pos, edu.clone());
                }
            }
            self.content.changes = changes;
            self.content.then.devices = Some(end);
        }
        Ok(())
    }

    fn failed(&self, until_ms: u64, again: Content) -> Outcome {
        let has_more = self.has_more || !self.content.messages.is_empty();
        Outcome::Failed { until_ms, again: Box::new(again), has_more }
    }

    fn accepted(&mut self) -> Outcome {
        let Content { messages: taken, then, .. } = std::mem::take(&mut self.content);
        let rest = std::mem::take(&mut self.rest);
        Outcome::Accepted { taken, has_more: self.has_more, then, rest }
    }

    async fn send(&mut self, with: &Sending) -> Outcome {
        if self.transaction.is_empty() {
            return self.accepted();
        }
        let client = &with.deps.servers.client;
        let sent = self.transaction.send(client, with.own_name(), &self.server, with.now_ms());
        match sent.await {
            Ok(()) => {
                let (events, edus) = self.transaction.counts();
                metrics::counter!("synapse_federation_client_sent_transactions_total").increment(1);
                metrics::counter!("synapse_federation_client_sent_edus_total")
                    .increment(edus as u64);
                tracing::debug!(server.name = %self.server, events, edus, "sent a transaction");
                self.accepted()
            }
            Err(failure) => {
                let until_ms = self.left_alone_until(with, &failure).await;
                tracing::debug!(server.name = %self.server, %failure, until_ms,
                    "a server has not taken a transaction");
                self.failed(until_ms, self.content.clone())
            }
        }
    }

    async fn left_alone_until(&self, with: &Sending, failure: &Failure) -> u64 {
        let known = with.deps.servers.back_off.until(&self.server).await.ok().flatten();
        left_alone_until(failure, known, with.now_ms())
    }
}

/// Until when a server is left alone after a failure. `known` is what all instances have to do.
fn left_alone_until(failure: &Failure, known: Option<u64>, now_ms: u64) -> u64 {
    match failure {
        Failure::BackingOff { until_ms } => *until_ms,
        failure if failure.is_of_the_server() => known.unwrap_or(now_ms + BRIEFLY_MS),
        Failure::Refused { status: 401, .. } => now_ms + UNKNOWN_MS,
        _ => now_ms + REFUSED_MS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_shown_signs_of_life_is_not_taken_for_one_that_refuses() {
        let refused = |status| Failure::Refused {
            status,
            errcode: String::new(),
            error: String::new(),
            body: serde_json::Value::Null,
        };
        for (failure, known, until_ms) in [
            (Failure::Away("away".to_owned()), Some(7_000), 7_000),
            (Failure::Away("away".to_owned()), None, 5_000 + BRIEFLY_MS),
            (refused(503), None, 5_000 + BRIEFLY_MS),
            (refused(401), None, 5_000 + UNKNOWN_MS),
            (refused(403), None, 5_000 + REFUSED_MS),
            (Failure::Odd("odd".to_owned()), None, 5_000 + REFUSED_MS),
            (Failure::BackingOff { until_ms: 9_000 }, None, 9_000),
        ] {
            assert_eq!(left_alone_until(&failure, known, 5_000), until_ms, "{failure}");
        }
    }

    #[test]
    fn messages_that_came_after_a_failure_are_remembered_through_the_next_one() {
        let place = (chatd_base::EventNid(1), RoomNid(1));
        let again = Content { events: vec![place], ..Content::default() };
        let server = OwnedServerName::try_from("b.example").unwrap();
        let mut delivery = Delivery::again(server, again.clone());
        delivery.add_messages(vec![(Position(5), "{}".to_owned())], 50);
        assert!(delivery.content.messages.is_empty(), "they were not in it");
        let failed = delivery.failed(1, again);
        assert!(matches!(failed, Outcome::Failed { has_more: true, .. }));
    }
}
