//! How rows change what the index knows, and whom they wake. A fold is quick and never waits.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use chatd_base::{EventNid, Position, RoomNid, UserNid, WriterId};
use chatd_streams::{
    Frame, Key, Picky, Stream, StreamToken, Streams,
    account_data::AccountData,
    device_lists::DeviceLists,
    events::{self, EventRow, Events, Extent, Membership, MembershipChange},
    presence::Presence,
    push_rules::PushRules,
    receipts::Receipts,
    to_device::ToDevice,
    typing::Typing,
};
use chatd_users::ignored;

use crate::index::{Index, Live, State, Step};

/// Makes `index` see every row of every stream.
pub(crate) fn attach(index: &Arc<Index>, streams: &Streams) {
    macro_rules! retire {
        ($feed:ident $of_token:ident) => {
            let index = index.clone();
            streams.$feed.on_retired(move |writer| {
                let State { writers, now, .. } = &mut *index.lock();
                writers.$feed.remove(&writer);
                now.$of_token = StreamToken::from_writers(&writers.$feed);
            });
        };
    }
    macro_rules! fold {
        ($($feed:ident $function:ident $missed:ident;)*) => {$({
            let (seen, missed) = (index.clone(), index.clone());
            streams.$feed.on_rows(move |frame| seen.lock().$function(frame));
            streams.$feed.on_skipped(move |writer, upto| missed.lock().$missed(writer, upto));
            retire!($feed $feed);
        })*};
    }
    let (view, seen, index_of_events) = (index.clone(), index.clone(), index.clone());
    streams.events.on_wanted_rows(view, move |frame| seen.lock().fold_events(frame));
    let missed = move |writer, upto| index_of_events.lock().miss_events(writer, upto);
    streams.events.on_skipped(missed);
    retire!(events room);
    fold! {
        typing fold_typing miss_typing;
        receipts fold_receipts miss_receipts;
        account_data fold_account_data miss_account_data;
        push_rules fold_push_rules miss_push_rules;
        presence fold_presence miss_presence;
        device_lists fold_device_lists miss_device_lists;
        to_device fold_to_device miss_to_device;
    }
}

/// Messages in rooms where nobody is whom this instance serves need not be read: who comes later
/// finds them in the tables.
impl Picky for Index {
    fn wants(&self, keys: &BTreeSet<Key>) -> bool {
        let state = self.lock();
        keys.iter().any(|key| matches!(key, Key::Room(room) if !state.served_in(*room).is_empty()))
    }

    fn pass(&self, writer: WriterId, upto: Position, keys: &BTreeSet<Key>) {
        let mut state = self.lock();
        for key in keys {
            if let Key::Room(room) = key {
                state.events.pass(*room, writer, upto);
            }
        }
        let State { writers, now, .. } = &mut *state;
        writers.events.insert(writer, upto);
        now.room = StreamToken::from_writers(&writers.events);
    }
}

/// Moves one stream's part of `now`.
fn advance<S: Stream>(
    writers: &mut BTreeMap<WriterId, Position>,
    now: &mut StreamToken,
    frame: &Frame<S>,
) {
    writers.insert(frame.writer, frame.position);
    *now = StreamToken::from_writers(writers);
}

/// What a row weighs besides its JSON.
const ROW: usize = 256;

impl State {
    fn fold_events(&mut self, frame: &Frame<Events>) {
        let mut concerned = HashSet::new();
        for (at, row) in frame.rows.iter() {
            self.fold_membership(frame.writer, *at, row, &mut concerned);
            self.fold_extent(frame.writer, *at, row);
            self.fold_unread(*at, row);
            self.note_altered(row);
            let bytes = row.content.get().len() + 2 * ROW;
            let live = Live {
                event: Arc::new(events::stored(*at, row)),
                row: row.clone(),
                altered: false,
            };
            self.events.push(row.room, frame.writer, *at, live, bytes);
            concerned.extend(self.served_in(row.room));
        }
        advance(&mut self.writers.events, &mut self.now.room, frame);
        self.wake_all(concerned);
    }

    fn fold_membership(
        &mut self,
        writer: WriterId,
        at: Position,
        row: &EventRow,
        concerned: &mut HashSet<UserNid>,
    ) {
        let own = row.membership.as_ref().map(|change| (row.nid, change));
        let resolved = row.resolved_members.iter().map(|(event, change)| (*event, change));
        for (event, change) in own.into_iter().chain(resolved) {
            self.fold_member(writer, at, row, event, change, concerned);
        }
    }

    fn fold_member(
        &mut self,
        writer: WriterId,
        at: Position,
        row: &EventRow,
        event: EventNid,
        change: &MembershipChange,
        concerned: &mut HashSet<UserNid>,
    ) {
        self.membership_changes = self.membership_changes.wrapping_add(1);
        self.summaries.remove(&row.room);
        let Some(view) = self.views.get_mut(&change.user) else { return };
        concerned.insert(change.user);
        view.apply(Step {
            room: row.room,
            room_id: row.room_id.clone(),
            writer,
            at,
            before: change.before,
            now: change.now,
            event,
            inviter: (event == row.nid && change.now == Membership::Invite)
                .then(|| row.sender.clone()),
            stripped: change.stripped.clone(),
            is_partial: row.extent == Extent::Partial,
        });
        if matches!(change.now, Membership::Leave | Membership::Ban) {
            self.stop_serving(row.room, change.user);
        } else {
            self.serve(row.room, change.user);
        }
    }

