//! Which other servers are in a room, now and just before an event: read once from the tables,
//! then kept true by the stream of events.
//!
//! A room is remembered as it was at the last change that was read, with the changes since. So
//! what was read and what came meanwhile are never counted twice, and the servers before a recent
//! event need no query.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use chatd_base::{Position, Result, RoomNid, UserNid};
use chatd_storage::{Pool, hosts};
use chatd_streams::events::{EventRow, Events, Extent, Membership, MembershipChange};
use chatd_streams::{Feed, Frame};
use chatd_users::Users;
use parking_lot::Mutex;
use ruma_common::{OwnedServerName, RoomId};

/// Rooms that are remembered (R8).
const MOST_ROOMS: usize = 20_000;
/// Changes that are remembered of each room.
const MOST_CHANGES: usize = 64;
/// How often a room is read again that is forgotten while it is read.
const ATTEMPTS: usize = 5;

/// Members that each server has in a room.
type Counts = BTreeMap<OwnedServerName, i64>;

/// Other servers in rooms.
pub struct Hosts {
    pool: Pool,
    users: Arc<Users>,
    known: Mutex<Known>,
}

/// What is known of rooms.
#[derive(Default)]
struct Known {
    rooms: HashMap<RoomNid, Hosted>,
    /// How often a room has begun to be known.
    begun: u64,
}

/// A room that is being read, and which time that is: what was read for an earlier time lacks the
/// changes that were noted then.
type Reading = (RoomNid, u64);

/// What is known of one room.
#[derive(Default)]
struct Hosted {
    /// Which time it is that the room is known.
    begun: u64,
    /// As they are now; absent while they are being read.
    now: Option<Arc<Counts>>,
    /// Everything up to there is in `now`, and nothing of it is in `changes`.
    base: Position,
    /// Oldest first.
    changes: VecDeque<Step>,
}

/// A member more or less.
struct Step {
    at: Position,
    server: OwnedServerName,
    by: i64,
}

impl Hosted {
    /// Takes in what one event has changed.
    fn take(&mut self, at: Position, steps: impl IntoIterator<Item = Step>) {
        if self.now.is_some() && at <= self.base {
            return;
        }
        for step in steps {
            if let Some(now) = &mut self.now {
                add(Arc::make_mut(now), &step.server, step.by);
            }
            self.changes.push_back(step);
        }
        // While the room is being read nothing may be passed over.
        while self.now.is_some() && self.changes.len() > MOST_CHANGES {
            if let Some(oldest) = self.changes.pop_front() {
                self.base = self.base.max(oldest.at);
            }
        }
    }

    /// Takes in what was read: everything up to `base`.
    fn fill(&mut self, mut counts: Counts, base: Position) {
        if self.now.is_some() {
            return;
        }
        self.changes.retain(|step| step.at > base);
        for step in &self.changes {
            add(&mut counts, &step.server, step.by);
        }
        (self.now, self.base) = (Some(Arc::new(counts)), base);
    }

    /// The servers just before `at`; `None` if that is too long ago.
    fn before(&self, at: Position) -> Option<Arc<Counts>> {
        let now = self.now.as_ref()?;
        if at <= self.base {
            return None;
        }
        let later: Vec<&Step> = self.changes.iter().filter(|step| step.at >= at).collect();
        if later.is_empty() {
            return Some(now.clone());
        }
        let mut counts = (**now).clone();
        later.iter().for_each(|step| add(&mut counts, &step.server, -step.by));
        Some(Arc::new(counts))
    }
}

fn add(counts: &mut Counts, server: &OwnedServerName, by: i64) {
    let count = counts.entry(server.clone()).or_default();
    *count += by;
    if *count <= 0 {
        counts.remove(server);
    }
}

impl Hosts {
    /// A view that sees every event from now on.
    pub(crate) fn new(users: &Arc<Users>) -> Arc<Self> {
        let events: &Feed<Events> = &users.deps.streams.events;
        let pool = users.deps.pool.clone();
        let hosts = Arc::new(Self { pool, users: users.clone(), known: Mutex::default() });
        let view = hosts.clone();
        // Memberships concern everybody.
        events.on_common_rows(move |frame| view.fold(frame));
        let view = hosts.clone();
        events.on_skipped(move |_, _| view.known.lock().rooms.clear());
        hosts
    }

    fn fold(&self, frame: &Frame<Events>) {
        let mut known = self.known.lock();
        for (at, row) in frame.rows.iter() {
            fold_row(&mut known.rooms, *at, row);
        }
    }

    /// The other servers in a room, those with most members first.
    pub async fn servers_in(&self, room: RoomNid) -> Result<Vec<OwnedServerName>> {
        let counts = self.now(&[room]).await?.pop().unwrap_or_default();
        let mut servers: Vec<(&OwnedServerName, i64)> =
            counts.iter().map(|(server, count)| (server, *count)).collect();
        servers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(servers.into_iter().map(|(server, _)| server.clone()).collect())
    }

