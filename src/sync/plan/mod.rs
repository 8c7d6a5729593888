//! What goes into an answer: decided under the index's lock, at one vector of positions.
//!
//! A plan holds what memory knows and names what the tables have to add.

mod path;
mod planner;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use chatd_base::{Position, RoomNid, UserNid};
use chatd_streams::{
    Raw, account_data::AccountDataRow, events::Membership, presence::PresenceRow,
    receipts::ReceiptRow, typing::TypingRow,
};
use ruma_common::{OwnedRoomId, OwnedUserId};

use crate::{
    filter::Filter,
    index::{Live, Member, Members},
    token::SyncToken,
    unread::Counts,
};

pub use path::ways;
pub use planner::make;

/// A user by number and id.
type Person = (UserNid, OwnedUserId);

/// Who syncs, and how.
#[derive(Clone, Debug)]
pub struct Asker {
    pub user: UserNid,
    pub user_id: OwnedUserId,
    /// Absent for application services without a device.
    pub device: Option<String>,
    pub filter: Arc<Filter>,
    pub full_state: bool,
    /// The state at the end of the timeline is wanted, not that at its start; under this name.
    pub state_after: Option<&'static str>,
}

/// How a room appears in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Join,
    Leave,
}

/// Where the events of an interval come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// There are none.
    Nothing,
    /// All of them, oldest first.
    Memory(Vec<Live>),
    Tables,
}

/// One room of the answer.
#[derive(Clone, Debug)]
pub struct RoomPlan {
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub section: Section,
    /// The interval of its timeline is `(low, high]`.
    pub low: Position,
    pub high: Position,
    /// The client knows nothing of the room yet, or not any more: it gets the whole state, and a
    /// timeline as far back as the limit allows.
    pub is_new: bool,
    /// The client knows the room, and its members have come.
    pub is_completed: bool,
    pub source: Source,
    pub typing: Option<Arc<TypingRow>>,
    pub receipts: Vec<Arc<ReceiptRow>>,
    pub account_data: Vec<(String, Raw)>,
    pub unread: (Counts, BTreeMap<String, Counts>),
}

/// A room that the user is invited to, or knocks at.
#[derive(Clone, Debug)]
pub struct Preview {
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub is_knock: bool,
    /// Absent if the tables have to be asked.
    pub stripped: Option<Arc<[Raw]>>,
}

/// Rows of a stream after the client's token, or the need to ask the tables for them.
#[derive(Clone, Debug)]
pub enum Rows<T> {
    Memory(Vec<T>),
    Tables,
}

/// A user whose devices or presence changed.
#[derive(Clone, Debug)]
pub struct Changed<T> {
    pub user: UserNid,
    pub value: T,
    /// Whether it shares a room with the asker; `None` if memory does not know.
    pub shares: Option<bool>,
}

/// What an answer is made of.
#[derive(Debug)]
pub struct Plan {
    pub since: Option<SyncToken>,
    pub now: SyncToken,
    pub rooms: BTreeMap<RoomNid, RoomPlan>,
    pub previews: Vec<Preview>,
    /// The rooms that the user is joined or invited to, or knocks at; without those that are hidden
    /// from it because their members are not known.
    pub members: Arc<Members>,
    /// Rooms that were joined, or left, in this interval.
    pub arrived_in: Vec<RoomNid>,
    pub parted_from: Vec<RoomNid>,
    /// Rooms that the client knows, of which the members have come in this interval.
    pub completed: Vec<RoomNid>,
    /// Whether `rooms` lacks receipts that only the tables have: of new rooms, and of those that
    /// the client knows.
    pub new_receipts_from_tables: bool,
    pub known_receipts_from_tables: bool,
    pub account_data: Rows<Arc<AccountDataRow>>,
    /// New rules; or that they are to be sent, and read from the table.
    pub push_rules: Option<Option<Raw>>,
    pub presence: Rows<Changed<Arc<PresenceRow>>>,
    pub device_lists: Rows<Changed<OwnedUserId>>,
    /// Other users who came into, or left, rooms that the asker was in all the time.
    pub arrivals: Rows<(UserNid, OwnedUserId)>,
    pub departures: Vec<(UserNid, OwnedUserId)>,
    pub ignored: Arc<HashSet<OwnedUserId>>,
}

impl RoomPlan {
    /// Below every position: nothing of the room has been seen.
    pub const UNSEEN: Position = Position(-1);

    /// A room that the client knows, without anything new in it.
    pub(crate) fn joined(
        room: RoomNid,
        room_id: &OwnedRoomId,
        low: Position,
        high: Position,
    ) -> Self {
        Self {
            room,
            room_id: room_id.clone(),
            section: Section::Join,
            low,
            high,
            is_new: false,
            is_completed: false,
            source: Source::Nothing,
            typing: None,
            receipts: Vec::new(),
            account_data: Vec::new(),
            unread: Default::default(),
        }
    }
}

impl Plan {
    /// All rooms that the user is joined to.
    pub fn joined(&self) -> Vec<RoomNid> {
        let joined = |member: &Member| member.membership == Membership::Join;
        self.members.iter().filter(|(_, m)| joined(m)).map(|(room, _)| *room).collect()
    }

    /// Rooms that the answer shows as joined.
    pub fn joined_in_answer(&self) -> impl Iterator<Item = RoomNid> {
        self.in_section(Section::Join)
    }

    /// Rooms that the answer shows as left.
    pub fn left(&self) -> impl Iterator<Item = RoomNid> {
        self.in_section(Section::Leave)
    }

    fn in_section(&self, section: Section) -> impl Iterator<Item = RoomNid> {
        self.rooms.values().filter(move |room| room.section == section).map(|room| room.room)
    }

    /// Adds a room that was left before the client's first sync.
    pub fn add_left(&mut self, asker: &Asker, room: RoomNid, room_id: OwnedRoomId, end: Position) {
        if asker.filter.wants_room(&room_id) {
            let plan = RoomPlan {
                section: Section::Leave,
                is_new: true,
                source: Source::Tables,
                ..RoomPlan::joined(room, &room_id, Position(0), end)
            };
            self.rooms.insert(room, plan);
        }
    }

    /// The plan of a room of which the tables have something besides events; `None` if the user
    /// is not in it, or does not want it.
    pub fn room_for_extras(&mut self, asker: &Asker, room: RoomNid) -> Option<&mut RoomPlan> {
        if !self.rooms.contains_key(&room) {
            let member = self.members.get(&room).filter(|m| m.membership == Membership::Join)?;
            if !asker.filter.wants_room(&member.room_id) {
                return None;
            }
            let low = self.since.as_ref().map_or(Position(0), |since| since.room.min);
            let plan = RoomPlan::joined(room, &member.room_id, low, self.now.room.max());
            self.rooms.insert(room, plan);
        }
        self.rooms.get_mut(&room)
    }
}
