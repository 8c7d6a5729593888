//! Events for many rooms, wherever their owners are: a profile that has changed, an account that
//! is closed. What one instance owns goes there as one call, not as one for each room; a room
//! whose shard moves meanwhile is sent to its new owner. Each draft that leaves this instance has
//! a key, which is committed with the event: a lost answer makes no second one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use chatd_base::{CallError, Error, Patience, Refusal, Result};
use chatd_streams::{Owner, away};
use futures::{StreamExt, future::join_all, stream};
use ruma_common::{OwnedEventId, OwnedRoomId, RoomId};
use serde::Serialize;
use uuid::Uuid;

use crate::{Draft, Rooms};

/// Rooms that an instance works on at the same time (R8).
const AT_ONCE: usize = 16;
/// Drafts in one call (R8); each is an event of 64 KiB at most.
const MOST_PER_CALL: usize = 100;
const CALL: &str = "rooms.append";

/// A draft for a room.
pub type Letter = (OwnedRoomId, Draft);
/// What became of one.
pub type Delivered = (OwnedRoomId, Result<()>);

/// What came of the letters that went to one owner.
#[derive(Default)]
struct Attempt {
    done: Vec<Delivered>,
    /// For whoever owns the room now.
    again: Vec<Letter>,
}

impl Rooms {
    /// Starts to answer the calls of other instances.
    pub fn answer_calls(self: &Arc<Self>) {
        let rooms = Arc::downgrade(self);
        self.users.deps.streams.calls.on(CALL, move |body| answer(rooms.clone(), body));
    }

    /// Appends each draft to its room. On return those that succeeded are durable (R1).
    pub async fn send_all(&self, mut letters: Vec<Letter>) -> Vec<Delivered> {
        let mut patience = Patience::default();
        let mut done = Vec::with_capacity(letters.len());
        loop {
            let attempts = join_all(
                self.by_owner(letters)
                    .into_iter()
                    .map(|(owner, letters)| self.attempt(owner, letters, patience)),
            );
            letters = Vec::new();
            for attempt in attempts.await {
                done.extend(attempt.done);
                letters.extend(attempt.again);
            }
            if letters.is_empty() {
                return done;
            }
            if !patience.wait(self.users.deps.streams.others.stop()).await {
                done.extend(letters.into_iter().map(|(room, _)| (room, Err(away().into()))));
                return done;
            }
            if let Err(error) = self.owner.owners.refresh().await {
                tracing::debug!(%error, "the owners of the rooms cannot be read");
            }
        }
    }

    /// `None`: this instance.
    fn by_owner(&self, letters: Vec<Letter>) -> BTreeMap<Option<String>, Vec<Letter>> {
        let mut by_owner: BTreeMap<Option<String>, Vec<Letter>> = BTreeMap::new();
        for letter in letters {
            let owner = match self.owner.owners.of_room(&letter.0) {
                Owner::Here { .. } => None,
                Owner::At(instance) => Some(instance),
            };
            by_owner.entry(owner).or_default().push(letter);
        }
        by_owner
    }

    async fn attempt(
        &self,
        owner: Option<String>,
        letters: Vec<Letter>,
        patience: Patience,
    ) -> Attempt {
        let mut attempt = Attempt::default();
        let Some(owner) = owner else {
            let sent = self.send_here(&letters).await;
            attempt.note(letters, sent);
            return attempt;
        };
        let mut rest = letters.into_iter();
        loop {
            let mut part: Vec<Letter> = rest.by_ref().take(MOST_PER_CALL).collect();
            if part.is_empty() {
                return attempt;
            }
            for (_, draft) in &mut part {
                draft.key.get_or_insert_with(|| Uuid::from_u128(rand::random()));
            }
            match self.call(&owner, &part, patience).await {
                Ok(sent) => attempt.note(part, sent),
                Err(CallError::Refused(refusal)) => {
                    let refused = part.into_iter().map(|(room, _)| (room, refusal.clone()));
                    attempt.done.extend(refused.map(|(room, why)| (room, Err(why.into()))));
                }
                Err(CallError::Lost(_) | CallError::Unsent(_)) => attempt.again.extend(part),
            }
        }
    }

    async fn call(
        &self,
        owner: &str,
        letters: &[Letter],
        patience: Patience,
    ) -> Result<Vec<Result<OwnedEventId, Refusal>>, CallError> {
        let odd = |error: serde_json::Error| {
            CallError::Refused(Refusal::new(500, "M_UNKNOWN", error.to_string()))
        };
        let body = serde_json::to_vec(letters).map_err(odd)?;
        let others = &self.users.deps.streams.others;
        let answer = others.ask_once(Some(owner), CALL, body.into(), patience).await?;
        serde_json::from_slice(&answer).map_err(odd)
    }

    /// Appends drafts to rooms that this instance owns; in their order.
    async fn send_here(&self, letters: &[Letter]) -> Vec<Result<OwnedEventId, Refusal>> {
        let sending: Vec<_> = letters.iter().map(|letter| self.send_one(letter)).collect();
        stream::iter(sending).buffered(AT_ONCE).collect().await
    }

    async fn send_one(&self, (room, draft): &Letter) -> Result<OwnedEventId, Refusal> {
        match self.send(room, draft).await {
            Ok(sent) => Ok(sent.event_id),
            Err(Error::Refused(refusal)) => Err(*refusal),
            Err(Error::Internal(error)) => {
                tracing::error!(room.id = %room, error, "an event could not be added");
                Err(Refusal::new(500, "M_UNKNOWN", "internal server error"))
            }
        }
    }
}

impl Attempt {
    fn note(&mut self, letters: Vec<Letter>, sent: Vec<Result<OwnedEventId, Refusal>>) {
        for ((room, draft), sent) in letters.into_iter().zip(sent) {
            match sent {
                Err(refusal) if refusal.errcode == Refusal::NOT_OWNER => {
                    self.again.push((room, draft));
                }
                sent => self.done.push((room, sent.map(drop).map_err(Error::from))),
            }
        }
    }
}

impl Rooms {
    /// Has whoever owns the room do something that may be done twice: this instance does it by
    /// `here`, another one is told of `what` by a call.
    pub async fn at_owner<F>(
        &self,
        room_id: &RoomId,
        call: &str,
        what: &impl Serialize,
        here: impl Fn() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let others = &self.users.deps.streams.others;
        let mut patience = Patience::default();
        loop {
            let done = match self.owner.whose(room_id) {
                Owner::Here { .. } => here().await,
                Owner::At(instance) => {
                    let body = serde_json::to_vec(what).map_err(Error::internal)?;
                    match others.ask_once(Some(&instance), call, body.into(), patience).await {
                        Ok(_) => Ok(()),
                        Err(CallError::Refused(refusal)) => Err(refusal.into()),
                        Err(CallError::Lost(_) | CallError::Unsent(_)) => {
                            Err(Refusal::not_owner(String::new()).into())
                        }
                    }
                }
            };
            match done {
                Err(error) if error.errcode() == Some(Refusal::NOT_OWNER) => {}
                done => return done,
            }
            if !patience.wait(others.stop()).await {
                return Err(away().into());
            }
            self.owner.refresh_owners().await?;
        }
    }
}

/// Does what another instance asks for.
async fn answer(rooms: Weak<Rooms>, body: Bytes) -> Result<Vec<u8>> {
    let rooms = rooms.upgrade().ok_or_else(|| Refusal::not_owner(String::new()))?;
    let letters: Vec<Letter> = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("not drafts of events: {error}")))?;
    let sent = rooms.send_here(&letters).await;
    serde_json::to_vec(&sent).map_err(Error::internal)
}
