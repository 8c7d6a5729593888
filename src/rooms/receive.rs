//! Events that come from elsewhere with predecessors of their own. The owner gives them their
//! place, judges them (spec: checks performed on receipt of a PDU, steps 4 to 6), resolves the
//! state where branches meet, and appends them through the same lane as its own.
//!
//! They have the room for themselves: nothing else of the room is on the lane meanwhile, so the
//! tables say all there is to say about the graph. Those that follow one another at the end of the
//! room go in together (`line`); each of the others is placed alone (`judge`).

use std::sync::Arc;

use chatd_base::{EventNid, Position, Refusal, Result};
use chatd_storage::{gaps, graph::Place, lane::flags, snapshots::StateMap};
use ruma_common::{CanonicalJsonObject, OwnedEventId, RoomId};

use crate::{
    arrival::Arrival,
    effect,
    judge::Around,
    line::Line,
    live::Live,
    owner::{Hold, RoomOwner, Settled, Slot, UNSETTLED, away, lock, settle},
    place::{Scene, StateAt},
    places::Places,
    seal::Route,
};

/// What became of an event that came from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Part of the room.
    Accepted,
    /// Allowed where it stands, but not in the room as it is now: kept, and shown to nobody.
    SoftFailed(String),
    /// Not allowed: kept, so that what refers to it can be judged.
    Rejected(String),
    /// It was there before.
    Known,
    /// These events, to which it refers, have to be received first.
    Missing(Vec<OwnedEventId>),
}

/// An event that was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub event_id: OwnedEventId,
    pub verdict: Verdict,
    /// 0 unless it was written.
    pub position: Position,
}

impl Received {
    pub(crate) fn new(arrival: &Arrival, verdict: Verdict, position: Position) -> Self {
        Self { event_id: arrival.event_id().clone(), verdict, position }
    }
}

/// The state before an event whose predecessors are missing, as another server tells it. All of
/// these events have to be known, at least as outliers.
pub type Before = Vec<OwnedEventId>;

/// How often a batch starts anew because the memory of its room was thrown away.
const ATTEMPTS: usize = 16;
/// Events that go the way of bulk when there are more of them.
const FEW: usize = 8;

impl RoomOwner {
    /// Appends an event with the predecessors that it names. Its signatures and hashes have been
    /// checked. On return it is durable (R1), unless it is known or refers to missing events.
    pub async fn receive(&self, room_id: &RoomId, event: CanonicalJsonObject) -> Result<Received> {
        self.receive_as(room_id, event, Route::Received).await
    }

    /// As [`RoomOwner::receive`], for an event that this server may have to send to the others in
    /// the room.
    pub async fn receive_as(
        &self,
        room_id: &RoomId,
        event: CanonicalJsonObject,
        route: Route,
    ) -> Result<Received> {
        let mut received = self.receive_by(room_id, vec![event], route).await?;
        let only = received.pop().ok_or_else(|| away(UNSETTLED))?;
        Ok(only?)
    }

    /// [`Self::receive`] for several events, in their order. Refuses each that has not the form of
    /// an event of the room; a failure of the whole leaves those durable that came first.
    pub async fn receive_all(
        &self,
        room_id: &RoomId,
        events: Vec<CanonicalJsonObject>,
    ) -> Result<Vec<Result<Received, Refusal>>> {
        self.receive_by(room_id, events, Route::Received).await
    }

    async fn receive_by(
        &self,
        room_id: &RoomId,
        events: Vec<CanonicalJsonObject>,
        route: Route,
    ) -> Result<Vec<Result<Received, Refusal>>> {
        let mut arrivals = self.arrivals(room_id, events).await?;
        arrivals.iter_mut().flatten().for_each(|arrival| arrival.draft.route = route);
        let mut done: Vec<Result<Received, Refusal>> = Vec::with_capacity(arrivals.len());
        let mut attempts = 0;
        while done.len() < arrivals.len() {
            let rest = match &arrivals[done.len()] {
                Err(refusal) => {
                    done.push(Err(refusal.clone()));
                    continue;
                }
                Ok(_) => arrivals[done.len()..].iter().map_while(|arrival| arrival.as_ref().ok()),
            };
            let rest: Vec<&Arrival> = rest.collect();
            match self.receive_some(room_id, &rest).await? {
                Some(received) => done.extend(received),
                None if attempts < ATTEMPTS => attempts += 1,
                None => return Err(away(UNSETTLED).into()),
            }
        }
        Ok(done)
    }

