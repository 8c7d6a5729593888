//! Who is typing. Memory only; one timer ends what clients do not end themselves.
//!
//! All of this is at the one writer of the stream, to which clients' requests go. There it follows
//! the events of all rooms, so whoever has sent what they typed is seen to stop; elsewhere nobody
//! types.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chatd_base::{Error, Refusal, Requester, Result, RoomNid, tasks};
use chatd_config::StreamName;
use chatd_storage::remote_edus;
use chatd_streams::{
    events::{EventRow, Membership},
    typing::{self, TypingRow},
};
use parking_lot::Mutex;
use ruma_common::{OwnedRoomId, OwnedUserId, RoomId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{Deps, joined::Joined, room_nids::RoomNids};

/// Longest time that a client may ask for, in milliseconds.
const MAX_TIMEOUT_MS: u64 = 120_000;
/// Users who may type at the same time, in all rooms and in one (R8).
const MAX_TYPING: usize = 50_000;
const MAX_TYPING_IN_ROOM: usize = 200;

/// How often, and for how long, the others are told again what has changed: what the bus has lost is
/// in no table.
const RETELL_EVERY_MS: u64 = 5_000;
const RETELL_FOR_MS: u64 = 20_000;
/// Rooms of which they are told again (R8).
const MAX_RETOLD: usize = 1_000;

/// A user of another server begins to type, or stops.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RemoteTyping {
    pub room_id: OwnedRoomId,
    pub user_id: OwnedUserId,
    pub is_typing: bool,
}

const CALL: &str = "typing.remote";
/// Asks who types.
const CALL_ALL: &str = "typing.all";
/// How long a user of another server types without being heard of again.
const REMOTE_TIMEOUT_MS: u64 = 60_000;

/// Does what another instance asks for.
async fn answer(typing: Typing, body: Bytes) -> Result<Vec<u8>> {
    let remote = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("not who types: {error}")))?;
    typing.set_remote_here(remote).await?;
    Ok(Vec::from("{}"))
}

struct Room {
    room_id: OwnedRoomId,
    /// When each user stops.
    users: BTreeMap<OwnedUserId, u64>,
}

#[derive(Default)]
struct State {
    rooms: HashMap<RoomNid, Room>,
    /// The same by time.
    timer: BTreeSet<(u64, RoomNid, OwnedUserId)>,
    /// Rooms in which something has changed lately, and until when that is told again.
    retold: BTreeMap<RoomNid, (OwnedRoomId, u64)>,
}

impl State {
    /// Sets until when a user types, or that they have stopped. True if the set of those who
    /// type has changed.
    fn set(
        &mut self,
        room: RoomNid,
        room_id: &RoomId,
        user: &OwnedUserId,
        until_ms: Option<u64>,
    ) -> bool {
        let is_full = self.timer.len() >= MAX_TYPING;
        let entry = self
            .rooms
            .entry(room)
            .or_insert_with(|| Room { room_id: room_id.to_owned(), users: BTreeMap::new() });
        let before = entry.users.remove(user);
        if let Some(before) = before {
            self.timer.remove(&(before, room, user.clone()));
        }
        let until_ms = until_ms
            .filter(|_| before.is_some() || !is_full && entry.users.len() < MAX_TYPING_IN_ROOM);
        if let Some(until_ms) = until_ms {
            entry.users.insert(user.clone(), until_ms);
            self.timer.insert((until_ms, room, user.clone()));
        }
        if entry.users.is_empty() {
            self.rooms.remove(&room);
        }
        before.is_some() != until_ms.is_some()
    }

    /// Notes that a change in a room is to be told again.
    fn note_change(&mut self, room: RoomNid, room_id: &RoomId, now_ms: u64) {
        if self.retold.len() < MAX_RETOLD || self.retold.contains_key(&room) {
            self.retold.insert(room, (room_id.to_owned(), now_ms + RETELL_FOR_MS));
        }
    }

