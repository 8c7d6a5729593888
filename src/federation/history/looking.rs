//! Looking for one event from before this server came into a room: the room's past is fetched until
//! the event is there. Before that, another server has to know it.

use chatd_base::{Result, RoomNid, UserNid};
use chatd_servers::{Ask, PATIENT};
use chatd_storage::{gaps, graph, lane::flags};
use ruma_common::{EventId, RoomId, ServerName};
use serde::Deserialize;

use super::{Asking, History, More, Place};
use crate::uri;

/// Largest answer: one event, and a frame.
const MOST_BYTES: usize = 256 * 1024;
/// Servers that are asked whether they know the event.
const MOST_SERVERS: usize = 4;
/// How long an event that nobody knows is not looked for again.
const PAUSE_MS: u64 = 60_000;
/// Places of a room that are looked at.
const MOST_GAPS: i64 = 50;

#[derive(Deserialize)]
struct Answer {
    pdus: Vec<Sketch>,
}

/// As much of an event as says whether it is worth looking for. Nothing else is made of it.
#[derive(Deserialize)]
struct Sketch {
    depth: i64,
}

impl History {
    /// Fetches the past of the room until the event is there; false if it will not be.
    pub(super) async fn look_for(
        &self,
        user: UserNid,
        room: &RoomId,
        event: &EventId,
        asking: &mut Asking,
    ) -> Result<bool> {
        let Some(nid) = self.0.users.room_nids.find(room).await? else { return Ok(false) };
        let is_alone = self.0.rooms.hosts.servers_in(nid).await?.is_empty();
        if is_alone || !self.0.reader.admits(user, room).await? {
            return Ok(false);
        }
        let Some(depth) = self.depth_of(user, nid, room, event, asking).await? else {
            return Ok(false);
        };
        loop {
            // Behind an event with a greater depth only.
            let gaps = gaps::list_beginnings(&self.0.pool, nid, MOST_GAPS).await?;
            if gaps.iter().all(|gap| gap.depth <= depth) {
                return Ok(false);
            }
            if !matches!(self.ask(room, nid, Place::Beginning, asking).await?, More::Some) {
                return Ok(false);
            }
            if self.has_place(nid, event).await? {
                return Ok(true);
            }
        }
    }

    async fn has_place(&self, room: RoomNid, event: &EventId) -> Result<bool> {
        let places = graph::list_places(&self.0.pool, &[event.as_str()]).await?;
        let place = places.get(event.as_str()).filter(|place| place.room == room);
        Ok(place.is_some_and(|place| place.flags & flags::OUTLIER == 0))
    }

    /// The depth of an event that has no place; `None` if nobody knows it.
    async fn depth_of(
        &self,
        user: UserNid,
        nid: RoomNid,
        room: &RoomId,
        event: &EventId,
        asking: &Asking,
    ) -> Result<Option<i64>> {
        let places = graph::list_places(&self.0.pool, &[event.as_str()]).await?;
        if let Some(place) = places.get(event.as_str()) {
            let is_outlier = place.room == nid && place.flags & flags::OUTLIER != 0;
            return Ok(is_outlier.then_some(place.depth));
        }
        let key = (room.to_owned(), event.to_owned());
        let is_absent =
            || self.0.absent.get(&key).is_some_and(|until| self.0.clock.now_ms() < until);
        if is_absent() {
            return Ok(None);
        }
        let Some(_turn) = self.0.lookups.turn(user).await else { return Ok(None) };
        if is_absent() {
            return Ok(None);
        }
        for server in self.candidates(room).await?.into_iter().take(MOST_SERVERS) {
            // Those who have not been asked may know it.
            if asking.left().is_zero() {
                return Ok(None);
            }
            if let Some(depth) = self.ask_depth(&server, event).await {
                return Ok(Some(depth));
            }
        }
        self.0.absent.insert(key, self.0.clock.now_ms() + PAUSE_MS);
        Ok(None)
    }

    async fn ask_depth(&self, server: &ServerName, event: &EventId) -> Option<i64> {
        let path = uri!("/_matrix/federation/v1/event/{}", event);
        let ask = Ask::get(path).within(PATIENT).most_bytes(MOST_BYTES);
        let answer: Answer = self.0.servers.client.ask_json(server, ask).await.ok()?;
        answer.pdus.first().map(|event| event.depth)
    }
}