    /// Appends an event whose predecessors are missing, by the state before it. On return it is
    /// durable, unless something that it needs is still missing.
    pub async fn receive_at(
        &self,
        room_id: &RoomId,
        event: CanonicalJsonObject,
        before: &Before,
    ) -> Result<Received> {
        let arrival =
            self.arrivals(room_id, vec![event]).await?.pop().ok_or_else(|| away(UNSETTLED))??;
        for _ in 0..ATTEMPTS {
            let (slot, alone) = self.alone(room_id).await?;
            let given: Vec<&str> = before.iter().map(|id| id.as_str()).collect();
            let places = self.places_of(&slot, &[&arrival], &given).await?;
            let one = One { arrival: &arrival, places: &places, before: Some(before) };
            if let Some(received) = self.receive_one(&slot, alone, one).await? {
                return Ok(received);
            }
        }
        Err(away(UNSETTLED).into())
    }

    async fn arrivals(
        &self,
        room_id: &RoomId,
        events: Vec<CanonicalJsonObject>,
    ) -> Result<Vec<Result<Arrival, Refusal>>> {
        let slot = self.slot(room_id).await?;
        let rules = lock(&slot).lock().rules.clone();
        let parsed = events.into_iter().map(|event| match Arrival::parse(event, &rules, room_id) {
            Ok(arrival) => Ok(Ok(arrival)),
            Err(chatd_base::Error::Refused(refusal)) => Ok(Err(*refusal)),
            Err(error) => Err(error),
        });
        parsed.collect()
    }

    /// The room, and nobody else in it.
    pub(crate) async fn alone(&self, room_id: &RoomId) -> Result<(Arc<Slot>, Hold)> {
        loop {
            let slot = self.slot(room_id).await?;
            let alone = Hold::Alone(slot.gate.clone().write_owned().await);
            if !slot.is_dead() {
                return Ok((slot, alone));
            }
        }
    }

    /// Receives at least one of the events. `None` if the room has to be loaded again.
    async fn receive_some(
        &self,
        room_id: &RoomId,
        rest: &[&Arrival],
    ) -> Result<Option<Vec<Result<Received, Refusal>>>> {
        self.merge_heads(room_id).await?;
        let (slot, alone) = self.alone(room_id).await?;
        let places = self.places_of(&slot, rest, &[]).await?;
        let alone = match self.receive_line(&slot, alone, rest, &places).await? {
            Line::Received(received) => return Ok(Some(received.into_iter().map(Ok).collect())),
            Line::Again => return Ok(None),
            Line::Nothing(alone) => alone,
        };
        let one = One { arrival: rest[0], places: &places, before: None };
        match self.receive_one(&slot, alone, one).await {
            Ok(received) => Ok(received.map(|received| vec![Ok(received)])),
            Err(chatd_base::Error::Refused(refusal)) if is_theirs(&refusal) => {
                Ok(Some(vec![Err(*refusal)]))
            }
            Err(error) => Err(error),
        }
    }

    /// What is known of the events, and of those that they name; one query.
    pub(crate) async fn places_of(
        &self,
        slot: &Slot,
        arrivals: &[&Arrival],
        others: &[&str],
    ) -> Result<Places> {
        let room = lock(slot).lock().room;
        let named = arrivals.iter().flat_map(|arrival| arrival.named().chain([arrival.event_id()]));
        let mut named: Vec<&str> = named.map(|id| id.as_str()).collect();
        named.extend(others);
        named.sort_unstable();
        named.dedup();
        let mut places = self.places.list(&named).await?;
        places.retain(|_, place| place.room == room);
        Ok(places)
    }

