//! The answer to a join: the state of a room that another server tells. It is read, taken apart and
//! checked in batches while the rest of it is still on its way, off the threads that answer
//! requests. What is kept of it is what goes into the tables.

use std::{
    collections::{BTreeSet, HashSet},
    hash::{BuildHasher, RandomState},
};

use bytes::Bytes;
use chatd_rooms::{Import, Incoming, event_id, parallel, take_apart};
use chatd_servers::{Ask, Body, Failure, Unsound};
use futures::{Stream, TryStreamExt, pin_mut, stream};
use ruma_common::{
    CanonicalJsonObject, EventId, RoomId, ServerName, room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Joining,
    candidates::Trial,
    split::{Piece, Place, Splitter},
    template::Made,
};
use crate::uri;

/// Events that another server may tell of a room (R8).
const MOST: usize = 1_000_000;
/// Events that are checked at a time, and what they may come to as text.
const BATCH: usize = 1_024;
const MOST_BYTES_OF_BATCH: usize = 4 << 20;
/// What is taken apart at a time of an answer that comes in one piece.
const SLICE: usize = 256 << 10;
/// Batches that are being checked, or wait for keys, while the next one is read (R8).
const UNDER_WAY: usize = 8;

/// A part of an answer.
#[derive(Debug, Default)]
struct Batch {
    /// Entries of the state or of the auth chain; each says which.
    events: Vec<Piece>,
    others: Vec<Piece>,
}

/// Reads an answer.
struct Source {
    body: Body,
    /// What has come, and is not taken apart yet.
    rest: Bytes,
    splitter: Splitter,
    /// Taken apart, and in no batch yet.
    ready: Batch,
    bytes: usize,
    count: usize,
    /// Digests of what has come: most of the auth chain is in the state too.
    seen: HashSet<u64>,
    hasher: RandomState,
    has_ended: bool,
}

/// What has been told, as far as it is believed.
#[derive(Debug, Default)]
struct Told {
    state: Vec<Incoming>,
    auth_chain: Vec<Incoming>,
    others: Vec<Piece>,
    unsound: usize,
}

/// What a batch has come to.
struct Checked {
    events: Vec<(Place, Option<Incoming>)>,
    others: Vec<Piece>,
}

impl Joining {
    /// Reads and checks what `server` answers to `made`.
    pub(super) async fn read_answer(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        made: Made,
        body: Body,
        may_omit: bool,
    ) -> Result<Import, Trial> {
        let odd = |why: String| odd(server, &why);
        let rules = made.version.rules().ok_or_else(|| odd("it is of no version".to_owned()))?;
        let told = self.read_all(server, room_id, &rules, body).await?;
        let other = |place| told.others.iter().find(|piece| piece.place == place);
        let is_omitted = other(Place::MembersOmitted).is_some_and(|piece| piece.json == b"true");
        let omitted = match is_omitted {
            true if !may_omit => {
                return Err(odd("members were left out, which nobody has asked for".into()).into());
            }
            true => {
                let mut servers = servers_told(server, other(Place::Servers)).map_err(odd)?;
                servers.retain(|name| *name != self.deps.config.server_name);
                Some(servers)
            }
            false => None,
        };
        let event = match other(Place::Event).filter(|piece| piece.json != b"null") {
            Some(piece) => {
                serde_json::from_slice(&piece.json).map_err(|why| odd(why.to_string()))?
            }
            None => made.event,
        };
        if !event_id(&made.version, &event).is_ok_and(|id| id == made.event_id) {
            return Err(odd("the event is another one".to_owned()).into());
        }
        let event = match self.deps.servers.keyring.check_events(vec![event], &rules).await?.pop() {
            Some(Ok(event)) => event,
            Some(Err(Unsound::Forged(why) | Unsound::NoKey(why))) => return Err(odd(why).into()),
            None => return Err(odd("the event is missing".to_owned()).into()),
        };
        let Told { state, auth_chain, .. } = told;
        let room_id = room_id.to_owned();
        Ok(Import { room_id, version: made.version, event, state, auth_chain, omitted })
    }

    /// Reads and checks a state and its auth chain, as `server` tells them alone.
    pub(super) async fn read_state(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        rules: &RoomVersionRules,
        body: Body,
    ) -> Result<(Vec<Incoming>, Vec<Incoming>), Trial> {
        let told = self.read_all(server, room_id, rules, body).await?;
        Ok((told.state, told.auth_chain))
    }

