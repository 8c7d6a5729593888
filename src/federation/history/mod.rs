//! What was said in a room before this server came: other servers tell it when somebody reads back
//! to where local history ends.
//!
//! A page of history is made from the tables, on any instance. Only where it reaches the beginning
//! of what is known is the room's owner asked for more (`everywhere`), which does that for all who
//! wait at the time (`filling`): it asks servers of the room one after the other, checks what they
//! tell as it checks what they send, and stores it below all that is there or in the gap
//! (`asking`, `chatd_rooms::RoomOwner::place_past`). What has come stays, whether anybody still
//! waits or not. Where nobody answers, the page ends, and says that there may be more.

mod asking;
mod everywhere;
mod filling;
mod looking;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chatd_base::{Cache, Clock, Error, EventNid, Result, RoomNid, UserNid, tasks};
use chatd_rooms::{
    Rooms,
    filter::EventFilter,
    read::{Context, Messages, MessagesQuery, Reader, Shown},
};
use chatd_servers::Servers;
use chatd_storage::{Pool, gaps};
use chatd_streams::Streams;
use chatd_users::Users;
use ruma_common::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId};
use serde::{Deserialize, Serialize};

use self::filling::{Filled, Filling};
use crate::{Deps, inbound::Inbound, turns::Turns};

/// How long one request waits for other servers (R8).
const PATIENCE: Duration = Duration::from_secs(20);
/// Times that one request asks for more, and one that looks for a certain event.
const MOST_TIMES: usize = 5;
const MOST_TIMES_FOR_ONE: usize = 30;
/// Events that nobody knows, of which it is remembered (R8).
const MOST_ABSENT: usize = 10_000;

/// Reads the past of rooms, further back than this server has been in them. Cheap to clone.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    pool: Pool,
    clock: Clock,
    streams: Arc<Streams>,
    users: Arc<Users>,
    rooms: Arc<Rooms>,
    reader: Reader,
    servers: Servers,
    own_name: OwnedServerName,
    inbound: Inbound,
    filling: Filling,
    /// Who looks for single events.
    lookups: Turns,
    /// Events that are not looked for in a room, until when.
    absent: Cache<(OwnedRoomId, OwnedEventId), u64>,
}

impl History {
    /// Takes part in the calls between instances.
    pub(crate) fn new(deps: &Deps, inbound: &Inbound) -> Self {
        let own = &deps.users.deps;
        let history = Self(Arc::new(Inner {
            pool: own.pool.clone(),
            clock: own.clock.clone(),
            users: deps.users.clone(),
            streams: own.streams.clone(),
            rooms: deps.rooms.clone(),
            reader: deps.reader.clone(),
            servers: deps.servers.clone(),
            own_name: deps.config.server_name.clone(),
            inbound: inbound.clone(),
            filling: Filling::new(own.clock.clone()),
            lookups: Turns::default(),
            absent: Cache::new("absent_events", MOST_ABSENT),
        }));
        history.answer_calls();
        let weak = Arc::downgrade(&history.0);
        inbound.on_gap(move |room| {
            if let Some(history) = weak.upgrade() {
                History(history).close_gaps(room);
            }
        });
        history
    }

    /// Begins to fill gaps between events of a room, which this instance owns. Nobody waits for it.
    pub(crate) fn close_gaps(&self, room: &RoomId) {
        tasks::spawn("gaps", self.clone().fill_gaps(room.to_owned()));
    }

    /// As [`Reader::messages`], with what other servers have of it.
    pub async fn messages(
        &self,
        user: UserNid,
        room: &RoomId,
        query: MessagesQuery,
    ) -> Result<Messages> {
        let mut page = self.0.reader.messages(user, room, query.clone()).await?;
        let mut asking = Asking::begin(MOST_TIMES);
        let mut is_stuck = false;
        loop {
            let nid = page.shown.lens.room;
            let place = match std::mem::take(&mut page.behind_gaps) {
                gaps if !gaps.is_empty() && !is_stuck => Place::Behind(gaps),
                _ if page.is_exhausted => Place::Beginning,
                _ => return Ok(page),
            };
            let is_gap = matches!(place, Place::Behind(_));
            match self.ask(room, nid, place, &mut asking).await? {
                More::Some => page = self.0.reader.messages(user, room, query.clone()).await?,
                // The page goes on behind the gap.
                More::Later | More::None if is_gap => is_stuck = true,
                More::Later => {
                    let is_start = page.last == page.start;
                    page.end =
                        Some(if is_start { page.last.rewritten() } else { page.last.clone() });
                    return Ok(page);
                }
                More::None => return Ok(page),
            }
        }
    }

