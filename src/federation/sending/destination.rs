//! What one server is still to be sent. Nothing here waits; whoever holds it decides when.
//!
//! A server that answers has a queue in memory. One that does not, or that is too slow, is *behind*:
//! all that is kept is which rooms it has missed something of, and since when, and that is in the
//! tables. So a dead server costs a row for each room, however much is said there.

use std::collections::{BTreeMap, HashMap, VecDeque};

use chatd_base::{EventNid, Position, RoomNid, UserNid, WriterId};
use chatd_storage::sending::DeviceChange;
use chatd_streams::StreamToken;
use ruma_common::OwnedServerName;

use super::{delivery::Content, ephemeral::Ephemeral};

/// Events that wait in memory for one server (R8); with more it is behind.
const MOST_QUEUED: usize = 500;
/// Changes of device lists that wait in memory for one server.
const MOST_DEVICES: usize = 500;

/// An event that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub nid: EventNid,
    pub pos: Position,
    pub writer: WriterId,
    pub room: RoomNid,
    /// When it came, in milliseconds.
    pub came_ms: u64,
}

/// What a server has missed of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owed {
    pub since: Position,
    /// A later event that it has been given already.
    pub ahead: Option<Position>,
}

/// Changes that are to be written.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// What each server is owed now; `None`: nothing any more.
    pub rooms: HashMap<(OwnedServerName, RoomNid), Option<Owed>>,
    pub devices: HashMap<OwnedServerName, Option<StreamToken>>,
    /// Messages to devices that have been taken.
    pub taken: Vec<(OwnedServerName, Position)>,
}

impl Ledger {
    pub(super) fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.devices.is_empty() && self.taken.is_empty()
    }
}

/// How far a server that is behind has come with one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CaughtUp {
    /// What it is owed of rooms now; `None`: nothing, unless something has come meanwhile.
    pub rooms: Vec<(RoomNid, Option<Owed>)>,
    /// Where it is with changes of device lists.
    pub devices: Option<StreamToken>,
}

/// One server.
#[derive(Debug, Default)]
pub(super) struct Destination {
    queue: VecDeque<Queued>,
    under_way: Vec<Queued>,
    pub is_behind: bool,
    /// Rows in the table, or about to be.
    pub owed: BTreeMap<RoomNid, Owed>,
    /// The first event of each room that has come since it was looked up what it is owed.
    touched: BTreeMap<RoomNid, Position>,
    devices: BTreeMap<(UserNid, String), DeviceChange>,
    devices_under_way: Vec<DeviceChange>,
    pub owed_devices: Option<StreamToken>,
    /// The least position of a change of a device list that has come while it is behind: writers
    /// need not come in order.
    touched_devices: Option<Position>,
    /// Messages to devices wait in the table.
    pub has_outbound: bool,
    pub ephemeral: Ephemeral,
    /// A transaction is under way.
    pub is_busy: bool,
    /// It is in the line of those that can be sent to.
    pub is_in_line: bool,
    pub is_failing: bool,
    /// What it has not taken, as far as this server knows.
    pub again: Option<Box<Content>>,
    /// What it gets next while it is behind: read together with what is under way.
    pub prepared: VecDeque<Content>,
    /// It is left alone until then, in milliseconds.
    pub retry_at: u64,
}

