//! The members of rooms that were joined without them: fetched from servers that are in the room,
//! by whoever owns it. The row of the room in the tables is all that there is of this work: it can
//! be begun anew at any time, by any instance, and ends with the commit that makes the room whole.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chatd_base::{Error, Refusal, Result, Stop, tasks};
use chatd_servers::{Ask, Failure};
use chatd_storage::partial::Partial;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use ruma_common::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{
    Joining,
    candidates::Trial,
    join::{MOST_BYTES, TELLING},
};
use crate::uri;

/// Rooms that are looked at, and those that are worked on at a time (R8): for the first time, and
/// again, so that rooms with which nobody helps do not hold up others.
const MOST_ROOMS: i64 = 1_000;
const AT_ONCE: usize = 8;
const AGAIN_AT_ONCE: usize = 4;
/// Servers that are asked for a room the first time, and each time after that.
const MOST_SERVERS: usize = 3;
const MOST_SERVERS_AGAIN: usize = 10;
/// How often the table is looked at for rooms that another instance has left, or that nobody has
/// helped with.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A room with which nobody has helped is tried again after a pause, which doubles up to this one.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What is done with a room.
enum Work {
    Now,
    /// So many times nobody has helped; until then nobody is asked again.
    Later(u32, Instant),
}

/// The rooms that are worked on.
pub(super) struct Resync {
    rooms: Mutex<HashMap<OwnedRoomId, Work>>,
    places: Semaphore,
    places_again: Semaphore,
    wake: Notify,
}

/// Somebody works on a room, until this is dropped.
struct Turn {
    joining: Arc<Joining>,
    room: OwnedRoomId,
    failures: u32,
    is_done: bool,
}

impl Turn {
    fn end(mut self, is_done: bool) {
        self.is_done = is_done;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.joining.resync.end(&self.room, self.is_done, self.failures);
    }
}

impl Default for Resync {
    fn default() -> Self {
        let [places, places_again] = [AT_ONCE, AGAIN_AT_ONCE].map(Semaphore::new);
        Self { rooms: Mutex::default(), places, places_again, wake: Notify::new() }
    }
}

impl Resync {
    /// A room has been joined without its members.
    pub(super) fn kick(&self) {
        self.wake.notify_one();
    }

    /// Begins to work on a room, if it is time; how often nobody has helped so far.
    fn begin(&self, room: &RoomId) -> Option<u32> {
        let mut rooms = self.rooms.lock();
        let failures = match rooms.get(room) {
            Some(Work::Now) => return None,
            Some(Work::Later(_, until)) if *until > Instant::now() => return None,
            Some(Work::Later(failures, _)) => *failures,
            None => 0,
        };
        rooms.insert(room.to_owned(), Work::Now);
        Some(failures)
    }

    fn end(&self, room: &RoomId, is_done: bool, failures: u32) {
        let mut rooms = self.rooms.lock();
        if is_done {
            rooms.remove(room);
            return;
        }
        let pause = LOOK_EVERY.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_PAUSE);
        // The next look is not to come just before.
        let until = Instant::now() + pause - LOOK_EVERY / 2;
        rooms.insert(room.to_owned(), Work::Later(failures + 1, until));
    }

    /// A server that was away answers again: it may be of help.
    fn note_life(&self) {
        let now = Instant::now();
        for work in self.rooms.lock().values_mut() {
            if let Work::Later(_, until) = work {
                *until = now;
            }
        }
        self.kick();
    }

    /// Forgets rooms that are nobody's care here any more.
    fn keep(&self, rooms: &HashSet<OwnedRoomId>) {
        self.rooms.lock().retain(|room, work| matches!(work, Work::Now) || rooms.contains(room));
    }
}

impl Joining {
    /// Makes rooms whole, until `stop`: also those that earlier processes have left.
    pub async fn run(self: Arc<Self>, stop: Stop) {
        let joining = Arc::downgrade(&self);
        self.deps.servers.back_off.on_life(move |_| {
            if let Some(joining) = joining.upgrade() {
                joining.resync.note_life();
            }
        });
        while !stop.is_triggered() {
            if let Err(error) = self.look(&stop).await {
                tracing::debug!(%error, "rooms without their members cannot be looked for");
            }
            tokio::select! {
                _ = stop.sleep(LOOK_EVERY) => {}
                () = self.resync.wake.notified() => {}
            }
        }
    }

    async fn look(self: &Arc<Self>, stop: &Stop) -> Result<()> {
        let owner = &self.deps.rooms.owner;
        if !owner.owns_any() {
            return Ok(());
        }
        let mut open = HashSet::new();
        for partial in owner.list_partial(MOST_ROOMS).await? {
            let Ok(room) = OwnedRoomId::try_from(partial.room_id.as_str()) else { continue };
            open.insert(room.clone());
            let Some(failures) = self.resync.begin(&room) else { continue };
            let turn = Turn { joining: self.clone(), room, failures, is_done: false };
            let stop = stop.clone();
            tasks::spawn("partial_room", async move {
                let is_done = tokio::select! {
                    is_done = turn.joining.complete(&turn.room, &partial, failures) => is_done,
                    () = stop.triggered() => true,
                };
                turn.end(is_done);
            });
        }
        self.resync.keep(&open);
        Ok(())
    }