    /// As [`Reader::context`], with what other servers have of it.
    pub async fn context(
        &self,
        user: UserNid,
        room: &RoomId,
        event: &EventId,
        limit: usize,
        filter: &EventFilter,
    ) -> Result<Context> {
        let mut asking = Asking::begin(MOST_TIMES_FOR_ONE);
        let reader = &self.0.reader;
        let mut context = match reader.context(user, room, event, limit, filter).await {
            Err(error) if is_absent(&error) => {
                if !self.look_for(user, room, event, &mut asking).await? {
                    return Err(error);
                }
                reader.context(user, room, event, limit, filter).await?
            }
            known => known?,
        };
        while context.is_exhausted {
            let nid = context.shown.lens.room;
            match self.ask(room, nid, Place::Beginning, &mut asking).await? {
                More::Some => context = reader.context(user, room, event, limit, filter).await?,
                More::Later | More::None => break,
            }
        }
        Ok(context)
    }

    /// As [`Reader::event`], also for an event from before this server was in the room.
    pub async fn event(&self, user: UserNid, room: &RoomId, event: &EventId) -> Result<Shown> {
        let reader = &self.0.reader;
        match reader.event(user, Some(room), event).await {
            Err(error) if is_absent(&error) => {
                let mut asking = Asking::begin(MOST_TIMES_FOR_ONE);
                match self.look_for(user, room, event, &mut asking).await? {
                    true => reader.event(user, Some(room), event).await,
                    false => Err(error),
                }
            }
            known => known,
        }
    }

    /// Has more of the room's past fetched.
    async fn ask(
        &self,
        room: &RoomId,
        nid: RoomNid,
        place: Place,
        asking: &mut Asking,
    ) -> Result<More> {
        if self.0.rooms.hosts.servers_in(nid).await?.is_empty()
            || !self.is_open(nid, &place).await?
        {
            return Ok(More::None);
        }
        let Some(left) = asking.next() else { return Ok(More::Later) };
        let wanted = Wanted { room: room.to_owned(), place };
        // What was said before is judged by all members.
        let filling = async {
            self.0.rooms.wholes.wait(nid).await?;
            self.fill(&wanted).await
        };
        let filled = match tokio::time::timeout(left, filling).await {
            Ok(Err(Error::Refused(why))) if why.status == 503 => Filled::LATER,
            Ok(filled) => filled?,
            Err(_) => Filled::LATER,
        };
        self.0.reader.look_further_back(room);
        Ok(match filled {
            Filled { is_something: true, .. } => More::Some,
            Filled { may_come: true, .. } => More::Later,
            _ => More::None,
        })
    }

    /// Whether something is missing there.
    async fn is_open(&self, room: RoomNid, place: &Place) -> Result<bool> {
        let pool = &self.0.pool;
        Ok(match place {
            Place::Beginning => !gaps::list_beginnings(pool, room, 1).await?.is_empty(),
            Place::Behind(events) => {
                !gaps::list_between(pool, room, Some(events), 1).await?.is_empty()
            }
            Place::Between => !gaps::list_between(pool, room, None, 1).await?.is_empty(),
        })
    }

    /// Fills gaps between events of a room, which this instance owns, as far as that goes.
    async fn fill_gaps(self, room: OwnedRoomId) {
        let wanted = Wanted { room, place: Place::Between };
        for _ in 0..MOST_TIMES_FOR_ONE {
            if !self.fill_here(&wanted).await.is_something {
                return;
            }
        }
    }
}

/// Where a room's past is to be filled.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Place {
    /// Before all that is known.
    Beginning,
    /// Behind these of the events.
    Behind(Vec<EventNid>),
    /// Behind whichever events.
    Between,
}

/// What an owner is asked to fetch.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Wanted {
    room: OwnedRoomId,
    place: Place,
}

/// What came of asking for more of the past.
enum More {
    Some,
    /// Nothing now.
    Later,
    None,
}

/// Whether an event is not there, or not for the one who asks.
fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Refused(why) if why.status == 404)
}

/// How much one request may ask.
struct Asking {
    until: Instant,
    times: usize,
}

impl Asking {
    fn begin(times: usize) -> Self {
        Self { until: Instant::now() + PATIENCE, times }
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// How long the next answer may take; `None` if there is to be none.
    fn next(&mut self) -> Option<Duration> {
        let left = self.left();
        let may_ask = self.times > 0 && !left.is_zero();
        self.times = self.times.saturating_sub(1);
        may_ask.then_some(left)
    }
}
