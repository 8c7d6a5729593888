//! At the owner of a room: one fetch at a time, which all who want more of the room's past share.
//! It ends by itself, also when nobody waits any more.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chatd_base::{Cache, Clock, Error, Position, Refusal, Result, tasks};
use chatd_servers::Failure;
use chatd_storage::gaps;
use parking_lot::Mutex;
use ruma_common::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::Instant,
};

use super::{History, Place, Wanted};

/// Rooms whose past is stored at a time, and those for which it is fetched (R8). Other servers are
/// asked without a place: those that are slow hold up their own rooms only.
const AT_ONCE: usize = 8;
const MOST_ROOMS: usize = 200;
/// For asking other servers for one fetch, whoever waits for it. What has come is stored in any
/// case.
const WITHIN: Duration = Duration::from_secs(60);
/// Servers that are asked for one fetch.
const MOST_SERVERS: usize = 8;
/// Places from which one fetch goes back, and those of a room that are looked at.
const MOST_ASKED: usize = 5;
const MOST_GAPS: i64 = 50;
/// Events that nobody has and servers that have helped, of which it is remembered (R8).
const MOST_REMEMBERED: usize = 10_000;
/// How long servers that have nothing are not asked again for an event; doubles up to the longest.
const FIRST_PAUSE_MS: u64 = 60_000;
const LONGEST_PAUSE_MS: u64 = 24 * 60 * 60_000;

/// What came of a fetch.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Filled {
    /// There are more events now.
    pub is_something: bool,
    /// Another fetch may bring more.
    pub may_come: bool,
}

impl Filled {
    pub const SOMETHING: Self = Self { is_something: true, may_come: true };
    pub const LATER: Self = Self { is_something: false, may_come: true };
    pub const NOTHING: Self = Self { is_something: false, may_come: false };
}

/// What a fetch has come to, once it has come to something.
type Awaited = watch::Receiver<Option<Filled>>;

/// The fetches of this instance.
pub(super) struct Filling {
    clock: Clock,
    rooms: Mutex<HashMap<OwnedRoomId, (Place, Awaited)>>,
    places: Semaphore,
    /// Until when, and how often, nobody has had an event.
    unknown: Cache<OwnedEventId, (u64, u32)>,
    /// Who has told something of a room's past.
    helpful: Cache<OwnedRoomId, OwnedServerName>,
}

impl Filling {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            rooms: Mutex::default(),
            places: Semaphore::new(AT_ONCE),
            unknown: Cache::new("unknown_events", MOST_REMEMBERED),
            helpful: Cache::new("helpful_servers", MOST_REMEMBERED),
        }
    }

    /// Waits until something may be stored.
    pub async fn place(&self) -> Result<SemaphorePermit<'_>> {
        self.places.acquire().await.map_err(Error::internal)
    }

    fn is_unknown(&self, event: &OwnedEventId) -> bool {
        self.unknown.get(event).is_some_and(|(until, _)| self.clock.now_ms() < until)
    }

    /// Remembers that servers have been asked for an event and have not got it.
    fn note_unknown(&self, event: &OwnedEventId) {
        let times = self.unknown.get(event).map_or(0, |(_, times)| times);
        let pause = (FIRST_PAUSE_MS << times.min(20)).min(LONGEST_PAUSE_MS);
        self.unknown.insert(event.clone(), (self.clock.now_ms() + pause, times + 1));
    }
}

/// Whether the server has said something, if nothing of use.
fn is_answer(failure: &Failure) -> bool {
    let is_word = matches!(failure, Failure::Refused { .. } | Failure::Odd(_));
    is_word && !failure.is_of_the_server()
}

impl History {
    /// Fetches more of the past of a room that this instance owns, or waits for whoever does. Where
    /// that is for another place of the room, and nothing comes of it, this place has its turn next.
    pub(super) async fn fill_here(&self, wanted: &Wanted) -> Filled {
        loop {
            let Some((place, mut told)) = self.running(wanted) else { return Filled::LATER };
            let filled = told.wait_for(Option::is_some).await;
            let filled = filled.ok().and_then(|filled| *filled).unwrap_or(Filled::LATER);
            if filled.is_something || place == wanted.place {
                return filled;
            }
        }
    }

    /// The fetch of that room, which is begun if there is none. `None` if there are too many.
    fn running(&self, wanted: &Wanted) -> Option<(Place, watch::Receiver<Option<Filled>>)> {
        let mut rooms = self.0.filling.rooms.lock();
        // A fetch that has ended badly tells nothing any more.
        rooms.retain(|_, (_, told)| told.has_changed().is_ok());
        if let Some(running) = rooms.get(&wanted.room) {
            return Some(running.clone());
        }
        if rooms.len() >= MOST_ROOMS {
            return None;
        }
        let (tell, told) = watch::channel(None);
        let running = (wanted.place.clone(), told);
        rooms.insert(wanted.room.clone(), running.clone());
        tasks::spawn("backfill", self.clone().work(wanted.clone(), tell));
        Some(running)
    }

