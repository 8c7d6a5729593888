//! Asking one server for what came before some events, and giving what it tells its place.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chatd_base::{Position, Result};
use chatd_rooms::{Before, Door};
use chatd_servers::{Ask, Failure};
use ruma_common::{OwnedEventId, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::History;
use crate::inbound::{Pdu, in_order, segment};

/// Events that are asked for at a time; other servers give no more.
const EVENTS: usize = 100;
/// Largest answer: events of 64 KiB.
const MOST_BYTES: usize = 8 * 1024 * 1024;
const WITHIN: Duration = Duration::from_secs(20);
/// How long a server is waited for that others ask.
const TURN_WITHIN: Duration = Duration::from_secs(10);
/// Events of one answer whose state is fetched. A history without branches needs one.
const MOST_STATES: usize = 8;
/// Events whose auth events are fetched on their own.
const MOST_AUTH: usize = 4;

/// Events, and the state before some of them.
type Piece = (Vec<Pdu>, HashMap<OwnedEventId, Before>);

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    pdus: Vec<Box<RawValue>>,
}

impl History {
    /// Asks `server`, until then, for the events `last` and what came before them, and gives them
    /// their place: before all that is known, or before the event at `behind`. How many have got one.
    pub(super) async fn ask_one(
        &self,
        room: &RoomId,
        server: &ServerName,
        (last, behind): (&[OwnedEventId], Option<Position>),
        until: Instant,
    ) -> Result<Result<usize, Failure>> {
        let door = self.0.rooms.owner.door(room, server).await?;
        if !door.is_joined || !door.admits {
            return Ok(Ok(0));
        }
        let too_long = || Failure::Away("it has taken too long".to_owned());
        // Others may have the same, and are not as busy.
        let Ok(turn) = tokio::time::timeout(TURN_WITHIN, self.0.inbound.turn(server)).await else {
            return Ok(Err(too_long()));
        };
        let turn = turn?;
        let asking = self.ask_for_piece(room, &door, server, last);
        let asked = tokio::time::timeout_at(until, asking).await;
        drop(turn);
        let (events, states) = match asked.unwrap_or_else(|_| Ok(Err(too_long())))? {
            Ok(piece) => piece,
            Err(failure) => return Ok(Err(failure)),
        };
        // What is written now is written to its end, and the next fetch comes after it.
        let _place = self.0.filling.place().await?;
        let events = events.into_iter().map(|pdu| pdu.json).collect();
        Ok(Ok(self.0.rooms.owner.place_past(room, events, &states, behind).await?))
    }

    /// The events, which are known on return, and the state before those of which a predecessor is
    /// not there.
    async fn ask_for_piece(
        &self,
        room: &RoomId,
        door: &Door,
        server: &ServerName,
        last: &[OwnedEventId],
    ) -> Result<Result<Piece, Failure>> {
        let told = match self.ask_for_events(room, server, last).await {
            Ok(told) => told,
            Err(failure) => return Ok(Err(failure)),
        };
        let events = self.acceptable(room, door, server, last, told).await?;
        let (events, edges) = self.with_edges(room, last, events).await?;
        let mut states: HashMap<OwnedEventId, Before> = HashMap::with_capacity(edges.len());
        for edge in &edges {
            match self.0.inbound.fetch_state(room, door, server, edge).await? {
                Ok(state) => drop(states.insert(edge.id().clone(), state)),
                Err(failure) => return Ok(Err(failure)),
            }
        }
        self.store(room, door, server, &events).await?;
        Ok(Ok((events, states)))
    }

    async fn ask_for_events(
        &self,
        room: &RoomId,
        server: &ServerName,
        last: &[OwnedEventId],
    ) -> Result<Vec<Box<RawValue>>, Failure> {
        let room = segment(room.as_str());
        let mut path = format!("/_matrix/federation/v1/backfill/{room}?limit={EVENTS}");
        for event in last {
            path.push_str(&format!("&v={}", segment(event.as_str())));
        }
        let ask = Ask::get(path).within(WITHIN).most_bytes(MOST_BYTES);
        let answer: Answer = self.0.servers.client.ask_json(server, ask).await?;
        Ok(answer.pdus)
    }