    /// The other servers in each of `rooms`. One query at most.
    pub async fn servers_in_all(
        &self,
        rooms: &[RoomNid],
    ) -> Result<Vec<(RoomNid, Vec<OwnedServerName>)>> {
        let all = self.now(rooms).await?;
        let names = |counts: Arc<Counts>| counts.keys().cloned().collect();
        Ok(rooms.iter().copied().zip(all.into_iter().map(names)).collect())
    }

    /// As [`Hosts::servers_in`]; nobody is in a room that is not known.
    pub async fn servers_in_room(&self, room_id: &RoomId) -> Result<Vec<OwnedServerName>> {
        match self.users.room_nids.find(room_id).await? {
            Some(room) => self.servers_in(room).await,
            None => Ok(Vec::new()),
        }
    }

    /// The other servers in each room just before that position, in the order of `at`. One query
    /// at most.
    pub async fn servers_before(
        &self,
        at: &[(RoomNid, Position)],
    ) -> Result<Vec<Vec<OwnedServerName>>> {
        let rooms: Vec<RoomNid> = at.iter().map(|(room, _)| *room).collect();
        self.now(&rooms).await?;
        let mut found: Vec<Option<Vec<OwnedServerName>>> = {
            let known = self.known.lock();
            let names = |counts: Arc<Counts>| counts.keys().cloned().collect();
            at.iter().map(|(room, at)| known.rooms.get(room)?.before(*at).map(names)).collect()
        };
        let old: Vec<(RoomNid, Position)> =
            at.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(at, _)| *at).collect();
        if !old.is_empty() {
            let mut past: HashMap<(RoomNid, Position), Vec<OwnedServerName>> = HashMap::new();
            for (room, at, server) in hosts::list_before(&self.pool, &old).await? {
                let Ok(server) = OwnedServerName::try_from(server) else { continue };
                past.entry((room, at)).or_default().push(server);
            }
            for (slot, at) in found.iter_mut().zip(at).filter(|(slot, _)| slot.is_none()) {
                *slot = Some(past.get(at).cloned().unwrap_or_default());
            }
        }
        Ok(found.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The other servers with which each of these local users shares a room. Two queries at most.
    pub async fn sharing(
        &self,
        users: &[UserNid],
    ) -> Result<HashMap<UserNid, BTreeSet<OwnedServerName>>> {
        let joined = hosts::list_rooms_of(&self.pool, users).await?;
        let rooms: BTreeSet<RoomNid> = joined.iter().map(|(_, room)| *room).collect();
        let rooms: Vec<RoomNid> = rooms.into_iter().collect();
        let counts: HashMap<RoomNid, Arc<Counts>> =
            rooms.iter().copied().zip(self.now(&rooms).await?).collect();
        let mut sharing: HashMap<UserNid, BTreeSet<OwnedServerName>> = HashMap::new();
        for (user, room) in joined {
            if let Some(counts) = counts.get(&room) {
                sharing.entry(user).or_default().extend(counts.keys().cloned());
            }
        }
        Ok(sharing)
    }

    /// The servers in each of `rooms` now, in their order.
    async fn now(&self, rooms: &[RoomNid]) -> Result<Vec<Arc<Counts>>> {
        for _ in 0..ATTEMPTS {
            let reading = self.known.lock().begin(rooms);
            if !reading.is_empty() {
                let missing: Vec<RoomNid> = reading.iter().map(|(room, _)| *room).collect();
                let read = hosts::count(&self.pool, &missing).await?;
                self.known.lock().fill(&reading, read);
            }
            let known = self.known.lock();
            let all: Option<Vec<_>> =
                rooms.iter().map(|room| known.rooms.get(room)?.now.clone()).collect();
            if let Some(all) = all {
                return Ok(all);
            }
        }
        Err(chatd_base::Error::internal("the servers of a room change faster than they are read"))
    }
}

impl Known {
    /// Those of `rooms` that have to be read. From now on their changes are noted.
    fn begin(&mut self, rooms: &[RoomNid]) -> Vec<Reading> {
        let is_missing =
            |room: &&RoomNid| self.rooms.get(*room).is_none_or(|hosted| hosted.now.is_none());
        let missing: BTreeSet<RoomNid> = rooms.iter().filter(is_missing).copied().collect();
        if self.rooms.len() + missing.len() > MOST_ROOMS {
            self.rooms.clear();
        }
        let begin = |room: RoomNid| {
            let hosted = self.rooms.entry(room).or_insert_with(|| {
                self.begun += 1;
                Hosted { begun: self.begun, ..Hosted::default() }
            });
            (room, hosted.begun)
        };
        missing.into_iter().map(begin).collect()
    }

