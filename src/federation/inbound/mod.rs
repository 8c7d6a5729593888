//! What other servers send: transactions of events and of things that pass.
//!
//! A transaction comes to any instance (`transaction`). Its events go to the owners of their rooms,
//! one call an owner (`everywhere`), where each is checked and placed (`room`). An event that refers
//! to missing ones is kept in a table and its server is told that it is here: a sender gives up
//! after a minute, and what is missing may take longer than that to come. The room's own task then
//! fetches it (`backlog`, `missing`); any later owner of the room goes on where it was left, so
//! nothing that was accepted is lost (R1). EDUs go to the streams that they belong to (`edus`).

mod backlog;
mod devices;
mod edus;
mod everywhere;
mod meter;
mod missing;
mod room;
mod state;
mod transaction;

use std::sync::{Arc, OnceLock};

use chatd_base::{Cache, Clock, Stop};
use chatd_rooms::Rooms;
use chatd_servers::Servers;
use chatd_storage::{
    Pool,
    notices::{Heard, Notice},
};
use chatd_streams::events::{Membership, MembershipChange};
use chatd_users::Users;
use parking_lot::Mutex;
use ruma_common::{OwnedRoomId, OwnedServerName, RoomId};
use tokio::sync::Notify;

pub(crate) use missing::in_order;
pub(crate) use room::Pdu;
pub(crate) use state::segment;
pub use transaction::{Outcome, Transaction};

use self::{backlog::Backlog, meter::Meters};
use crate::Deps;

/// Answers that are remembered for senders that ask again (R8).
const MOST_ANSWERS: usize = 2_000;
/// Rooms of which it is remembered that they are not known here, or are (R8).
const MOST_ROOMS: usize = 20_000;

/// A transaction: its sender, its id, and a digest of what it says.
type Asked = (OwnedServerName, String, [u8; 32]);

/// Takes in what other servers send. Cheap to clone.
#[derive(Clone)]
pub struct Inbound(Arc<Inner>);

struct Inner {
    pool: Pool,
    clock: Clock,
    stop: Stop,
    users: Arc<Users>,
    rooms: Arc<Rooms>,
    servers: Servers,
    answers: Cache<Asked, Arc<Outcome>>,
    /// Until when a room counts as unknown; 0 for one that is known.
    known: Cache<OwnedRoomId, u64>,
    /// How often rooms have become known. Whoever notes what was read of a room holds it, and
    /// looks whether that is out of date.
    changes: Mutex<u64>,
    backlog: Backlog,
    /// Wakes whoever fetches device lists.
    stale: Notify,
    meters: Meters,
    gap: OnceLock<OnGap>,
}

impl Inner {
    fn note_room(&self, room: &RoomId) {
        let mut changes = self.changes.lock();
        *changes += 1;
        self.known.remove(room);
    }

    fn note_any(&self) {
        let mut changes = self.changes.lock();
        *changes += 1;
        self.known.clear();
    }
}

/// Is told of rooms in which events are missing behind one that has its place.
type OnGap = Box<dyn Fn(&RoomId) + Send + Sync>;

impl Inbound {
    /// Takes part in the calls between instances. What waits is worked on from [`Inbound::run`] on.
    pub(crate) fn new(deps: &Deps) -> Self {
        let own = &deps.users.deps;
        let inbound = Self(Arc::new(Inner {
            pool: own.pool.clone(),
            clock: own.clock.clone(),
            stop: own.stop.clone(),
            users: deps.users.clone(),
            rooms: deps.rooms.clone(),
            servers: deps.servers.clone(),
            answers: Cache::new("inbound_transactions", MOST_ANSWERS),
            known: Cache::new("inbound_rooms", MOST_ROOMS),
            changes: Mutex::default(),
            backlog: Backlog::default(),
            stale: Notify::new(),
            meters: Meters::new(),
            gap: OnceLock::new(),
        }));
        inbound.answer_calls();
        inbound.answer_device_calls();
        inbound.listen(deps);
        inbound
    }

    /// Has itself told of what ends waiting: signs of life, and rooms that somebody here comes into.
    fn listen(&self, deps: &Deps) {
        let inner = Arc::downgrade(&self.0);
        deps.servers.back_off.on_life(move |server| {
            if let Some(inner) = inner.upgrade() {
                inner.backlog.note_life(server);
            }
        });
        let events = &deps.users.deps.streams.events;
        let inner = Arc::downgrade(&self.0);
        events.on_common_rows(move |frame| {
            let joins =
                |change: &MembershipChange| change.is_local && change.now == Membership::Join;
            let rows = frame.rows.iter().map(|(_, row)| row);
            let joined = rows.filter(|row| row.membership.as_ref().is_some_and(joins));
            if let Some(inner) = inner.upgrade() {
                joined.for_each(|row| inner.note_room(&row.room_id));
            }
        });
        let inner = Arc::downgrade(&self.0);
        events.on_skipped(move |_, _| {
            if let Some(inner) = inner.upgrade() {
                inner.note_any();
            }
        });
        let inner = Arc::downgrade(&self.0);
        deps.users.deps.notices.on_heard(move |heard| {
            let Some(inner) = inner.upgrade() else { return };
            match heard {
                Heard::Notice(Notice::Room { room_id }) => {
                    if let Ok(room) = <&RoomId>::try_from(room_id.as_str()) {
                        inner.note_room(room);
                    }
                }
                Heard::Notice(_) => {}
                Heard::Missed => inner.note_any(),
            }
        });
    }

    /// This instance has made a room known, and told the others.
    pub(crate) fn note_room(&self, room: &RoomId) {
        self.0.note_room(room);
    }

    /// Tells of rooms in which events are missing behind one that has got its place. Called once,
    /// while the instance is wired.
    pub(crate) fn on_gap(&self, ear: impl Fn(&RoomId) + Send + Sync + 'static) {
        let _known_already = self.0.gap.set(Box::new(ear));
    }

    /// Works on what waits, until `stop`: also what earlier processes have left.
    pub async fn run(self, stop: Stop) {
        futures::join!(self.clone().work_on_backlog(stop.clone()), self.follow_devices(stop));
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.0.clock.now_ms()).unwrap_or(i64::MAX)
    }
}