    /// What is to be told again now.
    fn retold(&mut self, now_ms: u64) -> Vec<TypingRow> {
        let row = |(room, (room_id, _)): (&RoomNid, &(OwnedRoomId, u64))| TypingRow {
            room: *room,
            room_id: room_id.clone(),
            users: self.of_room(*room),
        };
        let rows = self.retold.iter().map(row).collect();
        self.retold.retain(|_, (_, until_ms)| *until_ms > now_ms);
        rows
    }

    fn of_room(&self, room: RoomNid) -> Vec<OwnedUserId> {
        self.rooms.get(&room).map(|room| room.users.keys().cloned().collect()).unwrap_or_default()
    }
}

struct Inner {
    deps: Deps,
    rooms: Arc<RoomNids>,
    joined: Arc<Joined>,
    state: Mutex<State>,
    /// Held while a change is made and published, so that positions follow the changes.
    publishing: Mutex<()>,
    earlier: Notify,
}

/// Who is typing in which room. Cheap to clone.
#[derive(Clone)]
pub struct Typing(Arc<Inner>);

impl Typing {
    /// Starts the timer.
    pub(crate) fn start(deps: &Deps, rooms: &Arc<RoomNids>) -> Self {
        let typing = Self(Arc::new(Inner {
            deps: deps.clone(),
            rooms: rooms.clone(),
            joined: Joined::new(deps),
            state: Mutex::default(),
            publishing: Mutex::default(),
            earlier: Notify::new(),
        }));
        if deps.streams.writes(StreamName::Typing) {
            let view = typing.clone();
            deps.streams.events.on_rows(move |frame| {
                frame.rows.iter().for_each(|(_, row)| view.fold(row));
            });
        }
        if deps.streams.writes(StreamName::Typing) {
            let writer = typing.clone();
            deps.streams.calls.on(CALL, move |body| answer(writer.clone(), body));
            let writer = typing.clone();
            deps.streams.calls.on(CALL_ALL, move |_| {
                let all = serde_json::to_vec(&writer.all_here()).map_err(Error::internal);
                std::future::ready(all)
            });
        }
        tasks::spawn("typing", typing.clone().run());
        typing
    }

    /// Says that users of other servers type, or have stopped; those who are not in the room are
    /// passed over. From any instance.
    pub async fn set_remote(&self, typing: Vec<RemoteTyping>) -> Result<()> {
        let streams = &self.0.deps.streams;
        if streams.writes(StreamName::Typing) {
            return self.set_remote_here(typing).await;
        }
        let body = serde_json::to_vec(&typing).map_err(Error::internal)?;
        streams.others.ask_writer(StreamName::Typing, CALL, body.into()).await?;
        Ok(())
    }

    async fn set_remote_here(&self, typing: Vec<RemoteTyping>) -> Result<()> {
        let rooms: Vec<&str> = typing.iter().map(|typing| typing.room_id.as_str()).collect();
        let users: Vec<&str> = typing.iter().map(|typing| typing.user_id.as_str()).collect();
        let joined = remote_edus::list_joined(&self.0.deps.pool, &rooms, &users).await?;
        let until_ms = self.0.deps.clock.now_ms() + REMOTE_TIMEOUT_MS;
        for RemoteTyping { room_id, user_id, is_typing } in &typing {
            let room = joined.iter().find(|(room, user, _)| room == room_id && user == user_id);
            if let Some((_, _, room)) = room {
                self.change(*room, room_id, user_id, is_typing.then_some(until_ms));
            }
        }
        self.0.earlier.notify_one();
        Ok(())
    }