    /// Asks for one event of the room.
    pub(super) async fn ask_for_event(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        rules: &RoomVersionRules,
        event: &EventId,
    ) -> Result<Incoming, Trial> {
        #[derive(Deserialize)]
        struct Answer {
            pdus: Vec<Box<RawValue>>,
        }
        let ask = Ask::get(uri!("/_matrix/federation/v1/event/{}", event));
        let answer: Answer = self.deps.servers.client.ask_json(server, ask).await?;
        let piece = |json: Box<RawValue>| Piece {
            place: Place::State,
            json: String::from(Box::<str>::from(json)).into_bytes(),
        };
        let events = answer.pdus.into_iter().take(1).map(piece).collect();
        let batch = Batch { events, others: Vec::new() };
        let checked = self.check_batch(server, room_id, rules, batch).await?;
        let event_of = |(_, event): (Place, Option<Incoming>)| event;
        let found = checked.events.into_iter().find_map(event_of);
        let found = found.filter(|found| found.id() == event);
        found.ok_or_else(|| odd(server, "the event that was asked for is another one").into())
    }

    async fn read_all(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        rules: &RoomVersionRules,
        body: Body,
    ) -> Result<Told, Trial> {
        let batches = batches(server, Source::new(body));
        let checked = batches
            .map_ok(|batch| self.check_batch(server, room_id, rules, batch))
            .try_buffered(UNDER_WAY);
        pin_mut!(checked);
        let mut told = Told::default();
        while let Some(batch) = checked.try_next().await? {
            told.add(batch);
        }
        if told.unsound > 0 {
            let unsound = told.unsound;
            tracing::warn!(server = %server, unsound, "events of a room that was joined are not believed");
        }
        Ok(told)
    }

    /// What is no event of the room, or is not signed as one has to be, is left out. What the room
    /// cannot do without is missed later.
    async fn check_batch(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        rules: &RoomVersionRules,
        batch: Batch,
    ) -> Result<Checked, Trial> {
        let Batch { events, others } = batch;
        let read = |piece: Piece| -> Option<(Place, CanonicalJsonObject)> {
            Some((piece.place, serde_json::from_slice(&piece.json).ok()?))
        };
        let parsed = parallel::map(events, read).await?;
        let (places, objects): (Vec<Place>, Vec<_>) = parsed.into_iter().flatten().unzip();
        let outcomes = self.deps.servers.keyring.check_events(objects, rules).await?;
        let (rules, room_id) = (rules.clone(), room_id.to_owned());
        let server = server.to_owned();
        let apart = move |(place, outcome): (Place, Result<CanonicalJsonObject, Unsound>)| {
            let event = outcome.map_err(|why| why.to_string()).and_then(|event| {
                take_apart(event, &rules, &room_id).map_err(|why| why.to_string())
            });
            let event = event.inspect_err(|why| {
                tracing::debug!(server = %server, why, "an event of a room is not believed");
            });
            (place, event.ok())
        };
        let outcomes = places.into_iter().zip(outcomes).collect();
        Ok(Checked { events: parallel::map(outcomes, apart).await?, others })
    }
}

impl Told {
    fn add(&mut self, batch: Checked) {
        for (place, event) in batch.events {
            match (place, event) {
                (Place::State, Some(event)) => self.state.push(event),
                (_, Some(event)) => self.auth_chain.push(event),
                (_, None) => self.unsound += 1,
            }
        }
        self.others.extend(batch.others);
    }
}

/// The parts of an answer, as they come.
fn batches(
    server: &ServerName,
    source: Source,
) -> impl Stream<Item = Result<Batch, Trial>> + use<'_> {
    stream::try_unfold(source, move |mut source| async move {
        let batch = source.next(server).await?;
        Ok(batch.map(|batch| (batch, source)))
    })
}