    /// The members of a room that was joined without them have come.
    fn fold_extent(&mut self, writer: WriterId, at: Position, row: &EventRow) {
        if row.extent != Extent::Completed {
            return;
        }
        self.membership_changes = self.membership_changes.wrapping_add(1);
        self.summaries.remove(&row.room);
        for view in self.views.values_mut() {
            view.extents.complete(row.room, writer, at);
        }
        // Views that are being read may have been told the contrary.
        self.misses += 1;
    }

    fn fold_unread(&mut self, at: Position, row: &EventRow) {
        for user in row.notify.iter() {
            let unread = self.views.get_mut(user).and_then(|view| view.unread.get_mut(&row.room));
            if let Some(unread) = unread {
                unread.push(at, row.thread.as_ref(), row.highlight.contains(user));
            }
        }
    }

    /// Events in memory that are redacted, edited or answered are from now on read from the
    /// tables, which say what they have become. Names and topics change what a summary says.
    fn note_altered(&mut self, row: &EventRow) {
        if matches!(&*row.kind, "m.room.name" | "m.room.canonical_alias") {
            self.summaries.remove(&row.room);
        }
        let bundled = row.relation.as_ref().filter(|relation| relation.rel_type != "m.annotation");
        let targets = [row.redacts.as_ref(), bundled.map(|relation| &relation.event_id)];
        for target in targets.into_iter().flatten() {
            for live in self.events.held_mut(&row.room) {
                if live.value.event.event_id == *target {
                    live.value.altered = true;
                }
            }
        }
    }

    fn fold_typing(&mut self, frame: &Frame<Typing>) {
        for (at, row) in frame.rows.iter() {
            // It is told more than once, in case that the bus loses it.
            if self.typing.newest(&row.room).is_some_and(|known| known.value.users == row.users) {
                continue;
            }
            self.typing.push(row.room, frame.writer, *at, Arc::new(row.clone()), ROW);
            self.wake_room(row.room);
        }
        advance(&mut self.writers.typing, &mut self.now.typing, frame);
    }

    fn fold_receipts(&mut self, frame: &Frame<Receipts>) {
        advance(&mut self.writers.receipts, &mut self.now.receipts, frame);
        for (at, row) in frame.rows.iter() {
            if !self.furthest.advances(row) {
                continue;
            }
            self.receipts.push(row.room, frame.writer, *at, Arc::new(row.clone()), ROW);
            if let Some(view) = self.views.get_mut(&row.user) {
                if let Some(unread) = view.unread.get_mut(&row.room) {
                    unread.read(row.thread.as_deref(), row.event_pos);
                }
                view.wake();
            }
            if !row.is_private {
                self.wake_room(row.room);
            }
        }
    }

    fn fold_account_data(&mut self, frame: &Frame<AccountData>) {
        advance(&mut self.writers.account_data, &mut self.now.account_data, frame);
        for (at, row) in frame.rows.iter() {
            let bytes = row.content.get().len() + ROW;
            self.account_data.push(row.user, frame.writer, *at, Arc::new(row.clone()), bytes);
            let Some(view) = self.views.get_mut(&row.user) else { continue };
            if row.room.is_none() && row.kind == ignored::KIND {
                view.ignored = Some(Arc::new(ignored::parse(row.content.get())));
            }
            view.wake();
        }
    }

    fn fold_push_rules(&mut self, frame: &Frame<PushRules>) {
        advance(&mut self.writers.push_rules, &mut self.now.push_rules, frame);
        for (at, row) in frame.rows.iter() {
            let bytes = row.rules.get().len() + ROW;
            self.push_rules.push(row.user, frame.writer, *at, row.rules.clone(), bytes);
            self.wake_user(row.user);
        }
    }

    fn fold_presence(&mut self, frame: &Frame<Presence>) {
        advance(&mut self.writers.presence, &mut self.now.presence, frame);
        for (at, row) in frame.rows.iter() {
            self.presence.push(row.user, frame.writer, *at, Arc::new(row.clone()), ROW);
            self.wake_sharing(row.user);
        }
    }

    fn fold_device_lists(&mut self, frame: &Frame<DeviceLists>) {
        advance(&mut self.writers.device_lists, &mut self.now.device_lists, frame);
        for (at, row) in frame.rows.iter() {
            self.device_lists.push(row.user, frame.writer, *at, row.user_id.clone(), ROW);
            self.wake_sharing(row.user);
        }
    }

    fn fold_to_device(&mut self, frame: &Frame<ToDevice>) {
        advance(&mut self.writers.to_device, &mut self.now.to_device, frame);
        for (at, row) in frame.rows.iter().filter(|(_, row)| row.server.is_none()) {
            let key = (row.user, row.device_id.clone());
            let bytes = row.message.get().len() + ROW;
            self.to_device.push(key, frame.writer, *at, row.message.clone(), bytes);
            self.wake_user(row.user);
        }
    }

    fn wake_user(&self, user: UserNid) {
        if let Some(view) = self.views.get(&user) {
            view.wake();
        }
    }

    fn wake_room(&self, room: RoomNid) {
        for user in self.served_in(room) {
            self.wake_user(*user);
        }
    }

    fn wake_all(&self, users: HashSet<UserNid>) {
        for user in users {
            self.wake_user(user);
        }
    }

    /// Wakes `user` and whoever shares a room with it.
    fn wake_sharing(&self, user: UserNid) {
        let Some(view) = self.view(user) else {
            // Its rooms are not known here: whoever waits finds out.
            self.views.values().for_each(crate::index::View::wake);
            return;
        };
        view.wake();
        self.wake_all(view.rooms.keys().flat_map(|room| self.served_in(*room)).copied().collect());
    }
}
