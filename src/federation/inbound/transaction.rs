//! One transaction: its limits, its rooms, and what its sender is told.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chatd_base::{Error, Refusal, Result};
use chatd_storage::rooms;
use futures::future::join;
use ruma_common::{OwnedRoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use sha2::{Digest, Sha256};

use super::Inbound;

/// Events and EDUs of one transaction (spec: transactions).
const MOST_PDUS: usize = 50;
const MOST_EDUS: usize = 100;
/// How long a room that was looked up counts as unknown, unless somebody here comes into it.
const UNKNOWN_FOR_MS: u64 = 5_000;

/// The body of a transaction.
#[derive(Debug, Deserialize)]
pub struct Transaction {
    #[serde(default)]
    pdus: Vec<Box<RawValue>>,
    #[serde(default)]
    edus: Vec<Value>,
}

/// What became of each event; those that nothing is said of were not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub pdus: BTreeMap<String, Value>,
}

impl Outcome {
    /// An event that is here.
    pub(super) fn taken() -> Value {
        json!({})
    }

    /// One that is not.
    pub(super) fn refused(why: &str) -> Value {
        json!({ "error": why })
    }
}

/// What is needed of an event before its room is known.
#[derive(Deserialize)]
struct Addressed {
    #[serde(default)]
    room_id: Option<OwnedRoomId>,
}

impl Inbound {
    /// Takes in a transaction of `origin`, who has signed it. On return each event that was
    /// accepted is durable, as are messages to devices and changes of device lists (R1). A repeat
    /// is told what it was told before, and has no further effect.
    pub async fn take(
        &self,
        origin: &ServerName,
        txn_id: &str,
        body: &[u8],
    ) -> Result<Arc<Outcome>> {
        let digest: [u8; 32] = Sha256::digest(body).into();
        let asked = (origin.to_owned(), txn_id.to_owned(), digest);
        self.0.answers.get_or_insert_async(&asked, self.take_new(origin, body)).await
    }

    async fn take_new(&self, origin: &ServerName, body: &[u8]) -> Result<Arc<Outcome>> {
        let transaction: Transaction = serde_json::from_slice(body)
            .map_err(|error| Refusal::bad_json(format!("not a transaction: {error}")))?;
        let Transaction { pdus, edus } = transaction;
        if pdus.len() > MOST_PDUS || edus.len() > MOST_EDUS {
            let (events, others) = (pdus.len(), edus.len());
            tracing::warn!(server.name = %origin, events, others, "a transaction is too large");
            let message = format!("at most {MOST_PDUS} PDUs and {MOST_EDUS} EDUs are allowed");
            return Err(Refusal::new(400, "M_TOO_LARGE", message).into());
        }
        self.0.meters.pdus.increment(pdus.len() as u64);
        self.0.meters.edus.increment(edus.len() as u64);
        let (pdus, passing) =
            join(self.take_pdus(origin, pdus), self.take_edus(origin, edus)).await;
        let (outcome, passing) = (Outcome { pdus: pdus? }, passing?);
        // Receipts may be of these events, and presence of those who have just come.
        self.take_passing(passing).await;
        Ok(Arc::new(outcome))
    }

    async fn take_pdus(
        &self,
        origin: &ServerName,
        pdus: Vec<Box<RawValue>>,
    ) -> Result<BTreeMap<String, Value>> {
        let mut by_room: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>> = BTreeMap::new();
        for pdu in pdus {
            match serde_json::from_str::<Addressed>(pdu.get()) {
                Ok(Addressed { room_id: Some(room) }) => by_room.entry(room).or_default().push(pdu),
                _ => {
                    self.0.meters.became("malformed");
                    tracing::info!(server.name = %origin, "an event without a room is passed over");
                }
            }
        }
        let is_known = self.known_rooms(by_room.keys()).await?;
        by_room.retain(|room, pdus| {
            let is_known = is_known.get(room).copied().unwrap_or_default();
            if !is_known {
                pdus.iter().for_each(|_| self.0.meters.became("unknown_room"));
                tracing::debug!(server.name = %origin, room.id = %room, "events of an unknown room");
            }
            is_known
        });
        self.take_everywhere(origin, by_room).await
    }

    /// Which of the rooms are known; one query at most. That a room is remembered to be unknown
    /// counts after all is heard that other instances have told before: whoever is let into it is
    /// let in after that.
    async fn known_rooms<'a>(
        &self,
        rooms: impl Iterator<Item = &'a OwnedRoomId> + Clone,
    ) -> Result<HashMap<OwnedRoomId, bool>> {
        let now_ms = self.0.clock.now_ms();
        let is_unknown = |room| self.0.known.get(room).is_some_and(|until_ms| until_ms > now_ms);
        let own = &self.0.users.deps;
        if own.streams.has_others() && rooms.clone().any(is_unknown) {
            // Of an instance that hears nothing the memory is empty afterwards.
            own.notices.sound().await;
        }
        let mut found = HashMap::new();
        let mut open = Vec::new();
        for room in rooms {
            match self.0.known.get(room) {
                Some(0) => drop(found.insert(room.clone(), true)),
                Some(until_ms) if until_ms > now_ms => drop(found.insert(room.clone(), false)),
                _ => open.push(room),
            }
        }
        if open.is_empty() {
            return Ok(found);
        }
        let changes = *self.0.changes.lock();
        let names: Vec<&str> = open.iter().map(|room| room.as_str()).collect();
        let known = rooms::list_known(&self.0.pool, &names).await.map_err(Error::from)?;
        for room in open {
            let is_known = known.iter().any(|known| known == room.as_str());
            let until_ms = if is_known { 0 } else { now_ms + UNKNOWN_FOR_MS };
            let now = self.0.changes.lock();
            if *now == changes {
                self.0.known.insert(room.clone(), until_ms);
            }
            drop(now);
            found.insert(room.clone(), is_known);
        }
        Ok(found)
    }
}
