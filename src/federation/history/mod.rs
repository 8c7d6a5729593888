//! What was said in a room before this server came: other servers tell it when somebody reads back
//! to where local history ends.
//!
//! A page of history is made from the tables, on any instance. Only where it reaches the beginning
//! of what is known is the room's owner asked for more (`everywhere`), which does that for all who
//! wait at the time (`filling`): it asks servers of the room one after the other, checks what they
//! tell as it checks what they send, and stores it below all that is there (`asking`,
//! `chatd_rooms::RoomOwner::place_past`). What has come stays, whether anybody still waits or not.
//! Where nobody answers, the page ends, and says that there may be more.

mod asking;
mod everywhere;
mod filling;
mod looking;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chatd_base::{Cache, Clock, Error, Result, RoomNid, UserNid};
use chatd_rooms::{
    Rooms,
    filter::EventFilter,
    read::{Context, Messages, MessagesQuery, Reader, Shown},
};
use chatd_servers::Servers;
use chatd_storage::{Pool, gaps};
use chatd_streams::Streams;
use chatd_users::Users;
use ruma_common::{EventId, OwnedEventId, OwnedServerName, RoomId};

use self::filling::{Filled, Filling};
use crate::{Deps, inbound::Inbound};

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
    /// Events that are not looked for, until when.
    absent: Cache<OwnedEventId, u64>,
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
            absent: Cache::new("absent_events", MOST_ABSENT),
        }));
        history.answer_calls();
        history
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
        while let Some(nid) = page.exhausted {
            match self.ask(room, nid, &mut asking).await? {
                More::Some => page = self.0.reader.messages(user, room, query.clone()).await?,
                More::Later => {
                    page.end = Some(page.last.clone());
                    break;
                }
                More::None => break,
            }
        }
        Ok(page)
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
        while let Some(nid) = context.exhausted {
            match self.ask(room, nid, &mut asking).await? {
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
    async fn ask(&self, room: &RoomId, nid: RoomNid, asking: &mut Asking) -> Result<More> {
        if self.0.rooms.hosts.servers_in(nid).await?.is_empty()
            || gaps::list_beginnings(&self.0.pool, nid, 1).await?.is_empty()
        {
            return Ok(More::None);
        }
        let Some(left) = asking.next() else { return Ok(More::Later) };
        let filled = match tokio::time::timeout(left, self.fill(room)).await {
            Ok(filled) => filled?,
            Err(_) => Filled { is_something: false, may_come: true },
        };
        self.0.reader.look_further_back(room);
        Ok(match filled {
            Filled { is_something: true, .. } => More::Some,
            Filled { may_come: true, .. } => More::Later,
            _ => More::None,
        })
    }
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

    /// How long the next answer may take; `None` if there is to be none.
    fn next(&mut self) -> Option<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        let may_ask = self.times > 0 && !left.is_zero();
        self.times = self.times.saturating_sub(1);
        may_ask.then_some(left)
    }
}