    /// Those of the events that were asked for or lead there, that have no place yet, and whose
    /// signatures are right; each after its predecessors.
    async fn acceptable(
        &self,
        room: &RoomId,
        door: &Door,
        server: &ServerName,
        last: &[OwnedEventId],
        told: Vec<Box<RawValue>>,
    ) -> Result<Vec<Pdu>> {
        let parsed = told.iter().take(EVENTS).filter_map(|event| {
            let parsed = Pdu::parse(event.get(), door, room);
            if let Err(why) = &parsed {
                tracing::info!(server.name = %server, room.id = %room, %why, "not an event");
            }
            parsed.ok()
        });
        let parsed: Vec<Pdu> = parsed.collect();
        let ids: Vec<OwnedEventId> = parsed.iter().map(|pdu| pdu.id().clone()).collect();
        let placed = self.0.rooms.owner.list_placed(room, &ids).await?;
        let mut seen: HashSet<OwnedEventId> = placed.into_iter().collect();
        let new = parsed.into_iter().filter(|pdu| seen.insert(pdu.id().clone())).collect();
        let sound = self.0.inbound.sound(server, room, door, new).await?;
        Ok(in_order(connected(last, sound)))
    }

    /// The events, and those of them that have predecessors which are not there. If these are too
    /// many, only the last events are taken.
    async fn with_edges(
        &self,
        room: &RoomId,
        last: &[OwnedEventId],
        mut events: Vec<Pdu>,
    ) -> Result<(Vec<Pdu>, Vec<Pdu>)> {
        let mut edges = self.edges(room, &events).await?;
        if edges.len() > MOST_STATES {
            events.retain(|pdu| last.contains(pdu.id()));
            edges = self.edges(room, &events).await?;
        }
        Ok((events, edges))
    }

    async fn edges(&self, room: &RoomId, events: &[Pdu]) -> Result<Vec<Pdu>> {
        let among: HashSet<&OwnedEventId> = events.iter().map(Pdu::id).collect();
        let named = events.iter().flat_map(|pdu| &pdu.outline.prev_events);
        let outside: Vec<OwnedEventId> = named.filter(|id| !among.contains(id)).cloned().collect();
        let placed = self.0.rooms.owner.list_placed(room, &outside).await?;
        let placed: HashSet<&OwnedEventId> = placed.iter().collect();
        let is_there = |id: &OwnedEventId| among.contains(id) || placed.contains(id);
        let is_edge = |pdu: &&Pdu| !pdu.outline.prev_events.iter().all(is_there);
        Ok(events.iter().filter(is_edge).cloned().collect())
    }

    /// Makes the events known, with what shows that they are allowed.
    async fn store(
        &self,
        room: &RoomId,
        door: &Door,
        server: &ServerName,
        events: &[Pdu],
    ) -> Result<()> {
        let owner = &self.0.rooms.owner;
        let all = || events.iter().map(|pdu| pdu.json.clone()).collect();
        let stored = owner.store_outliers(room, all()).await?;
        if stored.missing.is_empty() {
            return Ok(());
        }
        let lacks =
            |pdu: &&Pdu| pdu.outline.auth_events.iter().any(|id| stored.missing.contains(id));
        for pdu in events.iter().filter(lacks).take(MOST_AUTH) {
            if let Err(failure) = self.0.inbound.fetch_auth(room, door, server, pdu).await? {
                tracing::info!(
                    server.name = %server, room.id = %room, event.id = %pdu.id(), %failure,
                    "what allows an event cannot be had"
                );
            }
        }
        let stored = owner.store_outliers(room, all()).await?;
        for (id, why) in stored.left_out {
            tracing::info!(server.name = %server, room.id = %room, ?id, why, "an event is left out");
        }
        Ok(())
    }
}

/// Those of the events that lead to `last` without a gap.
fn connected(last: &[OwnedEventId], events: Vec<Pdu>) -> Vec<Pdu> {
    let mut rest: HashMap<OwnedEventId, Pdu> =
        events.into_iter().map(|pdu| (pdu.id().clone(), pdu)).collect();
    let mut open: Vec<OwnedEventId> = last.to_vec();
    let mut connected = Vec::with_capacity(rest.len());
    while let Some(id) = open.pop() {
        if let Some(pdu) = rest.remove(&id) {
            open.extend(pdu.outline.prev_events.iter().cloned());
            connected.push(pdu);
        }
    }
    connected
}
