//! What events refer to and this server does not have: first the events between them and the newest
//! ones here, then, where these do not meet, the state before them. Everything that comes is
//! bounded, and checked like what is sent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use chatd_base::Result;
use chatd_rooms::{Door, Verdict};
use chatd_servers::{Ask, Failure};
use ruma_common::{OwnedEventId, RoomId, ServerName};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{Inbound, room::Pdu, state::segment};

/// Events that are asked for, one time after the other.
const LIMITS: [usize; 5] = [10, 20, 20, 20, 20];
/// Events that are named in one question.
const MOST_NAMED: usize = 20;
/// Largest answer: events of 64 KiB.
const MOST_BYTES: usize = 4 * 1024 * 1024;
const WITHIN: Duration = Duration::from_secs(10);
/// For everything that one step fetches.
const ALL_WITHIN: Duration = Duration::from_secs(120);
/// Events of one step whose state is fetched.
const MOST_STATES: usize = 4;

/// What came of asking a server.
pub(super) enum Fetched {
    /// An event has its place that had none before.
    Something,
    /// It has answered, and nothing has come of it.
    Nothing,
    /// It does not answer.
    NoAnswer(String),
}

#[derive(Deserialize)]
struct Events {
    #[serde(default)]
    events: Vec<Box<RawValue>>,
}

impl Inbound {
    /// Fetches what `waiting` refer to, and places it and them.
    pub(super) async fn fetch_missing(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        waiting: &[Pdu],
    ) -> Result<Fetched> {
        let fetching = self.fetch_all(room, door, origin, waiting);
        match tokio::time::timeout(ALL_WITHIN, fetching).await {
            Ok(fetched) => fetched,
            Err(_) => Ok(Fetched::NoAnswer("it has taken too long".to_owned())),
        }
    }

    async fn fetch_all(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        waiting: &[Pdu],
    ) -> Result<Fetched> {
        let mut no_answer = None;
        let between = match self.between(room, door, origin, waiting).await? {
            Ok(between) => between,
            // The state may still be had.
            Err(failure) => {
                no_answer = unanswered(&failure);
                Vec::new()
            }
        };
        let mut open: Vec<Pdu> = in_order(between);
        open.extend(waiting.iter().cloned());
        let mut is_something = false;
        for _ in 0..=MOST_STATES {
            let left = self.place_some(room, &open).await?;
            is_something |= left.len() < open.len();
            open = left;
            let Some(first) = open.first() else { break };
            match self.place_by_state(room, door, origin, first).await? {
                Ok(true) => is_something = true,
                Ok(false) => drop(open.remove(0)),
                Err(failure) => match unanswered(&failure) {
                    Some(why) => {
                        no_answer = Some(why);
                        break;
                    }
                    // Those behind it are not held up.
                    None => {
                        let id = open.remove(0).outline.event_id;
                        tracing::info!(
                            server.name = %origin, room.id = %room, event.id = %id, %failure,
                            "the state before an event cannot be had"
                        );
                    }
                },
            }
        }
        Ok(match no_answer {
            _ if is_something => Fetched::Something,
            Some(why) => Fetched::NoAnswer(why),
            None => Fetched::Nothing,
        })
    }

    /// Places what can be placed; returns what still refers to missing events.
    async fn place_some(&self, room: &RoomId, open: &[Pdu]) -> Result<Vec<Pdu>> {
        let events = open.iter().map(|pdu| pdu.json.clone()).collect();
        let received = self.0.rooms.owner.receive_all(room, events).await?;
        let mut left = Vec::new();
        for (pdu, received) in open.iter().zip(received) {
            match received {
                Ok(received) if matches!(received.verdict, Verdict::Missing(_)) => {
                    left.push(pdu.clone());
                }
                Ok(received) => self.tell(room, pdu, &received),
                Err(why) => {
                    tracing::info!(room.id = %room, event.id = %pdu.id(), %why, "not an event");
                }
            }
        }
        Ok(left)
    }

