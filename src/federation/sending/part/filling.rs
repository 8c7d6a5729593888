//! What goes into the transactions that a sender begins: read for all of them together.

use std::collections::HashMap;

use chatd_base::{Position, Result, tasks};
use chatd_storage::sending;
use ruma_common::OwnedServerName;

use super::{MOST_RUNNING, Part};
use crate::sending::{
    catch_up::MOST_ROOMS,
    delivery::{Behind, Content, Delivery},
    devices,
    transaction::MOST_PDUS,
};

/// Messages to devices in one transaction.
const MOST_OUTBOUND: i64 = 50;
/// Changes of device lists in one transaction.
const MOST_DEVICES: usize = 20;

impl Part {
    /// Begins transactions, as many as may be under way. What goes into them is read for all
    /// together.
    pub(super) async fn start(&mut self) -> Result<()> {
        let mut servers = Vec::new();
        while self.running + servers.len() < MOST_RUNNING
            && let Some(server) = self.line.pop_front()
        {
            let Some(one) = self.destinations.get_mut(&server) else { continue };
            one.is_in_line = false;
            one.is_busy = true;
            servers.push(server);
        }
        if servers.is_empty() {
            return Ok(());
        }
        let mut deliveries = self.fill(servers).await?;
        for delivery in &mut deliveries {
            if let Some(one) = self.destinations.get_mut(&delivery.server) {
                let (room, has_events) = (delivery.transaction.room_for_edus(), one.has_events());
                let edus = one.ephemeral.take(room, has_events, self.with.now_ms());
                delivery.transaction.add_edus(edus);
            }
        }
        for delivery in deliveries {
            self.running += 1;
            let (with, tell_done) = (self.with.clone(), self.tell_done.clone());
            tasks::spawn("federation_transaction", async move {
                let done = delivery.make(&with).await;
                // Whoever began it may have ended.
                let _ = tell_done.send(done).await;
            });
        }
        Ok(())
    }

    /// What each server gets that must arrive.
    async fn fill(&mut self, servers: Vec<OwnedServerName>) -> Result<Vec<Delivery>> {
        let mut with_outbound = Vec::new();
        let mut deliveries = Vec::with_capacity(servers.len());
        for server in servers {
            let Some(one) = self.destinations.get_mut(&server) else { continue };
            if std::mem::take(&mut one.has_outbound) {
                with_outbound.push(server.to_string());
            }
            deliveries.extend(self.begin(server));
        }
        self.add_bodies(&mut deliveries).await?;
        if !with_outbound.is_empty() {
            self.add_messages(&mut deliveries, &with_outbound).await?;
        }
        Ok(deliveries)
    }

    /// A transaction to one server: the one that it has not taken, what it is owed if it is
    /// behind, or what waits in memory.
    fn begin(&mut self, server: OwnedServerName) -> Option<Delivery> {
        let one = self.destinations.get_mut(&server)?;
        if let Some(again) = one.again.take() {
            return Some(Delivery::again(server, *again));
        }
        if !one.is_behind {
            let content = Content::of(&one.take_events(MOST_PDUS), one.take_devices(MOST_DEVICES));
            return Some(Delivery::new(server, content, None));
        }
        if let Some(next) = one.prepared.pop_front() {
            return Some(Delivery::new(server, next, None));
        }
        let behind = Behind {
            owed: one.begin_to_catch_up(MOST_ROOMS),
            devices: one.owed_devices.clone().map(|since| (since, self.device_lists.clone())),
        };
        Some(Delivery::new(server, Content::default(), Some(behind)))
    }

    /// Events and changes of device lists, as they are sent.
    async fn add_bodies(&self, deliveries: &mut [Delivery]) -> Result<()> {
        let contents = || deliveries.iter().map(|delivery| &delivery.content);
        let places: Vec<_> = contents().flat_map(|content| &content.events).copied().collect();
        let changes: Vec<_> = contents().flat_map(|content| &content.changes).cloned().collect();
        let bodies = self.with.bodies.load(&places).await?;
        let edus = devices::edus(&self.with.deps.users, &changes).await?;
        for Delivery { content, transaction, .. } in deliveries {
            for (nid, _) in &content.events {
                if let Some(body) = bodies.get(nid) {
                    transaction.add_event(*nid, body.clone());
                }
            }
            for change in &content.changes {
                if let Some(edu) = edus.get(&change.pos) {
                    transaction.add_durable_edu('d', change.pos, edu.clone());
                }
            }
        }
        Ok(())
    }

    /// Messages to devices, which wait in the table.
    async fn add_messages(&self, deliveries: &mut [Delivery], servers: &[String]) -> Result<()> {
        let messages = sending::list_outbound(self.with.pool(), servers, MOST_OUTBOUND).await?;
        let mut by_server: HashMap<String, Vec<(Position, String)>> = HashMap::new();
        for (server, pos, content) in messages {
            by_server.entry(server).or_default().push((pos, content));
        }
        for delivery in deliveries {
            let messages = by_server.remove(delivery.server.as_str()).unwrap_or_default();
            delivery.add_messages(messages, MOST_OUTBOUND);
        }
        Ok(())
    }
}
