//! Ordered logs of facts: who writes them, how far each writer has got, and how new rows reach
//! whoever folds them into a view.
//!
//! A write goes [`Writer`] → one commit (rows and position together, R2) → [`Feed::apply`], which
//! runs the folds in order and only then moves the feed's token forward. So whoever holds a
//! token of a feed knows that every fold has seen all rows at or below it.

pub mod bus;
mod feed;
mod follow;
mod hearsay;
mod interest;
pub mod leases;
mod level;
mod meter;
mod others;
pub mod owners;
mod room_token;
pub mod roster;
pub mod seat;
mod share;
mod token;
mod writer;

pub mod account_data;
pub mod device_lists;
pub mod events;
pub mod presence;
pub mod push_rules;
pub mod receipts;
pub mod to_device;
pub mod typing;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chatd_base::{Calls, Position, Result, Stop, WriterId, tasks};
use chatd_config::StreamName;
use chatd_storage::{
    Pool,
    positions::{self, Seat, Step, StreamId},
};
use parking_lot::RwLock;
use serde_json::value::RawValue;
use tokio::sync::Notify;

pub use feed::{Feed, Frame, Head, Picky, Stream};
pub use interest::{Concerns, Key};
pub use leases::Leases;
pub use level::level;
pub use meter::{LaneMeter, LaneState, StreamState, WriterState};
pub use others::{Colleagues, Others, away};
pub use owners::{Owner, Owners, shard_of};
pub use room_token::RoomToken;
pub use roster::Roster;
pub use share::weight;
pub use token::{InvalidToken, StreamToken};
pub use writer::{Line, Persist, Writer};

/// Serialised JSON that many readers share.
pub type Raw = Arc<RawValue>;

/// All streams of an instance.
pub struct Streams {
    bus: Arc<dyn bus::Bus>,
    /// Asks for a look at the positions in the tables.
    look: Arc<Notify>,
    /// Whether the others do not know yet that this instance writes one of its streams.
    is_new: bool,
    /// What the instances are called that write.
    names: RwLock<BTreeMap<WriterId, String>>,
    /// The streams that this instance writes.
    written: BTreeSet<StreamName>,
    hearsay: hearsay::Hearsay,
    /// What this instance does for the others.
    pub calls: Arc<Calls>,
    /// What it has them do.
    pub others: Arc<Others>,
    /// This instance as a writer.
    pub writer: Seat,
    pub events: Arc<Feed<events::Events>>,
    pub typing: Arc<Feed<typing::Typing>>,
    pub to_device: Arc<Feed<to_device::ToDevice>>,
    pub account_data: Arc<Feed<account_data::AccountData>>,
    pub receipts: Arc<Feed<receipts::Receipts>>,
    pub presence: Arc<Feed<presence::Presence>>,
    pub push_rules: Arc<Feed<push_rules::PushRules>>,
    pub device_lists: Arc<Feed<device_lists::DeviceLists>>,
}

/// Calls `$body` for each stream's feed.
macro_rules! each_feed {
    ($streams:expr, |$feed:ident| $body:expr) => {{
        each_feed!(@ $streams, $feed, $body; events, typing, to_device, account_data, receipts,
            presence, push_rules, device_lists)
    }};
    (@ $streams:expr, $feed:ident, $body:expr; $($name:ident),*) => {{
        $({ let $feed = &$streams.$name; $body; })*
    }};
}
use each_feed;

impl Streams {
    /// Takes the place of any earlier process of this instance, and reads where every writer of
    /// every stream is. `written` are the streams that this instance writes; a [`Writer`] of
    /// another one has it written elsewhere.
    pub async fn open(
        pool: &Pool,
        bus: Arc<dyn bus::Bus>,
        instance: &str,
        written: &BTreeSet<StreamName>,
        stop: &Stop,
    ) -> Result<Self> {
        let writer = positions::take_seat(pool, instance).await?;
        let has_others = bus.patience().is_some();
        let streams = with_table(written);
        positions::retire(pool, &streams, writer.writer).await?;
        let is_new = positions::register(pool, &streams, writer.writer).await? && has_others;
        let known = positions::list(pool).await?;
        Ok(Self {
            look: Arc::default(),
            writer,
            written: written.clone(),
            hearsay: hearsay::Hearsay::default(),
            calls: Arc::default(),
            others: Others::new(stop),
            is_new,
            names: RwLock::new(BTreeMap::from([(writer.writer, instance.to_owned())])),
            events: Feed::new(bus.clone(), &known),
            typing: Feed::new(bus.clone(), &known),
            to_device: Feed::new(bus.clone(), &known),
            account_data: Feed::new(bus.clone(), &known),
            receipts: Feed::new(bus.clone(), &known),
            presence: Feed::new(bus.clone(), &known),
            push_rules: Feed::new(bus.clone(), &known),
            device_lists: Feed::new(bus.clone(), &known),
            bus,
        })
    }

    /// Starts to take in what the other instances write, until `stop`. Called when all views are
    /// attached.
    pub fn follow(self: &Arc<Self>, pool: &Pool, stop: &Stop) {
        self.bus.listen(self, stop);
        if self.has_others() {
            tasks::spawn("positions", follow::run(self.clone(), pool.clone(), stop.clone()));
        }
    }