impl Source {
    fn new(body: Body) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            splitter: Splitter::new(),
            ready: Batch::default(),
            bytes: 0,
            count: 0,
            seen: HashSet::new(),
            hasher: RandomState::new(),
            has_ended: false,
        }
    }

    /// The next part, unless all of it has been read.
    async fn next(&mut self, server: &ServerName) -> Result<Option<Batch>, Trial> {
        let odd = |why: String| odd(server, &why);
        while !self.has_ended {
            if self.rest.is_empty() {
                let Some(bytes) = self.body.next().await? else {
                    self.splitter.finish().map_err(odd)?;
                    self.has_ended = true;
                    break;
                };
                self.rest = bytes;
            }
            let bytes = self.rest.split_to(self.rest.len().min(SLICE));
            // Others have their turn in between.
            tokio::task::yield_now().await;
            let mut found = Vec::new();
            self.splitter.push(&bytes, &mut found).map_err(odd)?;
            found.into_iter().for_each(|piece| self.take(piece));
            if self.count > MOST {
                return Err(odd(format!("it has more than {MOST} events")).into());
            }
            if self.ready.events.len() >= BATCH || self.bytes >= MOST_BYTES_OF_BATCH {
                break;
            }
        }
        self.bytes = 0;
        let batch = std::mem::take(&mut self.ready);
        let is_empty = batch.events.is_empty() && batch.others.is_empty();
        Ok((!is_empty).then_some(batch))
    }

    fn take(&mut self, piece: Piece) {
        if !matches!(piece.place, Place::State | Place::AuthChain) {
            return self.ready.others.push(piece);
        }
        self.count += 1;
        let is_new = self.seen.insert(self.hasher.hash_one(&piece.json));
        // An entry of the state is one even if it has come before.
        if is_new || piece.place == Place::State {
            self.bytes += piece.json.len();
            self.ready.events.push(piece);
        }
    }
}

/// Servers of one room (R8).
const MOST_SERVERS: usize = 20_000;

/// The servers that are in a room, the one that says so in front.
fn servers_told(server: &ServerName, told: Option<&Piece>) -> Result<Vec<String>, String> {
    let told = told.ok_or("it leaves out members, and says nothing of servers")?;
    let told: Vec<String> =
        serde_json::from_slice(&told.json).map_err(|error| error.to_string())?;
    let is_other = |name: &String| name != server && <&ServerName>::try_from(name.as_str()).is_ok();
    let others: BTreeSet<String> = told.into_iter().filter(is_other).collect();
    if others.len() >= MOST_SERVERS {
        return Err(format!("it names {} servers", others.len()));
    }
    Ok([server.to_string()].into_iter().chain(others).collect())
}

fn odd(server: &ServerName, why: &str) -> Failure {
    Failure::Odd(format!("{server} has answered what is no room: {why}"))
}

#[cfg(test)]
mod tests {
    use ruma_common::server_name;

    use super::*;

    async fn read(text: &str) -> Result<Vec<(Place, String)>, ()> {
        let source = Source::new(Body::from(Bytes::copy_from_slice(text.as_bytes())));
        let batches = batches(server_name!("there.example"), source);
        let batches: Vec<Batch> = batches.try_collect().await.map_err(drop)?;
        let pieces = batches.into_iter().flat_map(|batch| batch.events);
        let text = |piece: Piece| (piece.place, String::from_utf8(piece.json).unwrap());
        Ok(pieces.map(text).collect())
    }

    #[tokio::test]
    async fn what_is_in_both_lists_is_checked_once() {
        let told = r#"{"state": [{"a": 1}, {"b": 2}], "auth_chain": [{"a": 1}, {"c": 3}]}"#;
        let told = read(told).await.unwrap();
        let expected = [(Place::State, "a"), (Place::State, "b"), (Place::AuthChain, "c")];
        assert_eq!(told.len(), expected.len());
        for ((place, text), (expected, name)) in told.iter().zip(expected) {
            assert_eq!(*place, expected);
            assert!(text.contains(name));
        }
        // The state is told as it is, wherever it stands.
        let told = read(r#"{"auth_chain": [{"a": 1}], "state": [{"a": 1}, {"a": 1}]}"#).await;
        let places: Vec<Place> = told.unwrap().into_iter().map(|(place, _)| place).collect();
        assert_eq!(places, [Place::AuthChain, Place::State, Place::State]);
    }

    #[tokio::test]
    async fn an_answer_comes_in_bounded_parts() {
        let long = "x".repeat(5_000);
        let event = |number: u32| format!("{{\"n\":{number},\"long\":\"{long}\"}}");
        let state: Vec<String> = (0..3_000).map(event).collect();
        let text = format!("{{\"state\":[{}],\"auth_chain\":[]}}", state.join(","));
        assert_eq!(read(&text).await.unwrap().len(), 3_000);
        let source = Source::new(Body::from(Bytes::from(text)));
        let parts = batches(server_name!("there.example"), source);
        let parts: Vec<Batch> = parts.try_collect().await.map_err(drop).unwrap();
        assert!(parts.len() >= 3, "{} parts", parts.len());
        for part in parts {
            let bytes: usize = part.events.iter().map(|piece| piece.json.len()).sum();
            assert!(bytes <= MOST_BYTES_OF_BATCH + SLICE + long.len(), "{bytes} bytes in a part");
        }
        assert!(read("{\"state\": [").await.is_err());
    }
}
