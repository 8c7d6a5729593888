//! What an instance knows of every stream without asking the database: recent rows, who is
//! where, and who waits. One lock covers it, so that what a sync reads under it belongs to one
//! vector of positions.
//!
//! All of it is bounded and rebuilt from the tables on demand (R7, R8).

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ops::Bound,
    sync::Arc,
};

use chatd_base::{EventNid, Position, RoomNid, UserNid, WriterId};
use chatd_config::Config;
use chatd_storage::{
    events::StoredEvent,
    sync::{Extent, SummaryRow},
};
use chatd_streams::{
    Raw, StreamToken, Streams,
    account_data::AccountDataRow,
    events::{EventRow, Membership, MembershipChange},
    presence::PresenceRow,
    receipts::ReceiptRow,
    typing::TypingRow,
};
use chatd_users::ignored;
use parking_lot::{Mutex, MutexGuard};
use ruma_common::{OwnedDeviceId, OwnedRoomId, OwnedUserId};
use tokio::sync::watch;

use crate::{
    furthest::Furthest,
    log::{Bounds, Log},
    token::SyncToken,
    unread::Unread,
};

/// An event that arrived while this instance runs.
#[derive(Clone, Debug)]
pub struct Live {
    pub event: Arc<StoredEvent>,
    pub row: Arc<EventRow>,
    /// Redacted, edited or answered since: clients must get it as the tables have it now.
    pub altered: bool,
}

impl Live {
    /// The memberships that changed with it: its own, and those that state resolution changed.
    pub fn memberships(&self) -> impl Iterator<Item = &MembershipChange> {
        let resolved = self.row.resolved_members.iter().map(|(_, change)| change);
        self.row.membership.iter().chain(resolved)
    }
}

/// A room that a user is joined or invited to, or knocks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub room_id: OwnedRoomId,
    pub membership: Membership,
    /// The member event and its position.
    pub event: EventNid,
    pub pos: Position,
    /// Who has invited the user, if it is invited.
    pub inviter: Option<OwnedUserId>,
}

/// What the tables say of a user in a room.
pub type Known = (RoomNid, Member, Option<Extent>);

/// A user's rooms.
pub type Members = HashMap<RoomNid, Arc<Member>>;

/// Those of a user's rooms that were joined without their members.
#[derive(Clone, Debug, Default)]
pub struct Extents {
    /// Those whose members have not come yet.
    pub partial: HashSet<RoomNid>,
    /// Those whose members have, by the position at which they did.
    completed: BTreeMap<Position, (WriterId, RoomNid)>,
}

impl Extents {
    /// The members of a room have come.
    pub fn complete(&mut self, room: RoomNid, writer: WriterId, at: Position) {
        if self.partial.remove(&room) {
            self.completed.insert(at, (writer, room));
        }
    }

    /// The user is not in the room any more, or has come into it anew.
    fn forget(&mut self, room: RoomNid) {
        self.partial.remove(&room);
        self.completed.retain(|_, (_, other)| *other != room);
    }

    fn insert(&mut self, room: RoomNid, extent: Extent) {
        match extent {
            Extent::Partial => drop(self.partial.insert(room)),
            Extent::WholeSince(writer, at) => drop(self.completed.insert(at, (writer, room))),
        }
    }

    /// Rooms whose members have come after `since`.
    pub fn completed_since(&self, since: &StreamToken) -> Vec<RoomNid> {
        let later = (Bound::Excluded(since.min), Bound::Unbounded);
        let rooms = self.completed.range(later);
        rooms
            .filter(|(at, (writer, _))| !since.covers(*writer, **at))
            .map(|(_, (_, room))| *room)
            .collect()
    }
}

/// One step of a user's membership in a room.
#[derive(Clone, Debug)]
pub struct Step {
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub writer: WriterId,
    pub at: Position,
    pub before: Option<Membership>,
    pub now: Membership,
    pub event: EventNid,
    /// Who has invited the user, if the step was an invite.
    pub inviter: Option<OwnedUserId>,
    /// Stripped state, if the step came live and was an invite or a knock.
    pub stripped: Option<Arc<[Raw]>>,
    /// If the step came live and was a join: whether the members of the room were left out.
    pub is_partial: bool,
}

/// What is known of a user of this server while somebody has an interest in it.
#[derive(Debug)]
pub struct View {
    /// Whether `rooms` is complete; until then only steps are recorded.
    pub is_loaded: bool,
    pub rooms: Arc<Members>,
    pub extents: Extents,
    /// Steps since `steps_from`, oldest first.
    pub steps: VecDeque<Step>,
    pub steps_from: StreamToken,
    pub unread: HashMap<RoomNid, Unread>,
    /// Users whose messages this user does not want; `None` while that is not known.
    pub ignored: Option<ignored::List>,
    /// Counts what concerns the user; syncs wait for it to change.
    pub wake: watch::Sender<u64>,
    used: u64,
}