    /// Says that the requester types for so long, or (`None`) has stopped. Refuses those who are
    /// not in the room.
    pub async fn set(
        &self,
        who: &Requester,
        room_id: &RoomId,
        timeout_ms: Option<u64>,
    ) -> Result<()> {
        let not_joined = || Refusal::forbidden("you are not in this room");
        let room = self.0.rooms.find(room_id).await?.ok_or_else(not_joined)?;
        if !self.0.joined.is_joined(who.user, room).await? {
            return Err(not_joined().into());
        }
        let now_ms = self.0.deps.clock.now_ms();
        let until_ms = timeout_ms.map(|timeout| now_ms + timeout.min(MAX_TIMEOUT_MS));
        self.change(room, room_id, &who.user_id, until_ms);
        if until_ms.is_some() {
            self.0.earlier.notify_one();
        }
        Ok(())
    }

    /// Who has sent what they typed, or has left, types no more.
    fn fold(&self, row: &EventRow) {
        if row.state_key.is_none() {
            self.stop(row.room, &row.sender);
        } else if let Some(change) = row.membership.as_ref().filter(|c| c.now != Membership::Join) {
            self.stop(row.room, &change.user_id);
        }
    }

    fn stop(&self, room: RoomNid, user: &OwnedUserId) {
        let room_id = self.0.state.lock().rooms.get(&room).map(|room| room.room_id.clone());
        if let Some(room_id) = room_id {
            self.change(room, &room_id, user, None);
        }
    }

    /// All who type, for somebody who has missed rows. From any instance.
    pub async fn list_all(&self) -> Result<Vec<TypingRow>> {
        let streams = &self.0.deps.streams;
        if streams.writes(StreamName::Typing) {
            return Ok(self.all_here());
        }
        let all = streams.others.ask_writer(StreamName::Typing, CALL_ALL, Bytes::new()).await?;
        serde_json::from_slice(&all).map_err(Error::internal)
    }

    fn all_here(&self) -> Vec<TypingRow> {
        let state = self.0.state.lock();
        let row = |(room, typing): (&RoomNid, &Room)| TypingRow {
            room: *room,
            room_id: typing.room_id.clone(),
            users: typing.users.keys().cloned().collect(),
        };
        state.rooms.iter().map(row).collect()
    }

    /// Those who are typing in a room.
    pub fn of_room(&self, room: RoomNid) -> Vec<OwnedUserId> {
        self.0.state.lock().of_room(room)
    }

    /// What is not at the writer of the stream changes nothing.
    fn change(&self, room: RoomNid, room_id: &RoomId, user: &OwnedUserId, until_ms: Option<u64>) {
        if !self.0.deps.streams.writes(StreamName::Typing) {
            return;
        }
        let _line = self.0.publishing.lock();
        let users = {
            let mut state = self.0.state.lock();
            if !state.set(room, room_id, user, until_ms) {
                return;
            }
            self.note_change(&mut state, room, room_id);
            state.of_room(room)
        };
        self.publish(vec![TypingRow { room, room_id: room_id.to_owned(), users }]);
    }

    fn note_change(&self, state: &mut State, room: RoomNid, room_id: &RoomId) {
        if self.0.deps.streams.has_others() {
            state.note_change(room, room_id, self.0.deps.clock.now_ms());
            self.0.earlier.notify_one();
        }
    }

    /// Called by whoever holds `publishing`.
    fn publish(&self, rows: Vec<TypingRow>) {
        let streams = &self.0.deps.streams;
        typing::publish(&streams.typing, streams.writer.writer, self.0.deps.clock.now_ms(), rows);
    }

    /// Tells again what has changed lately. Who knows it does nothing with it.
    fn retell(&self, now_ms: u64) {
        let _line = self.0.publishing.lock();
        let rows = self.0.state.lock().retold(now_ms);
        if !rows.is_empty() {
            self.publish(rows);
        }
    }

