//! The state of rooms in an answer: all of it, what changed, or the members that a lazy client
//! needs for what it is shown.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{EventNid, KeyNid, Position, Result, RoomNid};
use chatd_storage::{
    Pool,
    events::{self, StoredEvent},
    sync::{self, Members, SummaryRow},
};
use ruma_common::OwnedUserId;

use crate::{
    index::Live,
    lazy::GivenMembers,
    plan::{Asker, Plan, RoomPlan, Section},
    summary,
    timeline::{Timeline, Timelines},
};

/// State events by room.
pub type States = BTreeMap<RoomNid, Vec<Arc<StoredEvent>>>;

/// What has to be read from the tables.
#[derive(Default)]
struct Needs {
    full: Vec<(RoomNid, Position)>,
    changes: Vec<(RoomNid, Position, Position)>,
    /// Members of rooms whose whole state is read, and of others.
    of_full: Vec<(RoomNid, String)>,
    members: Vec<(RoomNid, String, Position)>,
}

/// Reads the state sections. No query if nothing but memory's events is needed, else at most four.
pub async fn read(
    pool: &Pool,
    given: &GivenMembers,
    asker: &Asker,
    plan: &Plan,
    timelines: &Timelines,
    summaries: &BTreeMap<RoomNid, Arc<SummaryRow>>,
) -> Result<States> {
    let mut states = States::new();
    let mut needs = Needs::default();
    for room in plan.rooms.values() {
        let Some(timeline) = timelines.by_room.get(&room.room) else { continue };
        if !asker.filter.room.state.allows_room(&room.room_id) {
            continue;
        }
        let wanted = Wanted { asker, plan, given, room, timeline };
        states.insert(room.room, wanted.gather(&mut needs));
        if asker.filter.lazy_load_members() && room.section == Section::Join {
            wanted.gather_members(summaries.get(&room.room).map(|s| &**s), &mut needs);
        }
    }
    read_needs(pool, &needs, &mut states).await?;
    for (room, events) in &mut states {
        let timeline = &timelines.by_room[room];
        let mut seen = HashSet::new();
        events.retain(|event| {
            seen.insert(event.nid)
                && asker.filter.room.state.allows(event)
                && (asker.state_after.is_some() || !timeline.contains(event))
        });
        events.sort_by_key(|event| event.pos);
    }
    note_given(given, asker, plan, timelines, &states);
    Ok(states)
}

/// One room's part.
struct Wanted<'a> {
    asker: &'a Asker,
    plan: &'a Plan,
    given: &'a GivenMembers,
    room: &'a RoomPlan,
    timeline: &'a Timeline,
}

impl Wanted<'_> {
    /// Up to where the state is told: to the end if the client asks for that, or if its timeline
    /// leaves out events by their type, so that state among them is not lost.
    fn end(&self) -> Position {
        let filter = &self.asker.filter.room.timeline;
        let is_selective = filter.is_selective(&self.room.room_id);
        if self.asker.state_after.is_some() || is_selective {
            self.room.high
        } else {
            self.timeline.start
        }
    }

    /// Adds to `needs` what only the tables have; returns what memory has.
    fn gather(&self, needs: &mut Needs) -> Vec<Arc<StoredEvent>> {
        let end = self.end();
        if self.room.is_new || self.asker.full_state {
            needs.full.push((self.room.room, end));
            return Vec::new();
        }
        let has_gap = self.timeline.limited || end == self.room.high;
        if !has_gap {
            return Vec::new();
        }
        match self.timeline.live.as_deref().and_then(|live| changes_in(live, end)) {
            Some(changes) => changes,
            None => {
                needs.changes.push((self.room.room, self.room.low, end));
                Vec::new()
            }
        }
    }

    /// The senders that are shown, the heroes, and for a new room the asker.
    fn gather_members(&self, summary: Option<&SummaryRow>, needs: &mut Needs) {
        let mut users: BTreeSet<String> =
            self.timeline.events.iter().map(|shown| shown.event.sender.to_string()).collect();
        if let Some(summary) = summary {
            users
                .extend(summary::heroes(summary, self.asker).iter().map(|user| (*user).to_owned()));
        }
        let is_full = self.room.is_new || self.asker.full_state;
        if is_full {
            users.insert(self.asker.user_id.to_string());
        }
        let room = self.room.room;
        if is_full {
            needs.of_full.extend(users.into_iter().map(|user| (room, user)));
            return;
        }
        let (at, has) = (self.end(), self.confirmed());
        let missing = users.into_iter().filter(|user| !has.iter().any(|h| h == user.as_str()));
        needs.members.extend(missing.map(|user| (room, user, at)));
    }

    /// Users whose member events the device has and need not be sent again.
    fn confirmed(&self) -> HashSet<OwnedUserId> {
        match (&self.asker.device, &self.plan.since) {
            (Some(device), Some(since))
                if !self.asker.filter.room.state.include_redundant_members =>
            {
                self.given.confirmed(self.asker.user, device, self.room.room, &since.room)
            }
            _ => HashSet::new(),
        }
    }
}

