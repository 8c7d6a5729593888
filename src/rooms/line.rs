//! Events of other servers that follow one another at the end of a room: the state before each is
//! the state of the room, which is in memory. One commit for all of them, and no reads but of what
//! is known already.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{EventNid, Position, Result};
use chatd_storage::lane::flags;
use ruma_common::{EventId, OwnedEventId};
use ruma_state_res::auth_types_for_event;

use crate::{
    arrival::Arrival,
    compose::{Prepared, here},
    effect::{self, Effect},
    judge::Waiting,
    judge::allowed,
    lane::SealedEvent,
    live::Live,
    owner::{Hold, RoomOwner, Slot, lock},
    pdu::Pdu,
    places::Places,
    receive::{Received, Verdict, is_bulk},
};

/// How far a line of events has come.
pub(crate) enum Line {
    /// The first of them.
    Received(Vec<Received>),
    /// Nobody: the room has to be loaded again.
    Again,
    /// The first of them has to find its place by itself.
    Nothing(Hold),
}

impl RoomOwner {
    /// Receives as many of the events as follow one another at the end of the room.
    pub(crate) async fn receive_line(
        &self,
        slot: &Arc<Slot>,
        alone: Hold,
        rest: &[&Arrival],
        places: &Places,
    ) -> Result<Line> {
        let line = {
            let live = lock(slot).lock();
            let heads = live.heads.iter().map(|head| head.event_id.clone()).collect();
            line_of(heads, rest, places)
        };
        let mut prepared = Vec::with_capacity(line.len());
        for arrival in &line {
            match self.prepare(slot, &arrival.draft, None).await {
                Ok(with) => prepared.push(with),
                Err(chatd_base::Error::Refused(_)) => break,
                Err(error) => return Err(error),
            }
        }
        if prepared.is_empty() {
            return Ok(Line::Nothing(alone));
        }
        let ids: Vec<&str> = line.iter().map(|arrival| arrival.event_id().as_str()).collect();
        let waiting = self.waiting_redactions(slot, &ids).await?;
        let permit = self.reserve(is_bulk(prepared.len())).await?;
        let mut received = Vec::with_capacity(prepared.len());
        let waits = {
            let mut live = lock(slot).lock();
            let mut events = Vec::with_capacity(prepared.len());
            for (arrival, with) in line.iter().zip(&prepared) {
                let next = self.next_in_line(&mut live, arrival, with, &waiting);
                let Some((verdict, event)) = next? else { break };
                received.push(Received::new(arrival, verdict, Position(0)));
                events.push(event);
            }
            if events.is_empty() {
                return Ok(Line::Nothing(alone));
            }
            slot.enqueue(permit, &live, events, alone)
        };
        let Some(last) = self.settled(waits).await? else { return Ok(Line::Again) };
        for (received, back) in received.iter_mut().rev().zip(0..) {
            received.position = Position(last.0 - back);
        }
        Ok(Line::Received(received))
    }

    /// Moves the room past an event that follows its newest ones. `None` if it does not, or has to
    /// be judged by what is not in memory; then nothing has changed.
    fn next_in_line(
        &self,
        live: &mut Live,
        arrival: &Arrival,
        with: &Prepared,
        waiting: &Waiting,
    ) -> Result<Option<(Verdict, SealedEvent)>> {
        let Some(prev_ids) = newest(live, arrival) else { return Ok(None) };
        let pdu = arrival.pdu(with.nid, with.key, &live.rules, &live.room_id)?;
        let Some(auth) = named_in_force(live, arrival, &pdu) else { return Ok(None) };
        let pdu = Arc::new(pdu);
        let in_force = |kind: &str, key: &str| live.body(kind, key).cloned();
        let (verdict, mut effect) = match allowed(&live.rules.authorization, &pdu, &auth, in_force)
        {
            Ok(()) => (Verdict::Accepted, here(live, with, &pdu, pdu.hash.clone())),
            Err(reason) => (Verdict::Rejected(reason), Effect::none(live, flags::REJECTED)),
        };
        effect.prev_ids = prev_ids;
        effect.auth_ids = auth.iter().map(|auth| auth.nid).collect();
        effect.gaps = Some(Vec::new());
        let waiting = waiting.get(arrival.event_id().as_str());
        let pdu = Self::redaction(live, with, arrival, waiting, pdu, &mut effect)?;
        let (draft, sealed) = (&arrival.draft, arrival.sealed.clone());
        match effect::apply(live, &self.signer, draft, with, pdu, sealed, effect) {
            Ok(event) => Ok(Some((verdict, event))),
            // It is told why when it is alone.
            Err(chatd_base::Error::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The first of the events that follow one another from `heads` on, are new, and name only what is
/// known.
fn line_of<'a>(
    mut heads: HashSet<OwnedEventId>,
    rest: &[&'a Arrival],
    places: &Places,
) -> Vec<&'a Arrival> {
    let mut line: Vec<&Arrival> = Vec::new();
    let mut redacted: HashSet<&EventId> = HashSet::new();
    for arrival in rest {
        let follows = arrival.prev_events.len() == heads.len()
            && !arrival.repeats_itself()
            && arrival.prev_events.iter().all(|id| heads.contains(id));
        let is_new = !places.contains_key(arrival.event_id().as_str());
        let in_line = |id: &EventId| line.iter().any(|other| *other.event_id() == id);
        let knows =
            arrival.auth_events.iter().all(|id| places.contains_key(id.as_str()) || in_line(id));
        // Both would have to be in the tables for a redaction to find its target.
        let is_apart = arrival.draft.redacts.as_ref().is_none_or(|target| !in_line(target))
            && !redacted.contains(&**arrival.event_id());
        if !(follows && is_new && knows && is_apart) {
            break;
        }
        redacted.extend(arrival.draft.redacts.as_deref());
        heads = HashSet::from([arrival.event_id().clone()]);
        line.push(arrival);
    }
    line
}

/// Numbers of the predecessors, if they are the newest events of the room.
fn newest(live: &Live, arrival: &Arrival) -> Option<Vec<EventNid>> {
    if arrival.prev_events.len() != live.heads.len() {
        return None;
    }
    let of = |id: &OwnedEventId| live.heads.iter().find(|head| head.event_id == *id);
    arrival.prev_events.iter().map(|id| Some(of(id)?.nid)).collect()
}

/// The auth events of an event, if all of them are in force now.
fn named_in_force(live: &Live, arrival: &Arrival, pdu: &Pdu) -> Option<Vec<Arc<Pdu>>> {
    let rules = &live.rules.authorization;
    let state_key = pdu.state_key.as_deref();
    let types =
        auth_types_for_event(&pdu.kind, &pdu.sender, state_key, &pdu.content, rules).ok()?;
    let in_force: HashMap<&EventId, &Arc<Pdu>> = types
        .iter()
        .filter_map(|(kind, key)| live.body(&kind.to_string(), key))
        .map(|body| (&*body.event_id, body))
        .collect();
    arrival.auth_events.iter().map(|id| in_force.get(&**id).map(|body| (*body).clone())).collect()
}