    /// Events between `waiting` and the newest ones here, as far as the server gives them.
    async fn between(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        waiting: &[Pdu],
    ) -> Result<Result<Vec<Pdu>, Failure>> {
        let mut found: HashMap<OwnedEventId, Pdu> =
            waiting.iter().map(|pdu| (pdu.id().clone(), pdu.clone())).collect();
        for limit in LIMITS {
            let latest = self.incomplete(room, &found).await?;
            if latest.is_empty() {
                break;
            }
            let events = match self.ask_between(room, door, origin, &latest, limit).await {
                Ok(events) => events,
                Err(failure) => return Ok(Err(failure)),
            };
            let events = events.iter().take(limit).filter_map(|event| {
                let pdu = Pdu::parse(event.get(), door, room).ok()?;
                (!found.contains_key(pdu.id())).then_some(pdu)
            });
            let events: Vec<Pdu> = events.collect();
            let sound = self.sound(origin, room, door, events).await?;
            if sound.is_empty() {
                break;
            }
            found.extend(sound.into_iter().map(|pdu| (pdu.id().clone(), pdu)));
        }
        waiting.iter().for_each(|pdu| drop(found.remove(pdu.id())));
        Ok(Ok(found.into_values().collect()))
    }

    /// Those of the events that have predecessors which are neither here nor among them.
    async fn incomplete(
        &self,
        room: &RoomId,
        found: &HashMap<OwnedEventId, Pdu>,
    ) -> Result<Vec<OwnedEventId>> {
        let named = found.values().flat_map(|pdu| &pdu.outline.prev_events);
        let named: BTreeSet<&OwnedEventId> = named.filter(|id| !found.contains_key(*id)).collect();
        let named: Vec<OwnedEventId> = named.into_iter().cloned().collect();
        let placed = self.0.rooms.owner.list_placed(room, &named).await?;
        let placed: HashSet<&OwnedEventId> = placed.iter().collect();
        let is_missing = |id: &OwnedEventId| !found.contains_key(id) && !placed.contains(id);
        let incomplete =
            found.values().filter(|pdu| pdu.outline.prev_events.iter().any(is_missing));
        Ok(incomplete.map(|pdu| pdu.id().clone()).take(MOST_NAMED).collect())
    }

    async fn ask_between(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        latest: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Box<RawValue>>, Failure> {
        let heads: Vec<&OwnedEventId> = door.heads.iter().take(MOST_NAMED).collect();
        let body = json!({
            "earliest_events": heads,
            "latest_events": latest,
            "limit": limit,
            "min_depth": 0,
        });
        let path = format!("/_matrix/federation/v1/get_missing_events/{}", segment(room.as_str()));
        let ask =
            Ask::post(path).json(body.to_string().into()).within(WITHIN).most_bytes(MOST_BYTES);
        let answer: Events = self.0.servers.client.ask_json(origin, ask).await?;
        Ok(answer.events)
    }

    /// Those of the events whose signatures are right.
    pub(crate) async fn sound(
        &self,
        origin: &ServerName,
        room: &RoomId,
        door: &Door,
        pdus: Vec<Pdu>,
    ) -> Result<Vec<Pdu>> {
        let mut sound = Vec::with_capacity(pdus.len());
        for checked in self.checked(door, pdus).await? {
            match checked {
                Ok(pdu) => sound.push(pdu),
                Err((id, why)) => tracing::info!(
                    server.name = %origin, room.id = %room, event.id = %id, %why,
                    "an event that was asked for is refused"
                ),
            }
        }
        Ok(sound)
    }
}

/// Why there is no answer, unless there is one that says nothing of use. A server that is not well
/// may say more another time.
fn unanswered(failure: &Failure) -> Option<String> {
    let is_answer = matches!(failure, Failure::Refused { .. } | Failure::Odd(_));
    (!is_answer || failure.is_of_the_server()).then(|| failure.to_string())
}

/// Each event after those of its predecessors that are among them; circles are left out.
pub(crate) fn in_order(pdus: Vec<Pdu>) -> Vec<Pdu> {
    let mut open: BTreeMap<(i64, OwnedEventId), Pdu> =
        pdus.into_iter().map(|pdu| ((pdu.outline.depth, pdu.id().clone()), pdu)).collect();
    let mut waits: HashSet<OwnedEventId> = open.keys().map(|(_, id)| id.clone()).collect();
    let mut order = Vec::with_capacity(open.len());
    loop {
        // Depths say the order unless somebody lies; then it takes more than one pass.
        let before = order.len();
        for (key, pdu) in std::mem::take(&mut open) {
            if pdu.outline.prev_events.iter().any(|id| waits.contains(id)) {
                open.insert(key, pdu);
            } else {
                waits.remove(&key.1);
                order.push(pdu);
            }
        }
        if order.len() == before {
            return order;
        }
    }
}
