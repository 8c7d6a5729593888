//! What the index does when rows have passed it by (R4): it raises what its logs are complete
//! from, forgets what may be stale, and wakes everybody to look at the tables.

use std::{collections::BTreeMap, sync::Arc};

use chatd_base::{Position, WriterId};
use chatd_streams::StreamToken;

use crate::index::{Extents, State, View};

/// Moves one stream's part of `now`.
fn advance(
    writers: &mut BTreeMap<WriterId, Position>,
    now: &mut StreamToken,
    writer: WriterId,
    upto: Position,
) {
    writers.insert(writer, upto);
    *now = StreamToken::from_writers(writers);
}

/// Streams of which memory holds nothing but their log.
macro_rules! miss_in_log {
    ($($function:ident $stream:ident;)*) => {$(
        pub(crate) fn $function(&mut self, writer: WriterId, upto: Position) {
            self.$stream.miss(writer, upto);
            advance(&mut self.writers.$stream, &mut self.now.$stream, writer, upto);
            self.wake_everybody();
        }
    )*};
}

impl State {
    miss_in_log! {
        miss_typing typing;
        miss_push_rules push_rules;
        miss_presence presence;
        miss_device_lists device_lists;
        miss_to_device to_device;
    }

    /// Memberships, counts and summaries may have changed, and events in memory may have been
    /// redacted or edited.
    pub(crate) fn miss_events(&mut self, writer: WriterId, upto: Position) {
        advance(&mut self.writers.events, &mut self.now.room, writer, upto);
        self.events.restart(self.now.room.clone());
        self.summaries.clear();
        self.membership_changes = self.membership_changes.wrapping_add(1);
        self.forget_views();
    }

    pub(crate) fn miss_receipts(&mut self, writer: WriterId, upto: Position) {
        self.receipts.miss(writer, upto);
        advance(&mut self.writers.receipts, &mut self.now.receipts, writer, upto);
        self.views.values_mut().for_each(|view| view.unread.clear());
        self.wake_everybody();
    }

    /// The list of ignored users may have changed.
    pub(crate) fn miss_account_data(&mut self, writer: WriterId, upto: Position) {
        self.account_data.miss(writer, upto);
        advance(&mut self.writers.account_data, &mut self.now.account_data, writer, upto);
        self.forget_views();
    }

    /// Views are loaded anew when they are next asked for. Who waits stays connected to them.
    fn forget_views(&mut self) {
        self.misses += 1;
        self.served.clear();
        for view in self.views.values_mut() {
            view.is_loaded = false;
            view.rooms = Arc::default();
            view.extents = Extents::default();
            view.steps.clear();
            view.steps_from = self.now.room.clone();
            view.unread.clear();
            view.ignored = None;
        }
        self.wake_everybody();
    }

    fn wake_everybody(&self) {
        self.views.values().for_each(View::wake);
    }
}