impl Destination {
    /// Whether there is anything to send.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty()
            || self.is_behind
            || self.has_outbound
            || !self.devices.is_empty()
            || !self.ephemeral.is_empty()
    }

    /// Whether nothing has to be kept of it.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_busy && !self.has_work() && self.owed.is_empty() && !self.is_failing
    }

    /// Events that wait or are under way.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len() + self.under_way.len()
    }

    /// Adds an event, which is newer than those before.
    pub(super) fn add(&mut self, server: &OwnedServerName, event: Queued, ledger: &mut Ledger) {
        if self.is_behind {
            self.touch(event);
            self.owe(server, event.room, event.pos, ledger);
            return;
        }
        self.queue.push_back(event);
        if self.queue.len() > MOST_QUEUED {
            self.fall_behind(server, ledger);
        }
    }

    /// Adds a change of a device list, which is newer than those before.
    pub(super) fn add_device(
        &mut self,
        server: &OwnedServerName,
        change: &DeviceChange,
        ledger: &mut Ledger,
    ) {
        if self.is_behind {
            let least = self.touched_devices.map_or(change.pos, |least| least.min(change.pos));
            self.touched_devices = Some(least);
            self.owe_devices(server, change.pos, ledger);
            return;
        }
        self.devices.insert((change.user, change.device_id.clone()), change.clone());
        if self.devices.len() > MOST_DEVICES {
            self.fall_behind(server, ledger);
        }
    }

    fn touch(&mut self, event: Queued) {
        let first = self.touched.entry(event.room).or_insert(event.pos);
        *first = event.pos.min(*first);
    }

    fn owe(
        &mut self,
        server: &OwnedServerName,
        room: RoomNid,
        since: Position,
        ledger: &mut Ledger,
    ) {
        let owed = self.owed.entry(room).or_insert(Owed { since: Position(i64::MAX), ahead: None });
        if since < owed.since {
            owed.since = since;
            ledger.rooms.insert((server.clone(), room), Some(*owed));
        }
    }

    /// Takes note that it has missed the change at `pos` and those after it.
    fn owe_devices(&mut self, server: &OwnedServerName, pos: Position, ledger: &mut Ledger) {
        let since = StreamToken::at(Position(pos.0 - 1));
        if self.owed_devices.as_ref().is_none_or(|owed| owed.max() > since.max()) {
            ledger.devices.insert(server.clone(), Some(since.clone()));
            self.owed_devices = Some(since);
        }
    }

    /// Keeps no more than what it misses of what has not been begun.
    fn fall_behind(&mut self, server: &OwnedServerName, ledger: &mut Ledger) {
        self.is_behind = true;
        for event in std::mem::take(&mut self.queue) {
            self.touch(event);
            self.owe(server, event.room, event.pos, ledger);
        }
        if let Some(oldest) = self.devices.values().map(|change| change.pos).min() {
            self.owe_devices(server, oldest, ledger);
        }
        self.devices.clear();
        self.ephemeral.keep_receipts();
    }

    /// Whether it has been given all events when what is under way has been taken.
    pub(super) fn has_events(&self) -> bool {
        !self.is_behind && self.queue.is_empty()
    }

    /// Takes the oldest events for a transaction; at most `limit`.
    pub(super) fn take_events(&mut self, limit: usize) -> Vec<Queued> {
        let count = limit.min(self.queue.len());
        self.under_way = self.queue.drain(..count).collect();
        self.under_way.clone()
    }

    /// Takes changes of device lists for a transaction, oldest first; at most `limit`.
    pub(super) fn take_devices(&mut self, limit: usize) -> Vec<DeviceChange> {
        let mut all: Vec<DeviceChange> = std::mem::take(&mut self.devices).into_values().collect();
        all.sort_by_key(|change| change.pos);
        for rest in all.split_off(limit.min(all.len())) {
            self.devices.insert((rest.user, rest.device_id.clone()), rest);
        }
        self.devices_under_way = all;
        self.devices_under_way.clone()
    }

    /// Begins a transaction to a server that is behind: what it is owed, the oldest first.
    pub(super) fn begin_to_catch_up(&mut self, limit: usize) -> Vec<(RoomNid, Owed)> {
        self.touched.clear();
        self.touched_devices = None;
        let mut owed: Vec<(RoomNid, Owed)> =
            self.owed.iter().map(|(room, owed)| (*room, *owed)).collect();
        owed.sort_by_key(|(_, owed)| owed.since);
        owed.truncate(limit);
        owed
    }

    /// The transaction was taken.
    pub(super) fn accepted(
        &mut self,
        server: &OwnedServerName,
        caught_up: CaughtUp,
        told_devices: &StreamToken,
        ledger: &mut Ledger,
    ) {
        self.under_way.clear();
        self.devices_under_way.clear();
        self.ephemeral.accepted();
        // One that is not behind is owed nothing but what waits in memory.
        let owed_rooms = caught_up.rooms.into_iter().filter(|_| self.is_behind);
        for (room, owed) in owed_rooms.collect::<Vec<_>>() {
            if !self.owed.contains_key(&room) {
                continue;
            }
            let came = self.touched.get(&room).map(|pos| Owed { since: *pos, ahead: None });
            let owed = owed.or(came);
            match owed {
                Some(owed) => drop(self.owed.insert(room, owed)),
                None => drop(self.owed.remove(&room)),
            }
            ledger.rooms.insert((server.clone(), room), owed);
        }
        if let Some(devices) = caught_up.devices.filter(|_| self.owed_devices.is_some()) {
            let before = self.touched_devices.map(|pos| StreamToken::at(Position(pos.0 - 1)));
            let devices = before.filter(|before| before.max() < devices.max()).unwrap_or(devices);
            let is_settled = devices.is_at_least(told_devices);
            self.owed_devices = (!is_settled).then_some(devices);
            ledger.devices.insert(server.clone(), self.owed_devices.clone());
        }
        if self.is_behind {
            self.is_behind = !self.owed.is_empty() || self.owed_devices.is_some();
        } else {
            self.settle_slow(server, ledger);
        }
    }

    /// What was noted while the server was slow is no more than what still waits.
    fn settle_slow(&mut self, server: &OwnedServerName, ledger: &mut Ledger) {
        for (room, owed) in std::mem::take(&mut self.owed) {
            let next = self.queue.iter().find(|event| event.room == room);
            let left = next.map(|event| Owed { since: event.pos, ..owed });
            ledger.rooms.insert((server.clone(), room), left);
            self.owed.extend(left.map(|left| (room, left)));
        }
    }

    /// The transaction was not taken.
    pub(super) fn failed(&mut self, server: &OwnedServerName, until: u64, ledger: &mut Ledger) {
        self.fall_behind(server, ledger);
        for event in std::mem::take(&mut self.under_way) {
            self.owe(server, event.room, event.pos, ledger);
        }
        let devices = std::mem::take(&mut self.devices_under_way);
        if let Some(oldest) = devices.iter().map(|change| change.pos).min() {
            self.owe_devices(server, oldest, ledger);
        }
        self.ephemeral.failed();
        self.prepared.clear();
        self.is_failing = true;
        self.retry_at = until;
    }

    /// Takes note of what has waited since before `before_ms` as of something missed, so that
    /// others need not wait for this server.
    pub(super) fn note_slow(
        &mut self,
        server: &OwnedServerName,
        before_ms: u64,
        ledger: &mut Ledger,
    ) {
        let oldest = self.under_way.first().or(self.queue.front());
        if self.is_behind || oldest.is_none_or(|event| event.came_ms >= before_ms) {
            return;
        }
        let waiting: Vec<Queued> = self.under_way.iter().chain(&self.queue).copied().collect();
        for event in waiting {
            self.owe(server, event.room, event.pos, ledger);
        }
    }

    /// Events that are in memory only.
    pub(super) fn unnoted(&self) -> impl Iterator<Item = &Queued> {
        let is_noted = |event: &&Queued| {
            self.owed.get(&event.room).is_some_and(|owed| owed.since <= event.pos)
        };
        self.under_way.iter().chain(&self.queue).filter(move |event| !is_noted(event))
    }

    /// The oldest change of a device list that is in memory only.
    pub(super) fn oldest_device(&self) -> Option<Position> {
        let is_noted =
            |pos: Position| self.owed_devices.as_ref().is_some_and(|owed| owed.max() < pos);
        let all = self.devices.values().chain(&self.devices_under_way);
        all.map(|change| change.pos).filter(|pos| !is_noted(*pos)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> OwnedServerName {
        "b.example".try_into().unwrap()
    }

    fn event(pos: i64, room: i32) -> Queued {
        Queued {
            nid: EventNid(pos),
            pos: Position(pos),
            writer: WriterId(1),
            room: RoomNid(room),
            came_ms: 0,
        }
    }

    fn owed(since: i64) -> Owed {
        Owed { since: Position(since), ahead: None }
    }

    fn told() -> StreamToken {
        StreamToken::default()
    }

    #[test]
    fn a_server_that_answers_owes_the_tables_nothing() {
        let (mut one, mut ledger) = (Destination::default(), Ledger::default());
        for pos in 1..=3 {
            one.add(&server(), event(pos, 1), &mut ledger);
        }
        assert_eq!(one.take_events(2).len(), 2);
        assert_eq!(one.unnoted().count(), 3);
        one.accepted(&server(), CaughtUp::default(), &told(), &mut ledger);
        assert_eq!(one.take_events(2), [event(3, 1)]);
        one.accepted(&server(), CaughtUp::default(), &told(), &mut ledger);
        assert!(one.is_idle() && ledger.is_empty());
    }

    #[test]
    fn a_server_that_fails_costs_one_row_a_room() {
        let (mut one, mut ledger) = (Destination::default(), Ledger::default());
        one.add(&server(), event(1, 1), &mut ledger);
        one.add(&server(), event(2, 2), &mut ledger);
        one.take_events(1);
        one.failed(&server(), 77, &mut ledger);
        assert_eq!(ledger.rooms.len(), 2);
        ledger.rooms.clear();
        for pos in 3..1_000 {
            one.add(&server(), event(pos, 1), &mut ledger);
        }
        assert!(ledger.is_empty() && one.waiting() == 0);
        assert_eq!(one.owed[&RoomNid(1)], owed(1));
    }

    #[test]
    fn a_room_is_settled_if_nothing_has_come_meanwhile() {
        let (mut one, mut ledger) = (Destination::default(), Ledger::default());
        one.add(&server(), event(1, 1), &mut ledger);
        one.take_events(1);
        one.failed(&server(), 0, &mut ledger);
        assert_eq!(one.begin_to_catch_up(9), [(RoomNid(1), owed(1))]);
        one.add(&server(), event(5, 1), &mut ledger);
        let all = CaughtUp { rooms: vec![(RoomNid(1), None)], devices: None };
        one.accepted(&server(), all.clone(), &told(), &mut ledger);
        assert!(one.is_behind, "the event has come while the transaction was under way");
        assert_eq!(ledger.rooms[&(server(), RoomNid(1))], Some(owed(5)), "it has had the others");
        one.begin_to_catch_up(9);
        one.accepted(&server(), all, &told(), &mut ledger);
        assert!(!one.is_behind);
        assert_eq!(ledger.rooms[&(server(), RoomNid(1))], None);
    }

    #[test]
    fn a_change_of_a_slower_writer_is_not_passed_over() {
        let change = |pos: i64| DeviceChange {
            user: UserNid(1),
            user_id: "@a:a.example".to_owned(),
            device_id: "PHONE".to_owned(),
            pos: Position(pos),
            previous: Position(0),
        };
        let at = |pos: i64| StreamToken::at(Position(pos));
        let (mut one, mut ledger) = (Destination::default(), Ledger::default());
        one.add_device(&server(), &change(3), &mut ledger);
        one.failed(&server(), 0, &mut ledger);
        one.begin_to_catch_up(9);
        // Everything up to 9 was read before the other writer's 7 was there.
        one.add_device(&server(), &change(7), &mut ledger);
        let all = CaughtUp { rooms: Vec::new(), devices: Some(at(9)) };
        one.accepted(&server(), all.clone(), &at(9), &mut ledger);
        assert_eq!(one.owed_devices, Some(at(6)));
        one.begin_to_catch_up(9);
        one.accepted(&server(), all, &at(9), &mut ledger);
        assert!(!one.is_behind && one.owed_devices.is_none());
    }

    #[test]
    fn what_waits_for_long_is_noted_and_settled_later() {
        let (mut one, mut ledger) = (Destination::default(), Ledger::default());
        one.add(&server(), event(4, 1), &mut ledger);
        one.take_events(1);
        one.note_slow(&server(), 1, &mut ledger);
        assert_eq!(one.unnoted().count(), 0);
        one.accepted(&server(), CaughtUp::default(), &told(), &mut ledger);
        assert_eq!(ledger.rooms[&(server(), RoomNid(1))], None);
        assert!(one.owed.is_empty());
    }
}
