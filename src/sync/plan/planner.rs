//! How a plan is made from memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chatd_base::{Position, RoomNid, UserNid};
use chatd_streams::{
    Raw, StreamToken, account_data::AccountDataRow, events::Membership, presence::PresenceRow,
    receipts::ReceiptRow,
};
use ruma_common::{OwnedRoomId, OwnedUserId};

use super::{Asker, Changed, Person, Plan, Preview, RoomPlan, Rows, Section, Source, path::Path};
use crate::{
    index::{Members, State, Step, View},
    token::SyncToken,
};

/// Makes the plan of an interval. `steps` are the steps of the asker's memberships after `since`
/// if the view does not reach back that far. `None` if the view is not loaded.
pub fn make(
    state: &State,
    asker: &Asker,
    since: Option<&SyncToken>,
    steps: Option<Vec<Step>>,
) -> Option<Plan> {
    let view = state.view(asker.user)?;
    let mut planner = Planner {
        state,
        view,
        asker,
        members: visible(view, asker),
        rooms: BTreeMap::new(),
        previews: Vec::new(),
    };
    let (mut arrived_in, mut parted_from, mut completed) = (Vec::new(), Vec::new(), Vec::new());
    match since {
        None => planner.everything(),
        Some(since) => {
            let steps = match steps {
                Some(older) => merge_steps(older, view, since, &state.now),
                None => view.steps_since(&since.room)?,
            };
            (arrived_in, parted_from) = planner.stepped(since, steps);
            completed = planner.completed(since, &mut arrived_in);
            planner.changed(since);
            planner.counted(since, &completed);
        }
    }
    let known_receipts_from_tables = !planner.receipts(since, &arrived_in);
    let new_receipts_from_tables = since.is_none() || !arrived_in.is_empty();
    planner.typing(since, &arrived_in);
    let account_data = planner.account_data(since, &arrived_in);
    let (arrivals, departures) = planner.travellers(since, &arrived_in);
    Some(Plan {
        since: since.cloned(),
        now: state.now.clone(),
        presence: planner.presence(since),
        device_lists: planner.device_lists(since),
        ignored: view.ignored.clone().unwrap_or_default(),
        rooms: planner.rooms,
        previews: planner.previews,
        members: planner.members,
        arrived_in,
        parted_from,
        completed,
        new_receipts_from_tables,
        known_receipts_from_tables,
        account_data,
        push_rules: push_rules(state, asker, since),
        arrivals,
        departures,
    })
}

/// The asker's push rules, if they are news: those that memory has, else word that the tables have them.
fn push_rules(state: &State, asker: &Asker, since: Option<&SyncToken>) -> Option<Option<Raw>> {
    let Some(since) = since else { return Some(None) };
    match state.push_rules.since(&asker.user, &since.push_rules) {
        Some(rows) => rows.last().map(|row| Some(row.value.clone())),
        None => Some(None),
    }
}

/// Steps that were read from the tables and those that came since, each once, none beyond `now`.
fn merge_steps(older: Vec<Step>, view: &View, since: &SyncToken, now: &SyncToken) -> Vec<Step> {
    let mut steps: BTreeMap<(Position, RoomNid), Step> = BTreeMap::new();
    for step in older.into_iter().chain(view.steps.iter().cloned()) {
        let is_inside =
            now.room.covers(step.writer, step.at) && !since.room.covers(step.writer, step.at);
        if is_inside {
            steps.insert((step.at, step.room), step);
        }
    }
    steps.into_values().collect()
}

/// The rooms that the asker may be told of: whoever wants all members of a room is not told of it
/// before they are known.
fn visible(view: &View, asker: &Asker) -> Arc<Members> {
    let partial = &view.extents.partial;
    if partial.is_empty() || asker.filter.lazy_load_members() {
        return view.rooms.clone();
    }
    let rooms = view.rooms.iter().filter(|(room, _)| !partial.contains(*room));
    Arc::new(rooms.map(|(room, member)| (*room, member.clone())).collect())
}