/// Steps that a view remembers.
const MOST_STEPS: usize = 128;

impl View {
    fn new(now: &StreamToken) -> Self {
        Self {
            is_loaded: false,
            rooms: Arc::default(),
            extents: Extents::default(),
            steps: VecDeque::new(),
            steps_from: now.clone(),
            unread: HashMap::new(),
            ignored: None,
            wake: watch::Sender::new(0),
            used: 0,
        }
    }

    pub fn wake(&self) {
        self.wake.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Takes in a step that has just become durable.
    pub fn apply(&mut self, step: Step) {
        if step.now != Membership::Join || step.before != Some(Membership::Join) {
            self.extents.forget(step.room);
        }
        if step.is_partial && step.now == Membership::Join {
            self.extents.partial.insert(step.room);
        }
        match step.now {
            Membership::Join | Membership::Invite | Membership::Knock => {
                let member = Member {
                    room_id: step.room_id.clone(),
                    membership: step.now,
                    event: step.event,
                    pos: step.at,
                    inviter: step.inviter.clone(),
                };
                Arc::make_mut(&mut self.rooms).insert(step.room, Arc::new(member));
            }
            Membership::Leave | Membership::Ban => {
                Arc::make_mut(&mut self.rooms).remove(&step.room);
                self.unread.remove(&step.room);
            }
        }
        self.steps.push_back(step);
        if self.steps.len() > MOST_STEPS
            && let Some(oldest) = self.steps.pop_front()
        {
            let floor = StreamToken::at(oldest.at.max(self.steps_from.max()));
            self.steps_from = floor;
        }
    }

    /// Adds what the tables say; steps that came meanwhile win. How much of a room is here is said by
    /// the tables also where the user has only taken another name there.
    fn complete(&mut self, rooms: Vec<Known>, ignored: ignored::List) {
        let moved: HashMap<RoomNid, Position> =
            self.steps.iter().map(|step| (step.room, step.at)).collect();
        for (room, member, extent) in rooms {
            if moved.get(&room).is_none_or(|at| member.pos > *at) {
                Arc::make_mut(&mut self.rooms).insert(room, Arc::new(member));
                self.extents.forget(room);
            }
            if let Some(extent) = extent
                && self.is_joined(room)
            {
                self.extents.insert(room, extent);
            }
        }
        self.ignored.get_or_insert(ignored);
        self.is_loaded = true;
    }

    /// The steps after `since`; `None` if some may be missing.
    pub fn steps_since(&self, since: &StreamToken) -> Option<Vec<Step>> {
        let steps = self.steps.iter().filter(|step| !since.covers(step.writer, step.at));
        since.is_at_least(&self.steps_from).then(|| steps.cloned().collect())
    }

    pub fn is_joined(&self, room: RoomNid) -> bool {
        self.rooms.get(&room).is_some_and(|member| member.membership == Membership::Join)
    }

    /// The rooms that the user is joined to.
    pub fn joined(&self) -> Vec<RoomNid> {
        self.rooms
            .iter()
            .filter(|(_, member)| member.membership == Membership::Join)
            .map(|(room, _)| *room)
            .collect()
    }

    /// Whether the two are joined to the same room.
    pub fn shares_room_with(&self, other: &Self) -> bool {
        let (few, many) =
            if self.rooms.len() < other.rooms.len() { (self, other) } else { (other, self) };
        few.rooms
            .iter()
            .any(|(room, member)| member.membership == Membership::Join && many.is_joined(*room))
    }
}

/// Everything under the lock.
#[derive(Debug)]
pub struct State {
    /// Up to where the streams have been folded.
    pub now: SyncToken,
    pub(crate) writers: Writers,
    pub events: Log<RoomNid, Live>,
    pub typing: Log<RoomNid, Arc<TypingRow>>,
    pub receipts: Log<RoomNid, Arc<ReceiptRow>>,
    pub(crate) furthest: Furthest,
    pub account_data: Log<UserNid, Arc<AccountDataRow>>,
    pub push_rules: Log<UserNid, Raw>,
    pub presence: Log<UserNid, Arc<PresenceRow>>,
    pub device_lists: Log<UserNid, OwnedUserId>,
    pub to_device: Log<(UserNid, OwnedDeviceId), Raw>,
    pub summaries: HashMap<RoomNid, Arc<SummaryRow>>,
    /// Counts changes of memberships, so that a summary that was read meanwhile is not kept.
    pub membership_changes: u64,
    pub(crate) views: HashMap<UserNid, View>,
    /// Counts how often views were forgotten, so that one which was being read meanwhile is read
    /// again.
    pub(crate) misses: u64,
    /// Users with a loaded view, by the rooms in it.
    pub(crate) served: HashMap<RoomNid, Vec<UserNid>>,
    limits: Limits,
    clock: u64,
}

/// Positions of the writers of each stream.
#[derive(Debug, Default)]
pub(crate) struct Writers {
    pub events: BTreeMap<WriterId, Position>,
    pub typing: BTreeMap<WriterId, Position>,
    pub receipts: BTreeMap<WriterId, Position>,
    pub account_data: BTreeMap<WriterId, Position>,
    pub push_rules: BTreeMap<WriterId, Position>,
    pub presence: BTreeMap<WriterId, Position>,
    pub device_lists: BTreeMap<WriterId, Position>,
    pub to_device: BTreeMap<WriterId, Position>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    views: usize,
    summaries: usize,
}

/// Bytes of event JSON that are kept for syncs.
const EVENT_BYTES: usize = 64 << 20;
/// Bytes that the rows of each other stream may take.
const ROW_BYTES: usize = 16 << 20;

impl State {
    fn new(streams: &Streams, config: &Config) -> Self {
        let limits = &config.chatd;
        let writers = Writers {
            events: streams.events.positions(),
            typing: streams.typing.positions(),
            receipts: streams.receipts.positions(),
            account_data: streams.account_data.positions(),
            push_rules: streams.push_rules.positions(),
            presence: streams.presence.positions(),
            device_lists: streams.device_lists.positions(),
            to_device: streams.to_device.positions(),
        };
        let now = SyncToken {
            room: StreamToken::from_writers(&writers.events),
            presence: StreamToken::from_writers(&writers.presence),
            typing: StreamToken::from_writers(&writers.typing),
            receipts: StreamToken::from_writers(&writers.receipts),
            account_data: StreamToken::from_writers(&writers.account_data),
            push_rules: StreamToken::from_writers(&writers.push_rules),
            to_device: StreamToken::from_writers(&writers.to_device),
            device_lists: StreamToken::from_writers(&writers.device_lists),
            others: Default::default(),
        };
        let of_room = limits.sync_room_events.max(2);
        let events = Bounds {
            rows: limits.sync_room_cache.saturating_mul(of_room),
            bytes: EVENT_BYTES,
            per_key: of_room,
        };
        let rows = Bounds { rows: limits.stream_rows, bytes: ROW_BYTES, per_key: usize::MAX };
        let latest = Bounds { rows: limits.change_index, bytes: ROW_BYTES, per_key: 1 };
        Self {
            events: Log::new(now.room.clone(), events),
            typing: Log::new(now.typing.clone(), latest),
            receipts: Log::new(now.receipts.clone(), rows),
            furthest: Furthest::new(),
            account_data: Log::new(now.account_data.clone(), rows),
            push_rules: Log::new(now.push_rules.clone(), latest),
            presence: Log::new(now.presence.clone(), latest),
            device_lists: Log::new(now.device_lists.clone(), latest),
            to_device: Log::new(now.to_device.clone(), rows),
            summaries: HashMap::new(),
            membership_changes: 0,
            views: HashMap::new(),
            misses: 0,
            served: HashMap::new(),
            limits: Limits {
                views: limits.change_index / 10 + 16,
                summaries: limits.sync_room_cache,
            },
            clock: 0,
            writers,
            now,
        }
    }