    async fn work(self, wanted: Wanted, tell: watch::Sender<Option<Filled>>) {
        let room = &wanted.room;
        let filled = self.fetch(&wanted).await.unwrap_or_else(|error| {
            tracing::warn!(room.id = %room, %error, "the past of a room cannot be stored");
            Filled::LATER
        });
        self.0.reader.look_further_back(room);
        self.0.filling.rooms.lock().remove(room);
        tell.send_replace(Some(filled));
    }

    /// Asks one server after the other, until one has told something.
    async fn fetch(&self, wanted: &Wanted) -> Result<Filled> {
        let room = &*wanted.room;
        if self.0.rooms.owner.is_partial(room).await? {
            return Ok(Filled::LATER);
        }
        let (last, behind) = self.last_missing(wanted).await?;
        if last.is_empty() {
            return Ok(Filled::NOTHING);
        }
        let (mut have_all_answered, until) = (true, Instant::now() + WITHIN);
        for server in self.candidates(room).await? {
            match self.ask_one(room, &server, (&last, behind), until).await {
                Ok(Ok(0)) => {}
                Ok(Ok(_)) => {
                    self.0.filling.helpful.insert(room.to_owned(), server);
                    return Ok(Filled::SOMETHING);
                }
                Ok(Err(failure)) => {
                    tracing::info!(
                        server.name = %server, room.id = %room, %failure,
                        "the past of a room cannot be had from a server"
                    );
                    have_all_answered &= is_answer(&failure);
                }
                Err(Error::Refused(why)) if why.errcode == Refusal::NOT_OWNER => {
                    return Ok(Filled::LATER);
                }
                Err(error) if error.is_unavailable() => return Err(error),
                // What this one tells cannot be kept; that says nothing of the others.
                Err(error) => {
                    tracing::warn!(
                        server.name = %server, room.id = %room, %error,
                        "the past of a room that a server tells cannot be kept"
                    );
                }
            }
        }
        if have_all_answered {
            last.iter().for_each(|event| self.0.filling.note_unknown(event));
            return Ok(Filled::NOTHING);
        }
        Ok(Filled::LATER)
    }

    /// Events that are missing, and the position of the one that they have to come before if that
    /// is not the first one that is known.
    async fn last_missing(&self, wanted: &Wanted) -> Result<(Vec<OwnedEventId>, Option<Position>)> {
        let Some(room) = self.0.users.room_nids.find(&wanted.room).await? else {
            return Ok((Vec::new(), None));
        };
        let pool = &self.0.pool;
        let wanted = match &wanted.place {
            Place::Beginning => {
                let all = gaps::list_beginnings(pool, room, MOST_GAPS).await?.into_iter();
                return Ok((self.worth_asking(all.map(|gap| gap.missing)), None));
            }
            Place::Behind(events) => Some(&**events),
            Place::Between => None,
        };
        let all = gaps::list_between(pool, room, wanted, MOST_GAPS).await?;
        let one = |gap: &gaps::Gap| {
            let id = OwnedEventId::try_from(gap.missing.as_str()).ok();
            id.is_some_and(|id| !self.0.filling.is_unknown(&id)).then_some(gap.pos)
        };
        let Some(pos) = all.iter().find_map(one) else { return Ok((Vec::new(), None)) };
        let same = all.into_iter().filter(|gap| gap.pos == pos);
        Ok((self.worth_asking(same.map(|gap| gap.missing)), Some(pos)))
    }

    /// The first of these events that somebody may have.
    fn worth_asking(&self, missing: impl Iterator<Item = String>) -> Vec<OwnedEventId> {
        let events = missing.filter_map(|id| OwnedEventId::try_from(id).ok());
        let mut events: Vec<OwnedEventId> =
            events.filter(|event| !self.0.filling.is_unknown(event)).collect();
        events.dedup();
        events.truncate(MOST_ASKED);
        events
    }

    /// Other servers in the room: who has helped before, then those with most members; those that
    /// have lately been slow come last.
    pub(super) async fn candidates(&self, room: &RoomId) -> Result<Vec<OwnedServerName>> {
        let helpful = self.0.filling.helpful.get(room);
        let of_id = room.server_name().map(ServerName::to_owned);
        let hosts = self.0.rooms.hosts.servers_in_room(room).await?;
        let mut seen = HashSet::from([self.0.own_name.clone()]);
        let all = helpful.into_iter().chain(hosts).chain(of_id);
        let mut candidates: Vec<OwnedServerName> =
            all.filter(|server| seen.insert(server.clone())).collect();
        self.0.servers.client.put_slow_last(&mut candidates);
        candidates.truncate(MOST_SERVERS);
        Ok(candidates)
    }
}