    /// `None` if the room has to be loaded again.
    pub(crate) async fn receive_one(
        &self,
        slot: &Arc<Slot>,
        alone: Hold,
        one: One<'_>,
    ) -> Result<Option<Received>> {
        let arrival = one.arrival;
        let known = one.own_place();
        if known.is_some_and(|place| place.flags & flags::OUTLIER == 0) {
            return Ok(Some(Received::new(arrival, Verdict::Known, Position(0))));
        }
        if arrival.prev_events.is_empty() {
            return Err(Refusal::bad_json("the event has no predecessors").into());
        }
        let missing = one.missing();
        if !missing.is_empty() {
            return Ok(Some(Received::new(arrival, Verdict::Missing(missing), Position(0))));
        }
        let mut with = self.prepare(slot, &arrival.draft, None).await?;
        if let Some(outlier) = known {
            with.nid = outlier.nid;
        }
        let (rules, heads, current, room, room_id) = {
            let live = lock(slot).lock();
            let heads = live.heads.clone();
            (live.rules.clone(), heads, current(&live), live.room, live.room_id.clone())
        };
        let pdu = Arc::new(arrival.pdu(with.nid, with.key, &rules, &room_id)?);
        let id = [arrival.event_id().as_str()];
        let auth_ids = one.nids(&arrival.auth_events);
        let mut scene = Scene::new(self, (room, room_id), rules, &pdu, auth_ids.clone(), current);
        let around = Around {
            prev: one.with_state().cloned().collect(),
            given: one.given(),
            is_behind: !gaps::list_named(&self.pool, room, &id).await?.is_empty(),
            heads,
        };
        let (verdict, mut effect) = self.judge(slot, &mut scene, &pdu, &with, around).await?;
        effect.prev_ids = one.nids(&arrival.prev_events);
        effect.auth_ids = auth_ids;
        effect.gaps = Some(one.gaps());
        let sealed = arrival.stored(one.knows_all())?;
        let waiting = self.waiting_redactions(slot, &id).await?;

        let permit = self.reserve(one.before.is_some()).await?;
        let waits = {
            let mut live = lock(slot).lock();
            let waiting = waiting.get(id[0]);
            let pdu = Self::redaction(&live, &with, arrival, waiting, pdu, &mut effect)?;
            let draft = &arrival.draft;
            let event = effect::apply(&mut live, &self.signer, draft, &with, pdu, sealed, effect)?;
            slot.enqueue(permit, &live, vec![event], alone)
        };
        let settled = self.settled(waits).await?;
        Ok(settled.map(|position| Received::new(arrival, verdict, position)))
    }

    /// The position of what was put on the lane. `None` if the room has to be loaded again.
    pub(crate) async fn settled(
        &self,
        waits: tokio::sync::watch::Receiver<crate::lane::Outcome>,
    ) -> Result<Option<Position>> {
        match settle(waits).await? {
            Settled::Sent(sent) => Ok(Some(sent.position)),
            Settled::Again => Ok(None),
            Settled::Moved => {
                self.owners.refresh().await?;
                Ok(None)
            }
        }
    }
}

/// Whether the event is to blame, and not this instance.
fn is_theirs(refusal: &Refusal) -> bool {
    refusal.status < 500 && refusal.errcode != Refusal::NOT_OWNER
}

/// Whether so many events are better written when nothing else waits.
pub(crate) fn is_bulk(count: usize) -> bool {
    count > FEW
}

/// The state of the room now.
pub(crate) fn current(live: &Live) -> StateAt {
    let state: StateMap = live.state.iter().map(|(key, event)| (*key, *event)).collect();
    StateAt { state: Arc::new(state), head: live.snapshot.clone() }
}

/// One event, and what is known of those that it names.
pub(crate) struct One<'a> {
    pub arrival: &'a Arrival,
    pub places: &'a Places,
    pub before: Option<&'a Before>,
}

impl<'a> One<'a> {
    fn place(&self, id: &OwnedEventId) -> Option<&'a Place> {
        self.places.get(id.as_str())
    }

    fn own_place(&self) -> Option<&'a Place> {
        self.place(self.arrival.event_id())
    }

    /// Predecessors after which the state is known.
    fn with_state(&self) -> impl Iterator<Item = &'a Place> + '_ {
        let known = self.arrival.prev_events.iter().filter_map(|id| self.place(id));
        known.filter(|place| place.flags & flags::OUTLIER == 0)
    }

    fn nids(&self, ids: &[OwnedEventId]) -> Vec<EventNid> {
        ids.iter().filter_map(|id| Some(self.place(id)?.nid)).collect()
    }

    /// Predecessors that are not there, or have no place.
    fn gaps(&self) -> Vec<String> {
        let has_place =
            |id: &&OwnedEventId| self.place(id).is_some_and(|p| p.flags & flags::OUTLIER == 0);
        let missing = self.arrival.prev_events.iter().filter(|id| !has_place(id));
        missing.map(|id| id.to_string()).collect()
    }

    fn knows_all(&self) -> bool {
        self.arrival.named().all(|id| self.place(id).is_some())
    }

    /// What has to be received before it.
    fn missing(&self) -> Vec<OwnedEventId> {
        let unknown = |id: &&OwnedEventId| self.place(id).is_none();
        let auth = self.arrival.auth_events.iter().filter(unknown).cloned();
        match self.before {
            Some(before) => before.iter().filter(unknown).cloned().chain(auth).collect(),
            None => {
                let prev = self.gaps().into_iter().filter_map(|id| id.try_into().ok());
                prev.chain(auth).collect()
            }
        }
    }

    /// The state that another server has told, without what the rules do not allow.
    fn given(&self) -> Option<StateMap> {
        let places = self.before?.iter().filter_map(|id| self.place(id));
        let allowed = places.filter(|place| place.flags & flags::REJECTED == 0);
        Some(allowed.filter_map(|place| Some((place.key?, place.nid))).collect())
    }
}