    fn fill(&mut self, rooms: &[Reading], read: Vec<hosts::HostCount>) {
        let mut counts: HashMap<RoomNid, (Counts, Position)> = HashMap::new();
        for row in read {
            let (of_room, last) = counts.entry(row.room).or_default();
            *last = (*last).max(row.last);
            if let Ok(server) = OwnedServerName::try_from(row.server)
                && row.joined > 0
            {
                // One that is said to be in the room may have members that are known.
                let count = of_room.entry(server).or_default();
                *count = row.joined.max(*count);
            }
        }
        for (room, begun) in rooms {
            if let Some(hosted) = self.rooms.get_mut(room).filter(|hosted| hosted.begun == *begun) {
                let (counts, last) = counts.remove(room).unwrap_or_default();
                hosted.fill(counts, last);
            }
        }
    }
}

fn fold_row(rooms: &mut HashMap<RoomNid, Hosted>, at: Position, row: &EventRow) {
    let resolved = row.resolved_members.iter().map(|(_, change)| change);
    if row.extent == Extent::Completed {
        // The members of the room have become known: nothing is only said to be in it any more.
        rooms.remove(&row.room);
    }
    let mut steps = Vec::new();
    for change in row.membership.iter().chain(resolved) {
        let was = change.before == Some(Membership::Join);
        let is = change.now == Membership::Join;
        match change.is_local {
            // With somebody's return the whole room may have come anew, members and all.
            true if is && !was => drop(rooms.remove(&row.room)),
            false if is != was => steps.push(step(at, change, is)),
            _ => {}
        }
    }
    if let Some(hosted) = rooms.get_mut(&row.room) {
        hosted.take(at, steps);
    }
}

fn step(at: Position, change: &MembershipChange, joins: bool) -> Step {
    let server = change.user_id.server_name().to_owned();
    Step { at, server, by: if joins { 1 } else { -1 } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(at: i64, server: &str, by: i64) -> Step {
        Step { at: Position(at), server: server.try_into().unwrap(), by }
    }

    fn names(counts: Option<Arc<Counts>>) -> Option<Vec<String>> {
        Some(counts?.keys().map(ToString::to_string).collect())
    }

    fn at(hosted: &Hosted, position: i64) -> Option<String> {
        names(hosted.before(Position(position))).map(|names| names.join(" "))
    }

    #[test]
    fn what_comes_while_a_room_is_read_counts_once() {
        let mut hosted = Hosted::default();
        hosted.take(Position(5), [step(5, "a", 1)]);
        hosted.take(Position(8), [step(8, "b", 1)]);
        assert_eq!(at(&hosted, 9), None);
        // The tables had been read after the first and before the second.
        hosted.fill(BTreeMap::from([("a".try_into().unwrap(), 2)]), Position(5));
        assert_eq!(at(&hosted, 9).as_deref(), Some("a b"));
        assert_eq!(at(&hosted, 8).as_deref(), Some("a"));
        assert_eq!(at(&hosted, 5), None, "only the tables know");
        hosted.take(Position(5), [step(5, "a", 1)]);
        hosted.take(Position(9), [step(9, "a", -1)]);
        assert_eq!(at(&hosted, 10).as_deref(), Some("a b"));
        hosted.take(Position(10), [step(10, "a", -1)]);
        assert_eq!(at(&hosted, 10).as_deref(), Some("a b"));
        assert_eq!(at(&hosted, 11).as_deref(), Some("b"));
    }

    #[test]
    fn a_room_remembers_a_bounded_number_of_changes() {
        let mut hosted = Hosted::default();
        hosted.fill(Counts::new(), Position(0));
        for number in 1..=200 {
            hosted.take(Position(number), [step(number, "a", 1)]);
        }
        assert_eq!(hosted.changes.len(), MOST_CHANGES);
        assert_eq!(at(&hosted, 136), None);
        assert_eq!(at(&hosted, 137).as_deref(), Some("a"));
    }

    #[test]
    fn an_event_that_changes_more_members_than_are_remembered_changes_all_of_them() {
        let mut hosted = Hosted::default();
        hosted.fill(Counts::new(), Position(0));
        let servers = ["a", "b", "c"];
        let steps = (0..99).map(|number| step(7, servers[number % 3], 1));
        hosted.take(Position(7), steps);
        assert_eq!(at(&hosted, 8).as_deref(), Some("a b c"));
        assert!(hosted.now.iter().all(|now| now.values().eq(&[33, 33, 33])));
        assert_eq!(at(&hosted, 7), None, "only the tables know");
    }

    #[test]
    fn what_was_read_before_a_room_was_forgotten_does_not_count() {
        let (room, mut known) = (RoomNid(1), Known::default());
        let early = known.begin(&[room]);
        known.rooms.clear();
        let late = known.begin(&[room]);
        known.fill(&early, Vec::new());
        assert!(known.rooms[&room].now.is_none());
        let server = "a".to_owned();
        let read = hosts::HostCount { room, server, joined: 1, last: Position(5) };
        known.fill(&late, vec![read]);
        assert_eq!(at(&known.rooms[&room], 6).as_deref(), Some("a"));
    }
}
