//! One transaction on its way: what it holds, and what became of it.

use chatd_base::{Position, Result, RoomNid};
use chatd_servers::Failure;
use chatd_streams::StreamToken;
use ruma_common::OwnedServerName;

use super::{
    Sending, catch_up,
    destination::{CaughtUp, Owed},
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

/// One transaction.
#[derive(Debug)]
pub(super) struct Delivery {
    pub server: OwnedServerName,
    pub transaction: Transaction,
    behind: Option<Behind>,
    /// Messages to devices that are in it.
    messages: Vec<Position>,
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
        /// There are messages to devices.
        had_messages: bool,
    },
}

/// A transaction that has ended.
#[derive(Debug)]
pub(super) struct Done {
    pub server: OwnedServerName,
    pub outcome: Outcome,
}

impl Delivery {
    pub(super) fn new(server: OwnedServerName, behind: Option<Behind>) -> Self {
        let transaction = Transaction::default();
        Self { server, transaction, behind, messages: Vec::new(), has_more: false }
    }

    /// Adds messages to devices; there may be more if these are `limit`.
    pub(super) fn add_messages(&mut self, messages: Vec<(Position, String)>, limit: i64) {
        self.has_more = i64::try_from(messages.len()).unwrap_or(i64::MAX) >= limit;
        for (pos, content) in messages {
            let edu = format!("{{\"edu_type\":\"m.direct_to_device\",\"content\":{content}}}");
            self.transaction.add_durable_edu('m', pos, edu);
            self.messages.push(pos);
        }
    }

    /// Sends it, with what a server that is behind is owed.
    pub(super) async fn make(mut self, with: &Sending) -> Done {
        let outcome = match self.add_owed(with).await {
            Ok(then) => self.send(with, then).await,
            Err(error) => {
                tracing::warn!(%error, "what a server is owed cannot be read");
                let until_ms = with.now_ms() + UNREAD_MS;
                Outcome::Failed { until_ms, had_messages: !self.messages.is_empty() }
            }
        };
        Done { server: self.server, outcome }
    }

    async fn add_owed(&mut self, with: &Sending) -> Result<CaughtUp> {
        let Some(behind) = self.behind.take() else { return Ok(CaughtUp::default()) };
        let (pool, config) = (with.pool(), &with.deps.config);
        let next = catch_up::next(pool, config, &self.server, &behind.owed).await?;
        let places: Vec<_> = next.events.iter().map(|event| (event.nid, event.room)).collect();
        let bodies = with.bodies.load(&places).await?;
        for (nid, _) in places {
            if let Some(body) = bodies.get(&nid) {
                self.transaction.add_event(nid, body.clone());
            }
        }
        let mut then = next.then;
        if let Some((since, told)) = &behind.devices {
            let (hosts, own) = (&with.deps.rooms.hosts, with.own_name());
            let limit = MOST_DEVICES.min(self.transaction.room_for_edus());
            let (changes, end) =
                devices::missed(pool, hosts, own, &self.server, (since, told), limit).await?;
            let edus = devices::edus(&with.deps.users, &changes).await?;
            for change in changes {
                if let Some(edu) = edus.get(&change.pos) {
                    self.transaction.add_durable_edu('d', change.pos, edu.clone());
                }
            }
            then.devices = Some(end);
        }
        Ok(then)
    }

    async fn send(&mut self, with: &Sending, then: CaughtUp) -> Outcome {
        let taken = std::mem::take(&mut self.messages);
        if self.transaction.is_empty() {
            return Outcome::Accepted { taken, has_more: self.has_more, then };
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
                Outcome::Accepted { taken, has_more: self.has_more, then }
            }
            Err(failure) => {
                let until_ms = self.left_alone_until(with, &failure).await;
                tracing::debug!(server.name = %self.server, %failure, until_ms,
                    "a server has not taken a transaction");
                Outcome::Failed { until_ms, had_messages: !taken.is_empty() }
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