    /// Asks servers in the room until one has told what it lacks; false if none has.
    async fn complete(&self, room: &RoomId, partial: &Partial, failures: u32) -> bool {
        let resync = &self.resync;
        let (places, most) = match failures {
            0 => (&resync.places, MOST_SERVERS),
            _ => (&resync.places_again, MOST_SERVERS_AGAIN),
        };
        let Ok(_place) = places.acquire().await else { return false };
        let begun = Instant::now();
        for server in self.helpers(partial, most) {
            match self.complete_by(&server, room, partial).await {
                Ok(()) => {
                    let duration_ms =
                        u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(
                        room.id = %room, server = %server, duration_ms,
                        "the members of a room are known"
                    );
                    self.inbound.kick(room.to_owned());
                    self.history.close_gaps(room);
                    return true;
                }
                Err(Trial::Theirs(failure)) => tracing::info!(
                    room.id = %room, server = %server, %failure,
                    "a server has not told the members of a room"
                ),
                Err(Trial::Ours(error)) => {
                    tracing::warn!(room.id = %room, %error, "the members of a room are fetched later");
                    return false;
                }
            }
        }
        tracing::warn!(
            room.id = %room,
            "nobody tells the members of a room: what others say there waits, and all are asked again"
        );
        false
    }

    /// The server that was joined by, and some of the others.
    fn helpers(&self, partial: &Partial, most: usize) -> Vec<OwnedServerName> {
        let named = |name: &String| OwnedServerName::try_from(name.as_str()).ok();
        let mut servers: Vec<OwnedServerName> = partial.servers.iter().filter_map(named).collect();
        servers.retain(|server| *server != self.deps.config.server_name);
        if let Some((_, others)) = servers.split_first_mut() {
            others.shuffle(&mut rand::rng());
        }
        servers.truncate(most);
        servers
    }

    /// Has one server tell the state before the join: at once, else event by event. One that does
    /// not know the join, as it is with all of them if the server that was joined by has gone away
    /// too soon, tells the state before the event that the join follows.
    async fn complete_by(
        &self,
        server: &ServerName,
        room: &RoomId,
        partial: &Partial,
    ) -> Result<(), Trial> {
        let joined = OwnedEventId::try_from(partial.joined.as_str()).map_err(Error::internal)?;
        let at_once = match self.tell_at(server, room, &joined, None).await {
            Err(Trial::Theirs(failure)) if may_tell_less(&failure) => failure,
            other => return other,
        };
        tracing::info!(
            room.id = %room, server = %server, failure = %at_once,
            "a server does not tell the members of a room at once"
        );
        let singly = match self.tell_singly(server, room, &joined).await {
            Err(Trial::Theirs(failure @ Failure::Refused { .. })) => failure,
            other => return other,
        };
        match partial.prev.as_slice() {
            [before] => {
                let before = OwnedEventId::try_from(before.as_str()).map_err(Error::internal)?;
                self.tell_at(server, room, &before, Some(&before)).await
            }
            _ => Err(Trial::Theirs(singly)),
        }
    }

    /// Makes the room whole by the state before an event, and `with` that one if it is state.
    async fn tell_at(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
        with: Option<&EventId>,
    ) -> Result<(), Trial> {
        let version = self.deps.rooms.version(room).await?;
        let rules = version.rules().ok_or_else(|| Error::internal("a room of no known version"))?;
        let target = uri!("/_matrix/federation/v1/state/{}?event_id={}", room, event);
        let ask = Ask::get(target).within(TELLING).most_bytes(MOST_BYTES);
        let body = self.deps.servers.client.ask_stream(server, ask).await?;
        let (mut state, auth_chain) = self.read_state(server, room, &rules, body).await?;
        if let Some(with) = with {
            let event = self.ask_for_event(server, room, &rules, with).await?;
            if event.entry().is_some() {
                state.retain(|other| other.entry() != event.entry());
                state.push(event);
            }
        }
        judge(server, self.deps.rooms.owner.complete(room, state, auth_chain).await)
    }

    async fn tell_singly(
        &self,
        server: &ServerName,
        room: &RoomId,
        joined: &EventId,
    ) -> Result<(), Trial> {
        let ids = self.inbound.fetch_state_singly(room, server, joined).await??;
        judge(server, self.deps.rooms.owner.complete_by_ids(room, &ids).await)
    }
}

/// Whether the server may tell by and by what it has not told at once.
fn may_tell_less(failure: &Failure) -> bool {
    !matches!(failure, Failure::BackingOff { .. } | Failure::Forbidden(_))
}

/// What was told is no state, or this server could not take it in.
fn judge(server: &ServerName, completed: Result<()>) -> Result<(), Trial> {
    match completed {
        Ok(()) => Ok(()),
        Err(Error::Refused(refusal)) if is_theirs(&refusal) => {
            let why = format!("{server} has told what is no state: {}", refusal.message);
            Err(Trial::Theirs(Failure::Odd(why)))
        }
        Err(error) => Err(Trial::Ours(error)),
    }
}

fn is_theirs(refusal: &Refusal) -> bool {
    refusal.status < 500 && refusal.errcode != Refusal::NOT_OWNER
}