/// The last state event of each key up to `end`; `None` if memory does not know all of it.
fn changes_in(live: &[Live], end: Position) -> Option<Vec<Arc<StoredEvent>>> {
    let mut last: BTreeMap<KeyNid, Arc<StoredEvent>> = BTreeMap::new();
    for live in live.iter().filter(|live| live.event.pos <= end) {
        if !live.row.resolved.is_empty() {
            return None;
        }
        if let (Some(key), true) = (live.row.key, live.row.is_current) {
            last.insert(key, live.event.clone());
        }
    }
    let mut events: Vec<_> = last.into_values().collect();
    events.sort_by_key(|event| event.pos);
    Some(events)
}

async fn read_needs(pool: &Pool, needs: &Needs, states: &mut States) -> Result<()> {
    let mut found: Vec<(RoomNid, EventNid)> = Vec::new();
    if !needs.full.is_empty() {
        let only: Vec<(RoomNid, &str)> =
            needs.of_full.iter().map(|(room, user)| (*room, user.as_str())).collect();
        let members = if only.is_empty() { Members::All } else { Members::Only(&only) };
        found.extend(sync::list_state_at(pool, &needs.full, members).await?);
    }
    if !needs.changes.is_empty() {
        found.extend(sync::list_state_changes(pool, &needs.changes).await?);
    }
    if !needs.members.is_empty() {
        let members: Vec<(RoomNid, &str, Position)> =
            needs.members.iter().map(|(room, user, at)| (*room, user.as_str(), *at)).collect();
        found.extend(sync::list_members_at(pool, &members).await?);
    }
    if found.is_empty() {
        return Ok(());
    }
    let nids: Vec<EventNid> = found.iter().map(|(_, event)| *event).collect();
    let by_nid: HashMap<EventNid, Arc<StoredEvent>> =
        events::list_by_nids(pool, &nids).await?.into_iter().map(|e| (e.nid, e)).collect();
    for (room, nid) in found {
        if let (Some(event), Some(events)) = (by_nid.get(&nid), states.get_mut(&room)) {
            events.push(event.clone());
        }
    }
    Ok(())
}

/// Remembers whose member events the device gets with this answer.
fn note_given(
    given: &GivenMembers,
    asker: &Asker,
    plan: &Plan,
    timelines: &Timelines,
    states: &States,
) {
    let Some(device) = asker.device.as_ref().filter(|_| asker.filter.lazy_load_members()) else {
        return;
    };
    for room in plan.rooms.values() {
        if room.is_new {
            given.forget(asker.user, device, room.room);
        }
        let shown = timelines.by_room.get(&room.room).into_iter().flat_map(|t| &t.events);
        let state = states.get(&room.room).into_iter().flatten();
        let members: Vec<OwnedUserId> = shown
            .map(|shown| &shown.event)
            .chain(state)
            .filter(|event| &*event.kind == "m.room.member")
            .filter_map(|event| event.state_key.as_deref()?.try_into().ok())
            .collect();
        if !members.is_empty() {
            let at = &plan.now.room;
            given.give(asker.user, device, room.room, at, members.into_iter());
        }
    }
}