    /// The view of `user`, if its memberships are known.
    pub fn view(&self, user: UserNid) -> Option<&View> {
        self.views.get(&user).filter(|view| view.is_loaded)
    }

    /// As [`State::view`], and notes that it is of use.
    pub fn view_mut(&mut self, user: UserNid) -> Option<&mut View> {
        self.clock += 1;
        let view = self.views.get_mut(&user)?;
        view.used = self.clock;
        view.is_loaded.then_some(view)
    }

    /// Starts to record what concerns `user`, so that nothing is missed while the tables are read.
    /// The view stays as long as what is returned is held.
    pub fn begin_view(&mut self, user: UserNid) -> watch::Receiver<u64> {
        if self.views.len() >= self.limits.views && !self.views.contains_key(&user) {
            self.drop_idle_views();
        }
        self.clock += 1;
        let used = self.clock;
        let view = self.views.entry(user).or_insert_with(|| View::new(&self.now.room));
        view.used = used;
        view.wake.subscribe()
    }

    /// Completes a view with what the tables say.
    pub fn complete_view(&mut self, user: UserNid, rooms: Vec<Known>, ignored: ignored::List) {
        let Some(view) = self.views.get_mut(&user) else { return };
        view.complete(rooms, ignored);
        let rooms: Vec<RoomNid> = view.rooms.keys().copied().collect();
        for room in rooms {
            self.serve(room, user);
        }
    }

