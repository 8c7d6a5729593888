//! The state before an event whose predecessors cannot be had, as another server tells it, and the
//! events that show that an event is allowed.

use std::{collections::HashSet, time::Duration};

use chatd_base::{Result, event_form};
use chatd_rooms::{Door, Verdict};
use chatd_servers::{Ask, Failure};
use futures::{StreamExt, future::BoxFuture, stream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ruma_common::{EventId, OwnedEventId, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Inbound, room::Pdu};

/// Events of a state and of what shows that it is allowed (R8).
const MOST_EVENTS: usize = 200_000;
/// Those of them that are new here.
const MOST_NEW: usize = 50_000;
/// Largest answers.
const MOST_ID_BYTES: usize = 32 * 1024 * 1024;
const MOST_STATE_BYTES: usize = 128 * 1024 * 1024;
const MOST_EVENT_BYTES: usize = 256 * 1024;
const WITHIN: Duration = Duration::from_secs(60);
/// Fetched one by one unless more than one in so many is missing, or more than so many are.
const ONE_IN: usize = 10;
const MOST_SINGLE: usize = 200;
const AT_ONCE: usize = 8;
/// Events that are stored at a time where all are fetched one by one, and the time for all.
const STEP: usize = 500;
const ALL_WITHIN: Duration = Duration::from_secs(30 * 60);

#[derive(Deserialize)]
struct StateIds {
    pdu_ids: Vec<OwnedEventId>,
    #[serde(default)]
    auth_chain_ids: Vec<OwnedEventId>,
}

#[derive(Deserialize)]
struct Events {
    #[serde(default)]
    pdus: Vec<Box<RawValue>>,
    #[serde(default)]
    auth_chain: Vec<Box<RawValue>>,
}

/// A part of a path.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl Inbound {
    /// Places an event by what the server says of it. False if it cannot be placed.
    pub(super) async fn place_by_state(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        pdu: &Pdu,
    ) -> Result<Result<bool, Failure>> {
        let prev = &pdu.outline.prev_events;
        let owner = &self.0.rooms.owner;
        let has_prev = owner.list_placed(room, prev).await?.len() == prev.len();
        if let Err(failure) = self.fetch_auth(room, door, origin, pdu).await? {
            return Ok(Err(failure));
        }
        let received = if has_prev {
            owner.receive(room, pdu.json.clone()).await?
        } else {
            let before = match self.fetch_state(room, door, origin, pdu).await? {
                Ok(before) => before,
                Err(failure) => return Ok(Err(failure)),
            };
            owner.receive_at(room, pdu.json.clone(), &before).await?
        };
        self.tell(room, pdu, &received);
        if let (false, Some(ear)) = (has_prev, self.0.gap.get()) {
            ear(room);
        }
        let is_placed = !matches!(received.verdict, Verdict::Missing(_));
        if let Verdict::Missing(missing) = received.verdict {
            tracing::warn!(
                server.name = %origin, room.id = %room, event.id = %pdu.id(),
                count = missing.len(), first = ?missing.first(),
                "an event cannot be placed: its server does not give what it refers to"
            );
        }
        Ok(Ok(is_placed))
    }

    /// Fetches the events that show that the event is allowed, if some are missing.
    pub(crate) async fn fetch_auth(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        pdu: &Pdu,
    ) -> Result<Result<(), Failure>> {
        let auth = &pdu.outline.auth_events;
        if self.0.rooms.owner.list_stored(room, auth).await?.len() == auth.len() {
            return Ok(Ok(()));
        }
        let (room_part, event) = (segment(room.as_str()), segment(pdu.id().as_str()));
        let path = format!("/_matrix/federation/v1/event_auth/{room_part}/{event}");
        let ask = Ask::get(path).within(WITHIN).most_bytes(MOST_STATE_BYTES);
        let events: Events = match self.0.servers.client.ask_json(origin, ask).await {
            Ok(events) => events,
            Err(failure) => return Ok(Err(failure)),
        };
        self.store(room, door, origin, events.auth_chain).await?;
        Ok(Ok(()))
    }

    /// The state before an event. On return its events are known, as far as they are sound.
    pub(crate) async fn fetch_state(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        pdu: &Pdu,
    ) -> Result<Result<Vec<OwnedEventId>, Failure>> {
        let (room_part, event) = (segment(room.as_str()), segment(pdu.id().as_str()));
        let ids = match self.ask_state_ids(room, origin, pdu.id(), false).await {
            Ok(ids) => ids,
            Err(failure) => return Ok(Err(failure)),
        };
        let all: HashSet<&OwnedEventId> = ids.pdu_ids.iter().chain(&ids.auth_chain_ids).collect();
        if let Some(wrong) = all.iter().find(|id| !event_form::is_name(id.as_str())) {
            let why = format!("{origin} tells a state with an event that is called {wrong:?}");
            return Ok(Err(Failure::Odd(why)));
        }
        let all: Vec<OwnedEventId> = all.into_iter().cloned().collect();
        let stored = self.0.rooms.owner.list_stored(room, &all).await?;
        let stored: HashSet<&OwnedEventId> = stored.iter().collect();
        let missing: Vec<&OwnedEventId> = all.iter().filter(|id| !stored.contains(id)).collect();
        if missing.len() > MOST_NEW {
            let why = format!("{origin} tells a state with {} unknown events", missing.len());
            return Ok(Err(Failure::Odd(why)));
        }
        let events = match missing.len() {
            0 => Ok(Vec::new()),
            many if many > MOST_SINGLE || many * ONE_IN >= all.len() => {
                let path = format!("/_matrix/federation/v1/state/{room_part}?event_id={event}");
                self.ask_state(origin, path).await
            }
            _ => self.ask_each(origin, &missing).await,
        };
        match events {
            Ok(events) => {
                let wanted: HashSet<&OwnedEventId> = missing.into_iter().collect();
                self.store_some(room, door, origin, events, |id| wanted.contains(id)).await?;
                Ok(Ok(ids.pdu_ids))
            }
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// The same, event by event: for a server that does not tell a state as a whole. What has come
    /// stays; so whoever asks again asks for less.
    pub(crate) async fn fetch_state_singly(
        &self,
        room: &RoomId,
        origin: &ServerName,
        event: &EventId,
    ) -> Result<Result<Vec<OwnedEventId>, Failure>> {
        let fetching = self.fetch_singly(room, origin, event);
        match tokio::time::timeout(ALL_WITHIN, fetching).await {
            Ok(fetched) => fetched,
            Err(_) => Ok(Err(Failure::Away("it has taken too long".to_owned()))),
        }
    }

    async fn fetch_singly(
        &self,
        room: &RoomId,
        origin: &ServerName,
        event: &EventId,
    ) -> Result<Result<Vec<OwnedEventId>, Failure>> {
        let door = self.0.rooms.owner.door(room, origin).await?;
        // One that does not manage to tell all of it is not away.
        let ids = match self.ask_state_ids(room, origin, event, true).await {
            Ok(ids) => ids,
            Err(failure) => return Ok(Err(failure)),
        };
        // What is named as authorisation is stored before what names it.
        let chain: HashSet<&OwnedEventId> = ids.auth_chain_ids.iter().collect();
        let rest: Vec<OwnedEventId> =
            ids.pdu_ids.iter().filter(|id| !chain.contains(id)).cloned().collect();
        for part in std::iter::once(&*ids.auth_chain_ids).chain(rest.chunks(STEP)) {
            let stored = self.0.rooms.owner.list_stored(room, part).await?;
            let stored: HashSet<&OwnedEventId> = stored.iter().collect();
            let missing: Vec<&OwnedEventId> =
                part.iter().filter(|id| !stored.contains(id)).collect();
            let events = match self.ask_each(origin, &missing).await {
                Ok(events) => events,
                Err(failure) => return Ok(Err(failure)),
            };
            if events.is_empty() && !missing.is_empty() {
                let why = format!("{origin} gives none of {} events", missing.len());
                return Ok(Err(Failure::Odd(why)));
            }
            let wanted: HashSet<&OwnedEventId> = missing.into_iter().collect();
            self.store_some(room, &door, origin, events, |id| wanted.contains(id)).await?;
        }
        Ok(Ok(ids.pdu_ids))
    }

    async fn ask_state_ids(
        &self,
        room: &RoomId,
        origin: &ServerName,
        event: &EventId,
        insists: bool,
    ) -> Result<StateIds, Failure> {
        let (room, event) = (segment(room.as_str()), segment(event.as_str()));
        let path = format!("/_matrix/federation/v1/state_ids/{room}?event_id={event}");
        let ask = Ask::get(path).within(WITHIN).most_bytes(MOST_ID_BYTES);
        let ask = if insists { ask.anyway() } else { ask };
        let ids: StateIds = self.0.servers.client.ask_json(origin, ask).await?;
        let count = ids.pdu_ids.len() + ids.auth_chain_ids.len();
        if count > MOST_EVENTS {
            return Err(Failure::Odd(format!("{origin} tells a state of {count} events")));
        }
        Ok(ids)
    }

    async fn ask_state(
        &self,
        origin: &ServerName,
        path: String,
    ) -> Result<Vec<Box<RawValue>>, Failure> {
        let ask = Ask::get(path).within(WITHIN).most_bytes(MOST_STATE_BYTES);
        let Events { mut pdus, auth_chain } = self.0.servers.client.ask_json(origin, ask).await?;
        pdus.extend(auth_chain);
        Ok(pdus)
    }

    /// Those of the events that the server gives; together they are no larger than what it may tell
    /// at once.
    async fn ask_each(
        &self,
        origin: &ServerName,
        ids: &[&OwnedEventId],
    ) -> Result<Vec<Box<RawValue>>, Failure> {
        let mut asked: Vec<BoxFuture<'_, Option<Box<RawValue>>>> = Vec::with_capacity(ids.len());
        for id in ids {
            asked.push(Box::pin(self.ask_one(origin, id)));
        }
        let mut answers = stream::iter(asked).buffer_unordered(AT_ONCE);
        let (mut events, mut bytes) = (Vec::new(), 0);
        while let Some(answer) = answers.next().await {
            bytes += answer.as_ref().map_or(0, |event| event.get().len());
            if bytes > MOST_STATE_BYTES {
                return Err(Failure::Odd(format!("{origin} tells a state that is too large")));
            }
            events.extend(answer);
        }
        Ok(events)
    }

    async fn ask_one(&self, origin: &ServerName, id: &OwnedEventId) -> Option<Box<RawValue>> {
        let path = format!("/_matrix/federation/v1/event/{}", segment(id.as_str()));
        let ask = Ask::get(path).within(WITHIN).most_bytes(MOST_EVENT_BYTES);
        let answer: Result<Events, Failure> = self.0.servers.client.ask_json(origin, ask).await;
        answer.ok()?.pdus.into_iter().next()
    }

    async fn store(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        events: Vec<Box<RawValue>>,
    ) -> Result<()> {
        self.store_some(room, door, origin, events, |_| true).await
    }

    /// Makes those of the events known that are wanted and sound.
    async fn store_some(
        &self,
        room: &RoomId,
        door: &Door,
        origin: &ServerName,
        events: Vec<Box<RawValue>>,
        is_wanted: impl Fn(&OwnedEventId) -> bool,
    ) -> Result<()> {
        let parsed = events.iter().filter_map(|event| Pdu::parse(event.get(), door, room).ok());
        let pdus: Vec<Pdu> = parsed.filter(|pdu| is_wanted(pdu.id())).take(MOST_NEW).collect();
        let ids: Vec<OwnedEventId> = pdus.iter().map(|pdu| pdu.id().clone()).collect();
        let stored = self.0.rooms.owner.list_stored(room, &ids).await?;
        let stored: HashSet<OwnedEventId> = stored.into_iter().collect();
        let new = pdus.into_iter().filter(|pdu| !stored.contains(pdu.id())).collect();
        let sound = self.sound(origin, room, door, new).await?;
        if sound.is_empty() {
            return Ok(());
        }
        let events = sound.into_iter().map(|pdu| pdu.json).collect();
        let stored = self.0.rooms.owner.store_outliers(room, events).await?;
        for (id, why) in stored.left_out {
            tracing::info!(server.name = %origin, room.id = %room, ?id, why, "an event is left out");
        }
        Ok(())
    }
}
