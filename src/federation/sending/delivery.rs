//! One transaction on its way: what it holds, and what became of it.

use std::collections::BTreeMap;

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
/// How long one is left alone about which nothing can be read.
const UNREAD_MS: u64 = 5_000;
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
    },
    Failed {
        /// It is left alone until then.
        until_ms: u64,
        /// What is sent again then.
        again: Box<Content>,
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
        Self { server, transaction, content, behind, has_more: false }
    }

    /// Adds messages to devices; there may be more if these are `limit`. What is sent again gets
    /// none that were not in it.
    pub(super) fn add_messages(
        &mut self,
        mut messages: Vec<(Position, String)>,
        limit: i64,
        again: bool,
    ) {
        self.has_more = again || i64::try_from(messages.len()).unwrap_or(i64::MAX) >= limit;
        if again {
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
                let until_ms = with.now_ms() + UNREAD_MS;
                Outcome::Failed { until_ms, again: Box::new(Content::default()) }
            }
        };
        Done { server: self.server, outcome }
    }

    async fn add_owed(&mut self, with: &Sending) -> Result<()> {
        let Some(behind) = self.behind.take() else { return Ok(()) };
        let (pool, config) = (with.pool(), &with.deps.config);
        let next = catch_up::next(pool, config, &self.server, &behind.owed).await?;
        let places: Vec<Place> = next.events.iter().map(|event| (event.nid, event.room)).collect();
        let bodies = with.bodies.load(&places).await?;
        for (nid, _) in &places {
            if let Some(body) = bodies.get(nid) {
                self.transaction.add_event(*nid, body.clone());
            }
        }
        self.content.events = places;
        self.content.then = next.then;
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

    async fn send(&mut self, with: &Sending) -> Outcome {
        let content = std::mem::take(&mut self.content);
        let has_more = self.has_more;
        if self.transaction.is_empty() {
            return Outcome::Accepted { taken: content.messages, has_more, then: content.then };
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
                Outcome::Accepted { taken: content.messages, has_more, then: content.then }
            }
            Err(failure) => {
                let until_ms = self.left_alone_until(with, &failure).await;
                tracing::debug!(server.name = %self.server, %failure, until_ms,
                    "a server has not taken a transaction");
                Outcome::Failed { until_ms, again: Box::new(content) }
            }
        }
    }

    async fn left_alone_until(&self, with: &Sending, failure: &Failure) -> u64 {
        if let Failure::BackingOff { until_ms } = failure {
            return *until_ms;
        }
        let known = with.deps.servers.back_off.until(&self.server).await;
        known.ok().flatten().unwrap_or_else(|| with.now_ms() + REFUSED_MS)
    }
}
