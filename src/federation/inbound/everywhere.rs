//! Events go to the owners of their rooms: one call an owner. A call that is lost is made again;
//! events that were placed the first time are known then.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use chatd_base::{CallError, Error, Patience, Refusal, Result};
use chatd_streams::{Owner, away};
use futures::{
    StreamExt, TryStreamExt,
    future::{BoxFuture, join_all},
    stream,
};
use ruma_common::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{Inbound, Inner};

const CALL: &str = "federation.take";
/// Rooms that an owner works on at the same time, of one transaction (R8).
const AT_ONCE: usize = 16;

/// Events by their rooms.
pub(super) type ByRoom = BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>;
/// What became of each event.
type Results = BTreeMap<String, Value>;

/// What an owner is asked to take.
#[derive(Deserialize, Serialize)]
struct Parcel {
    origin: OwnedServerName,
    rooms: ByRoom,
}

/// What an owner has done: results, and rooms that are not its own any more.
#[derive(Default, Deserialize, Serialize)]
struct Receipt {
    results: Results,
    moved: Vec<OwnedRoomId>,
}

impl Inbound {
    /// Starts to answer the calls of other instances.
    pub(super) fn answer_calls(&self) {
        let inbound = Arc::downgrade(&self.0);
        let calls = &self.0.users.deps.streams.calls;
        calls.on(CALL, move |body| answer(inbound.clone(), body));
    }

    /// Has the owners take the events. Fails if one of them cannot be asked: then the sender comes
    /// again, and nothing happens twice.
    pub(super) async fn take_everywhere(
        &self,
        origin: &ServerName,
        mut rooms: ByRoom,
    ) -> Result<Results> {
        let mut patience = Patience::default();
        let mut results = Results::new();
        loop {
            let asked = join_all(self.by_owner(rooms).into_iter().map(|(owner, rooms)| {
                self.ask_owner(owner, Parcel { origin: origin.to_owned(), rooms }, patience)
            }));
            rooms = ByRoom::new();
            for answer in asked.await {
                let (mut done, again) = answer?;
                results.append(&mut done);
                rooms.extend(again);
            }
            if rooms.is_empty() {
                return Ok(results);
            }
            if !patience.wait(&self.0.stop).await {
                return Err(away().into());
            }
            if let Err(error) = self.0.rooms.owner.refresh_owners().await {
                tracing::debug!(%error, "the owners of the rooms cannot be read");
            }
        }
    }

    /// `None`: this instance.
    fn by_owner(&self, rooms: ByRoom) -> BTreeMap<Option<String>, ByRoom> {
        let mut by_owner: BTreeMap<Option<String>, ByRoom> = BTreeMap::new();
        for (room, events) in rooms {
            let owner = match self.0.rooms.owner.whose(&room) {
                Owner::Here { .. } => None,
                Owner::At(instance) => Some(instance),
            };
            by_owner.entry(owner).or_default().insert(room, events);
        }
        by_owner
    }

    /// Results, and what has to go elsewhere.
    async fn ask_owner(
        &self,
        owner: Option<String>,
        parcel: Parcel,
        patience: Patience,
    ) -> Result<(Results, ByRoom)> {
        let Some(owner) = owner else {
            let receipt = self.take_here(&parcel).await?;
            return Ok(sort(receipt, parcel));
        };
        let body = serde_json::to_vec(&parcel).map_err(Error::internal)?;
        let others = &self.0.users.deps.streams.others;
        match others.ask_once(Some(&owner), CALL, body.into(), patience).await {
            Ok(answer) => {
                let receipt = serde_json::from_slice(&answer).map_err(Error::internal)?;
                Ok(sort(receipt, parcel))
            }
            Err(CallError::Refused(refusal)) => Err(refusal.into()),
            Err(CallError::Lost(_) | CallError::Unsent(_)) => Ok((Results::new(), parcel.rooms)),
        }
    }

    async fn take_here(&self, parcel: &Parcel) -> Result<Receipt> {
        let mut taken: Vec<BoxFuture<'_, Result<Receipt>>> = Vec::with_capacity(parcel.rooms.len());
        for (room, events) in &parcel.rooms {
            taken.push(Box::pin(self.take_one(&parcel.origin, room, events)));
        }
        let parts = stream::iter(taken).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        let mut all = Receipt::default();
        for mut part in parts {
            all.results.append(&mut part.results);
            all.moved.append(&mut part.moved);
        }
        Ok(all)
    }

    async fn take_one(
        &self,
        origin: &ServerName,
        room: &RoomId,
        events: &[Box<RawValue>],
    ) -> Result<Receipt> {
        match self.take_room(origin, room, events).await {
            Ok(results) => Ok(Receipt { results, moved: Vec::new() }),
            Err(Error::Refused(why)) if why.errcode == Refusal::NOT_OWNER => {
                Ok(Receipt { results: Results::new(), moved: vec![room.to_owned()] })
            }
            Err(error) => Err(error),
        }
    }
}

fn sort(receipt: Receipt, mut parcel: Parcel) -> (Results, ByRoom) {
    let moved = receipt.moved.into_iter();
    let again = moved.filter_map(|room| parcel.rooms.remove_entry(&room)).collect();
    (receipt.results, again)
}

/// Does what another instance asks for.
async fn answer(inbound: Weak<Inner>, body: Bytes) -> Result<Vec<u8>> {
    let inbound = inbound.upgrade().ok_or_else(|| Refusal::not_owner(String::new()))?;
    let parcel: Parcel = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("not events of rooms: {error}")))?;
    let receipt = Inbound(inbound).take_here(&parcel).await?;
    serde_json::to_vec(&receipt).map_err(Error::internal)
}