    /// Until the end: stops those whose time is over, and tells again what has changed.
    async fn run(self) {
        let stop = self.0.deps.stop.clone();
        let mut retell_at = 0;
        while !stop.is_triggered() {
            self.end_due();
            let now_ms = self.0.deps.clock.now_ms();
            if now_ms >= retell_at {
                self.retell(now_ms);
                retell_at = now_ms + RETELL_EVERY_MS;
            }
            let next = {
                let state = self.0.state.lock();
                let over = state.timer.first().map(|(at, ..)| *at);
                let again = (!state.retold.is_empty()).then_some(retell_at);
                over.into_iter().chain(again).min()
            };
            // With nobody typing, whoever begins wakes the task.
            let wait_ms = next.map_or(MAX_TIMEOUT_MS, |at| at.saturating_sub(now_ms));
            tokio::select! {
                () = self.0.earlier.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
                () = stop.triggered() => {}
            }
        }
    }

    fn end_due(&self) {
        let now_ms = self.0.deps.clock.now_ms();
        let due: Vec<(RoomNid, OwnedUserId)> = {
            let state = self.0.state.lock();
            let due = state.timer.iter().take_while(|(at, ..)| *at <= now_ms);
            due.map(|(_, room, user)| (*room, user.clone())).collect()
        };
        for (room, user) in due {
            self.end_if_due(room, &user, now_ms);
        }
    }

    /// Ends a user's typing unless they have gone on meanwhile.
    fn end_if_due(&self, room: RoomNid, user: &OwnedUserId, now_ms: u64) {
        let _line = self.0.publishing.lock();
        let row = {
            let mut state = self.0.state.lock();
            let Some(found) = state.rooms.get(&room) else { return };
            if found.users.get(user).is_none_or(|until_ms| *until_ms > now_ms) {
                return;
            }
            let room_id = found.room_id.clone();
            state.set(room, &room_id, user, None);
            self.note_change(&mut state, room, &room_id);
            TypingRow { room, users: state.of_room(room), room_id }
        };
        self.publish(vec![row]);
    }
}

#[cfg(test)]
mod tests {
    use ruma_common::{owned_user_id, room_id};

    use super::*;

    #[test]
    fn going_on_is_no_change_and_stopping_leaves_nothing_behind() {
        let mut state = State::default();
        let (room, id, user) = (RoomNid(1), room_id!("!r:x"), owned_user_id!("@a:x"));
        assert!(state.set(room, id, &user, Some(5)));
        assert!(!state.set(room, id, &user, Some(9)));
        assert_eq!(state.timer.len(), 1);
        assert_eq!(state.of_room(room), std::slice::from_ref(&user));
        assert!(state.set(room, id, &user, None));
        assert!(!state.set(room, id, &user, None));
        assert!(state.rooms.is_empty() && state.timer.is_empty());
    }

    #[test]
    fn what_has_changed_is_told_again_for_a_while() {
        let mut state = State::default();
        let (room, id, user) = (RoomNid(1), room_id!("!r:x"), owned_user_id!("@a:x"));
        state.set(room, id, &user, Some(5_000));
        state.note_change(room, id, 0);
        let told = |state: &mut State, now_ms| -> Vec<_> {
            state.retold(now_ms).into_iter().map(|row| row.users).collect()
        };
        assert_eq!(told(&mut state, 1), [vec![user.clone()]]);
        state.set(room, id, &user, None);
        state.note_change(room, id, 10_000);
        let nobody = [Vec::<OwnedUserId>::new()];
        assert_eq!(told(&mut state, RETELL_FOR_MS), nobody);
        assert_eq!(told(&mut state, RETELL_FOR_MS + 10_000), nobody, "for the last time");
        assert!(told(&mut state, RETELL_FOR_MS + 15_000).is_empty());
    }

    #[test]
    fn a_room_has_a_limit() {
        let mut state = State::default();
        for number in 0..MAX_TYPING_IN_ROOM + 5 {
            let user = OwnedUserId::try_from(format!("@u{number}:x")).unwrap();
            state.set(RoomNid(1), room_id!("!r:x"), &user, Some(5));
        }
        assert_eq!(state.of_room(RoomNid(1)).len(), MAX_TYPING_IN_ROOM);
    }
}