struct Planner<'a> {
    state: &'a State,
    view: &'a View,
    asker: &'a Asker,
    members: Arc<Members>,
    rooms: BTreeMap<RoomNid, RoomPlan>,
    previews: Vec<Preview>,
}

impl Planner<'_> {
    fn now(&self) -> Position {
        self.state.now.room.max()
    }

    fn room(&mut self, room: RoomNid, room_id: &OwnedRoomId, low: Position) -> &mut RoomPlan {
        let high = self.now();
        self.rooms.entry(room).or_insert_with(|| RoomPlan::joined(room, room_id, low, high))
    }

    /// Whether the asker ignores who has invited it.
    fn is_ignored(&self, inviter: Option<&OwnedUserId>) -> bool {
        let ignored = self.view.ignored.as_ref();
        ignored.zip(inviter).is_some_and(|(ignored, inviter)| ignored.contains(inviter))
    }

    /// The plan of a room that the asker is joined to; `None` if the filter leaves it out.
    fn joined_room(&mut self, room: RoomNid, since: Option<&SyncToken>) -> Option<&mut RoomPlan> {
        let member = self.members.get(&room).filter(|m| m.membership == Membership::Join)?;
        if !self.asker.filter.wants_room(&member.room_id) {
            return None;
        }
        let low = since.map_or(RoomPlan::UNSEEN, |since| since.room.min);
        let room_id = member.room_id.clone();
        Some(self.room(room, &room_id, low))
    }

    /// An initial sync.
    fn everything(&mut self) {
        let rooms: Vec<_> = self.members.iter().map(|(r, m)| (*r, m.clone())).collect();
        for (room, member) in rooms {
            if member.membership == Membership::Join {
                if let Some(plan) = self.joined_room(room, None) {
                    plan.is_new = true;
                    plan.source = Source::Tables;
                }
            } else if self.asker.filter.wants_room(&member.room_id)
                && !self.is_ignored(member.inviter.as_ref())
            {
                self.previews.push(Preview {
                    room,
                    room_id: member.room_id.clone(),
                    is_knock: member.membership == Membership::Knock,
                    stripped: None,
                });
            }
        }
    }

    /// Rooms in which the asker's own membership changed. Returns those that were joined and
    /// those that were left.
    fn stepped(&mut self, since: &SyncToken, steps: Vec<Step>) -> (Vec<RoomNid>, Vec<RoomNid>) {
        let mut by_room: BTreeMap<RoomNid, Vec<Step>> = BTreeMap::new();
        for step in steps {
            by_room.entry(step.room).or_default().push(step);
        }
        let (mut arrived, mut parted) = (Vec::new(), Vec::new());
        for (room, steps) in by_room {
            let path = Path::of(&steps);
            if matches!(path, Path::Arrived { .. }) && !self.is_joined(room) {
                continue;
            }
            match path {
                Path::Stayed => continue,
                Path::Arrived { .. } => arrived.push(room),
                Path::Parted { .. } => parted.push(room),
                Path::Previewed | Path::Dismissed => {}
            }
            let last = steps.last().expect("a room is here because of a step");
            if !self.asker.filter.wants_room(&last.room_id) {
                continue;
            }
            match path {
                Path::Stayed => {}
                Path::Arrived { was_known } => {
                    let low = if was_known { since.room.min } else { RoomPlan::UNSEEN };
                    let plan = self.room(room, &last.room_id, low);
                    plan.is_new = true;
                    plan.source = Source::Tables;
                }
                Path::Previewed if self.is_ignored(last.inviter.as_ref()) => {}
                Path::Previewed => self.previews.push(Preview {
                    room,
                    room_id: last.room_id.clone(),
                    is_knock: last.now == Membership::Knock,
                    stripped: last.stripped.clone(),
                }),
                Path::Parted { at, was_known } => {
                    let low = if was_known { since.room.min } else { RoomPlan::UNSEEN };
                    let plan = self.room(room, &last.room_id, low);
                    plan.section = Section::Leave;
                    plan.high = at;
                    plan.is_new = !was_known;
                    plan.source = Source::Tables;
                }
                Path::Dismissed => {
                    let low = Position(last.at.0 - 1);
                    let plan = self.room(room, &last.room_id, low);
                    plan.section = Section::Leave;
                    plan.high = last.at;
                    plan.source = Source::Tables;
                }
            }
        }
        (arrived, parted)
    }

    fn is_joined(&self, room: RoomNid) -> bool {
        self.members.get(&room).is_some_and(|member| member.membership == Membership::Join)
    }

    /// Rooms whose members have come: those that the client knows. To others they are new.
    fn completed(&mut self, since: &SyncToken, arrived: &mut Vec<RoomNid>) -> Vec<RoomNid> {
        let mut completed = self.view.extents.completed_since(&since.room);
        completed.retain(|room| self.is_joined(*room) && !arrived.contains(room));
        if self.asker.filter.lazy_load_members() {
            return completed;
        }
        for room in completed {
            arrived.push(room);
            if let Some(plan) = self.joined_room(room, None) {
                plan.is_new = true;
                plan.source = Source::Tables;
            }
        }
        Vec::new()
    }

    /// Has the client told how many members there are in these rooms.
    fn counted(&mut self, since: &SyncToken, completed: &[RoomNid]) {
        for room in completed {
            if let Some(plan) = self.joined_room(*room, Some(since)) {
                plan.is_completed = true;
            }
        }
    }

    /// Rooms with new events that the asker was in all the time.
    fn changed(&mut self, since: &SyncToken) {
        let all = || self.members.keys().copied().collect::<Vec<_>>();
        let changed = self.state.events.changed_since(&since.room);
        let is_known = changed.is_some();
        let rooms = match changed {
            Some(changed) if !self.asker.full_state => changed,
            _ => all(),
        };
        for room in rooms {
            if self.rooms.contains_key(&room) {
                continue;
            }
            let source = match self.state.events.since(&room, &since.room) {
                Some(rows) => Source::Memory(rows.map(|row| row.value.clone()).collect()),
                None => Source::Tables,
            };
            if is_known
                && !self.asker.full_state
                && matches!(&source, Source::Memory(r) if r.is_empty())
            {
                continue;
            }
            if let Some(plan) = self.joined_room(room, Some(since)) {
                plan.source = source;
            }
        }
    }

    /// Adds the receipts that memory has; false if it does not have all.
    fn receipts(&mut self, since: Option<&SyncToken>, arrived: &[RoomNid]) -> bool {
        let Some(since) = since else { return true };
        let Some(changed) = self.state.receipts.changed_since(&since.receipts) else {
            return false;
        };
        for room in changed {
            if arrived.contains(&room) {
                continue;
            }
            let rows = self.state.receipts.since(&room, &since.receipts).into_iter().flatten();
            let user = self.asker.user;
            let seen = |row: &Arc<ReceiptRow>| !row.is_private || row.user == user;
            let rows: Vec<_> = rows.map(|row| row.value.clone()).filter(seen).collect();
            if rows.is_empty() {
                continue;
            }
            if let Some(plan) = self.joined_room(room, Some(since)) {
                plan.receipts = rows;
            }
        }
        true
    }

    fn typing(&mut self, since: Option<&SyncToken>, arrived: &[RoomNid]) {
        let changed = since.and_then(|since| self.state.typing.changed_since(&since.typing));
        let rooms: Vec<RoomNid> = match changed {
            Some(mut changed) => {
                changed.extend(arrived);
                changed
            }
            None => self.members.keys().copied().collect(),
        };
        for room in rooms {
            let Some(row) = self.state.typing.newest(&room).map(|row| row.value.clone()) else {
                continue;
            };
            // That nobody types is news to who may have been told of somebody, also after a gap.
            let is_news = since.is_some() && !arrived.contains(&room);
            if !is_news && row.users.is_empty() {
                continue;
            }
            if let Some(plan) = self.joined_room(room, since) {
                plan.typing = Some(row);
            }
        }
    }

    /// Puts account data of rooms into their plans; returns what is global.
    fn account_data(
        &mut self,
        since: Option<&SyncToken>,
        arrived: &[RoomNid],
    ) -> Rows<Arc<AccountDataRow>> {
        let Some(since) = since else { return Rows::Tables };
        let rows = self.state.account_data.since(&self.asker.user, &since.account_data);
        let Some(rows) = rows.filter(|_| arrived.is_empty()) else { return Rows::Tables };
        let mut latest: HashMap<(Option<RoomNid>, &str), &Arc<AccountDataRow>> = HashMap::new();
        for row in rows {
            latest.insert((row.value.room, &row.value.kind), &row.value);
        }
        let mut global = Vec::new();
        for row in latest.into_values() {
            match row.room {
                None => global.push(row.clone()),
                Some(room) => {
                    if let Some(plan) = self.joined_room(room, Some(since)) {
                        plan.account_data.push((row.kind.clone(), row.content.clone()));
                    }
                }
            }
        }
        global.sort_by(|a, b| a.kind.cmp(&b.kind));
        Rows::Memory(global)
    }

    /// Other users who came into or left rooms that the asker was in all the time, whether the
    /// filter wants these rooms or not.
    fn travellers(
        &self,
        since: Option<&SyncToken>,
        arrived: &[RoomNid],
    ) -> (Rows<Person>, Vec<Person>) {
        let (mut came, mut left) = (Vec::new(), Vec::new());
        let Some(since) = since else { return (Rows::Memory(came), left) };
        let Some(changed) = self.state.events.changed_since(&since.room) else {
            return (Rows::Tables, left);
        };
        let stayed =
            changed.iter().filter(|room| self.is_joined(**room) && !arrived.contains(room));
        for room in stayed {
            let Some(rows) = self.state.events.since(room, &since.room) else {
                return (Rows::Tables, Vec::new());
            };
            for change in rows.flat_map(|row| row.value.memberships()) {
                let joined = |membership| membership == Some(Membership::Join);
                match (joined(change.before), joined(Some(change.now))) {
                    (false, true) => came.push((change.user, change.user_id.clone())),
                    (true, false) => left.push((change.user, change.user_id.clone())),
                    _ => {}
                }
            }
        }
        (Rows::Memory(came), left)
    }

    fn shares(&self, user: UserNid) -> Option<bool> {
        if user == self.asker.user {
            return Some(true);
        }
        self.state.view(user).map(|other| self.view.shares_room_with(other))
    }

    fn presence(&self, since: Option<&SyncToken>) -> Rows<Changed<Arc<PresenceRow>>> {
        let since: Option<&StreamToken> = since.map(|since| &since.presence);
        let changed = since.and_then(|since| self.state.presence.changed_since(since));
        let Some(changed) = changed else { return Rows::Tables };
        let rows = changed.into_iter().filter_map(|user| {
            let value = self.state.presence.newest(&user)?.value.clone();
            Some(Changed { user, value, shares: self.shares(user) })
        });
        Rows::Memory(rows.filter(|row| row.shares != Some(false)).collect())
    }

    fn device_lists(&self, since: Option<&SyncToken>) -> Rows<Changed<OwnedUserId>> {
        let Some(since) = since else { return Rows::Memory(Vec::new()) };
        let Some(changed) = self.state.device_lists.changed_since(&since.device_lists) else {
            return Rows::Tables;
        };
        let rows = changed.into_iter().filter_map(|user| {
            let value = self.state.device_lists.newest(&user)?.value.clone();
            Some(Changed { user, value, shares: self.shares(user) })
        });
        Rows::Memory(rows.filter(|row| row.shares != Some(false)).collect())
    }
}