    /// Whether this instance writes `stream`.
    pub fn writes(&self, stream: StreamName) -> bool {
        self.written.contains(&stream)
    }

    /// Whether there are other instances.
    pub fn has_others(&self) -> bool {
        self.bus.patience().is_some()
    }

    /// Takes note of what instances are called.
    pub(crate) fn name_writers<'a>(&self, names: impl Iterator<Item = (WriterId, &'a str)>) {
        let mut known = self.names.write();
        for (writer, name) in names {
            if known.get(&writer).is_none_or(|known| known != name) {
                known.insert(writer, name.to_owned());
            }
        }
    }

    /// The instance behind a writer; its number if it has not been heard of.
    pub(crate) fn name_of(&self, writer: WriterId) -> String {
        self.names.read().get(&writer).cloned().unwrap_or_else(|| writer.to_string())
    }

    /// Whether the bus works, as far as this instance knows.
    pub(crate) fn is_bus_calm(&self) -> bool {
        self.bus.is_calm()
    }

    /// Has the positions read from the tables soon: something may have been missed.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Folds a frame that another instance has published. Fails if it cannot be read.
    pub(crate) fn receive(
        &self,
        stream: &str,
        head: &Head,
        rows: &[u8],
    ) -> Result<(), serde_json::Error> {
        fn take<S: Stream>(
            feed: &Feed<S>,
            stream: &str,
            head: &Head,
            rows: &[u8],
        ) -> Result<(), serde_json::Error> {
            if stream == S::NAME { feed.take(head, rows) } else { Ok(()) }
        }
        if self.hearsay.hear(stream, rows) {
            return Ok(());
        }
        // Somebody has taken this instance for dead; its next commit finds out.
        if head.writer != self.writer.writer {
            each_feed!(self, |feed| take(feed, stream, head, rows)?);
        }
        Ok(())
    }

    /// Writers of any stream that nobody moves forward any more.
    pub(crate) fn left_behind(&self, living: &[WriterId]) -> Vec<(i16, WriterId)> {
        fn of<S: Stream>(feed: &Feed<S>, living: &[WriterId], found: &mut Vec<(i16, WriterId)>) {
            let stream = S::ID.number;
            found.extend(feed.left_behind(living).into_iter().map(|writer| (stream, writer)));
        }
        let mut found = Vec::new();
        each_feed!(self, |feed| of(feed, living, &mut found));
        found.sort_unstable();
        found
    }

    /// Takes in that writers were moved, and tells the others.
    pub(crate) fn publish_steps(&self, steps: &[Step]) {
        fn publish<S: Stream>(feed: &Feed<S>, steps: &[Step]) {
            let mine = steps.iter().filter(|step| step.stream == S::ID.number);
            mine.for_each(|step| feed.publish_step(step));
        }
        each_feed!(self, |feed| publish(feed, steps));
    }

    /// Takes note of where the writers of room events are, and tells the others before anything
    /// that this instance writes after it.
    pub(crate) fn announce(&self, known: &[(i16, WriterId, Position)]) {
        self.skip_to(known);
        let events = known.iter().filter(|(stream, ..)| *stream == events::Events::ID.number);
        for (_, writer, position) in events.filter(|(_, writer, _)| *writer != self.writer.writer) {
            self.events.announce(*writer, *position);
        }
    }

    /// Forgets writers that write a stream no more, so that tokens need not name them.
    pub(crate) fn retire(&self, retired: &[(i16, WriterId, Position)]) {
        fn of<S: Stream>(feed: &Feed<S>, retired: &[(i16, WriterId, Position)]) {
            let mine = retired.iter().filter(|(id, ..)| *id == S::ID.number);
            mine.for_each(|(_, writer, position)| feed.retire(*writer, *position));
        }
        each_feed!(self, |feed| of(feed, retired));
    }

    /// Takes note of positions that stand in the tables.
    pub(crate) fn skip_to(&self, known: &[(i16, WriterId, Position)]) {
        fn skip<S: Stream>(feed: &Feed<S>, me: WriterId, known: &[(i16, WriterId, Position)]) {
            // What this instance has committed it folds itself, in order.
            let others =
                known.iter().filter(|(id, writer, _)| *id == S::ID.number && *writer != me);
            others.for_each(|(_, writer, position)| feed.skip(*writer, *position));
        }
        each_feed!(self, |feed| skip(feed, self.writer.writer, known));
    }
}

/// Those of `written` that have a table.
fn with_table(written: &BTreeSet<StreamName>) -> Vec<StreamId> {
    fn of<S: Stream>() -> (StreamName, StreamId) {
        (S::KIND, S::ID)
    }
    let all = [
        of::<events::Events>(),
        of::<to_device::ToDevice>(),
        of::<account_data::AccountData>(),
        of::<receipts::Receipts>(),
        of::<presence::Presence>(),
        of::<push_rules::PushRules>(),
        of::<device_lists::DeviceLists>(),
    ];
    all.into_iter().filter(|(kind, _)| written.contains(kind)).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests;