    /// Notes that `user` is to be woken by what happens in `room`.
    pub(crate) fn serve(&mut self, room: RoomNid, user: UserNid) {
        let users = self.served.entry(room).or_default();
        if !users.contains(&user) {
            users.push(user);
        }
    }

    pub(crate) fn stop_serving(&mut self, room: RoomNid, user: UserNid) {
        if let Some(users) = self.served.get_mut(&room) {
            users.retain(|other| *other != user);
            if users.is_empty() {
                self.served.remove(&room);
            }
        }
    }

    /// Users of loaded views in `room`.
    pub(crate) fn served_in(&self, room: RoomNid) -> &[UserNid] {
        self.served.get(&room).map_or(&[], Vec::as_slice)
    }

    /// Makes room: forgets the eighth of the views that nobody has waited for the longest.
    fn drop_idle_views(&mut self) {
        let mut idle: Vec<(u64, UserNid)> = self
            .views
            .iter()
            .filter(|(_, view)| view.wake.receiver_count() == 0)
            .map(|(user, view)| (view.used, *user))
            .collect();
        idle.sort_unstable();
        for (_, user) in idle.into_iter().take(self.limits.views / 8 + 1) {
            let Some(view) = self.views.remove(&user) else { continue };
            for room in view.rooms.keys() {
                self.stop_serving(*room, user);
            }
        }
    }

    /// Keeps a summary that was read when `membership_changes` was `seen`.
    pub fn keep_summary(&mut self, seen: u64, summary: Arc<SummaryRow>) {
        if seen != self.membership_changes {
            return;
        }
        if self.summaries.len() >= self.limits.summaries {
            self.summaries.clear();
        }
        self.summaries.insert(summary.room, summary);
    }

    /// What the metrics page shows: name of the part, rows in it.
    pub fn sizes(&self) -> [(&'static str, usize); 10] {
        [
            ("events", self.events.size().0),
            ("typing", self.typing.size().0),
            ("receipts", self.receipts.size().0),
            ("account_data", self.account_data.size().0),
            ("push_rules", self.push_rules.size().0),
            ("presence", self.presence.size().0),
            ("device_lists", self.device_lists.size().0),
            ("to_device", self.to_device.size().0),
            ("views", self.views.len()),
            ("summaries", self.summaries.len()),
        ]
    }
}

/// The lock around [`State`].
#[derive(Debug)]
pub struct Index {
    state: Mutex<State>,
}

impl Index {
    /// An index that sees every row from now on. Called while the instance is wired, before
    /// anything writes.
    pub fn attach(streams: &Streams, config: &Config) -> Arc<Self> {
        let index = Arc::new(Self { state: Mutex::new(State::new(streams, config)) });
        crate::fold::attach(&index, streams);
        index
    }

    /// Never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_whose_members_come_is_news_once() {
        let (room, writer) = (RoomNid(1), WriterId(1));
        let mut extents = Extents::default();
        extents.complete(room, writer, Position(5));
        assert!(extents.completed_since(&StreamToken::default()).is_empty());
        extents.insert(room, Extent::Partial);
        assert!(extents.completed_since(&StreamToken::default()).is_empty());
        extents.complete(room, writer, Position(7));
        assert!(extents.partial.is_empty());
        assert_eq!(extents.completed_since(&StreamToken::at(Position(6))), [room]);
        assert!(extents.completed_since(&StreamToken::at(Position(7))).is_empty());
        // A token that is ahead for that writer alone.
        assert!(extents.completed_since(&"m6~1.7".parse().unwrap()).is_empty());
        assert_eq!(extents.completed_since(&"m6~2.9".parse().unwrap()), [room]);
        extents.forget(room);
        assert!(extents.completed_since(&StreamToken::at(Position(6))).is_empty());
    }

    #[test]
    fn a_new_name_while_a_view_is_read_hides_nothing_of_the_room() {
        let (room, writer) = (RoomNid(1), WriterId(1));
        let room_id: OwnedRoomId = "!r:x".try_into().unwrap();
        let mut view = View::new(&StreamToken::at(Position(8)));
        view.apply(Step {
            room,
            room_id: room_id.clone(),
            writer,
            at: Position(9),
            before: Some(Membership::Join),
            now: Membership::Join,
            event: EventNid(9),
            inviter: None,
            stripped: None,
            is_partial: false,
        });
        let event = EventNid(9);
        let (pos, membership) = (Position(9), Membership::Join);
        let member = Member { room_id, membership, event, pos, inviter: None };
        let extent = Extent::WholeSince(writer, Position(7));
        view.complete(vec![(room, member, Some(extent))], Arc::default());
        assert_eq!(view.extents.completed_since(&StreamToken::at(Position(6))), [room]);
    }
}
