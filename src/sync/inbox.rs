//! To-device messages: each device gets each message in exactly one interval (R3).
//!
//! What has been put into responses made for a device is noted in the tables. Messages above that
//! mark are delivered whatever token the device shows; those at or below it go when the device
//! comes back with a token that covers them, and are delivered again if it comes back with an
//! older one.
//!
//! Each instance remembers the marks of the devices that sync there. One that a device has come
//! to in between another one's answers may remember too little: it learns that from the statement
//! that notes what it is about to deliver, and delivers only what is right after that.

use std::sync::Arc;

use chatd_base::{Cache, Position, Result, UserNid};
use chatd_storage::{
    Pool,
    sync::{self, Delivered},
    to_device,
};
use chatd_streams::{Raw, StreamToken};
use parking_lot::Mutex;
use ruma_common::OwnedDeviceId;
use serde_json::value::RawValue;

use crate::{
    index::Index,
    plan::{Asker, Plan},
};

/// Messages in one answer.
const MOST_MESSAGES: usize = 100;

/// What is known about the inbox of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Marks {
    /// Up to where messages have been put into responses made for the device.
    delivered: Position,
    /// There is no message in `(delivered, clear]`.
    clear: Position,
    /// Up to where confirmed messages have been removed.
    removed: Position,
}

impl Marks {
    /// Where the next answer begins, for a device that shows `since`. What it has confirmed is
    /// gone, also while memory still has it.
    fn low(self, since: Option<Position>) -> Position {
        let low = match since {
            None => Position(0),
            Some(since) if since < self.delivered => since,
            Some(_) => self.delivered.max(self.clear),
        };
        low.max(self.removed)
    }

    /// With what the tables say, which other instances may have changed.
    fn with(self, known: Delivered) -> Self {
        Self {
            delivered: self.delivered.max(known.delivered),
            removed: self.removed.max(known.removed),
            ..self
        }
    }

    /// Up to where the device has confirmed messages that are still in the tables.
    fn to_remove(self, since: Option<Position>) -> Option<Position> {
        since.map(|since| since.min(self.delivered)).filter(|upto| *upto > self.removed)
    }
}

/// The marks of devices that sync here; bounded.
#[derive(Debug)]
pub struct Inboxes {
    marks: Cache<(UserNid, String), Arc<Mutex<Marks>>>,
}

/// Messages for an answer.
#[derive(Debug, Default)]
pub struct Delivery {
    pub messages: Vec<Raw>,
    /// What the device's next token says about this stream.
    pub upto: StreamToken,
}

impl Inboxes {
    /// `devices`: inboxes that are remembered.
    pub fn new(devices: usize) -> Self {
        Self { marks: Cache::new("to_device_marks", devices) }
    }

    async fn marks(&self, pool: &Pool, user: UserNid, device: &str) -> Result<Arc<Mutex<Marks>>> {
        let key = (user, device.to_owned());
        if let Some(marks) = self.marks.get(&key) {
            return Ok(marks);
        }
        let known = sync::get_delivered(pool, user, device).await?;
        let marks = Arc::new(Mutex::new(Marks::default().with(known)));
        self.marks.insert(key, marks.clone());
        Ok(marks)
    }

    /// Removes what the device has confirmed, and takes what it is to get. On return the mark is
    /// durable. No query if memory knows that there is nothing.
    pub async fn read(
        &self,
        pool: &Pool,
        index: &Index,
        asker: &Asker,
        plan: &Plan,
    ) -> Result<Delivery> {
        let upto = plan.now.to_device.clone();
        let Some(device) = &asker.device else {
            return Ok(Delivery { messages: Vec::new(), upto });
        };
        let shared = self.marks(pool, asker.user, device).await?;
        let since = plan.since.as_ref().map(|since| reached(&since.to_device));
        let marks = *shared.lock();
        let marks = remove_confirmed(pool, (asker.user, device), marks, since).await?;
        let low = marks.low(since);
        let mut messages = match from_memory(index, asker.user, device, low, &upto) {
            Some(messages) => messages,
            None => from_tables(pool, asker.user, device, low, upto.max()).await?,
        };
        let has_more = messages.len() > MOST_MESSAGES;
        messages.truncate(MOST_MESSAGES);
        let last = messages.last().map(|(at, _)| *at);
        let mut known = marks;
        if let Some(last) = last {
            known = marks.with(sync::set_delivered(pool, asker.user, device, last).await?);
            if known != marks {
                // Another instance has answered the device meanwhile.
                known = remove_confirmed(pool, (asker.user, device), known, since).await?;
                let low = known.low(since);
                messages.retain(|(at, _)| *at > low);
            }
        }
        let mut marks = shared.lock();
        marks.delivered = marks.delivered.max(known.delivered).max(last.unwrap_or_default());
        marks.removed = marks.removed.max(known.removed);
        let upto = match last.filter(|_| has_more) {
            Some(last) => StreamToken::at(last),
            None => {
                marks.clear = marks.clear.max(reached(&upto));
                upto
            }
        };
        Ok(Delivery { messages: messages.into_iter().map(|(_, message)| message).collect(), upto })
    }
}

/// Up to where a token covers all messages. One instance writes them at a time, so the one writer
/// that is ahead of the others is the only one that has written since; of several that are, it is
/// not known.
fn reached(token: &StreamToken) -> Position {
    match &token.ahead[..] {
        [(_, position)] => *position,
        _ => token.min,
    }
}

/// Removes what the device has confirmed by coming back with `since`.
async fn remove_confirmed(
    pool: &Pool,
    (user, device): (UserNid, &str),
    marks: Marks,
    since: Option<Position>,
) -> Result<Marks> {
    match marks.to_remove(since) {
        None => Ok(marks),
        Some(removed) => {
            to_device::delete_upto(pool, user, device, removed).await?;
            Ok(Marks { removed, ..marks })
        }
    }
}

fn from_memory(
    index: &Index,
    user: UserNid,
    device: &str,
    low: Position,
    upto: &StreamToken,
) -> Option<Vec<(Position, Raw)>> {
    let state = index.lock();
    let low = StreamToken::at(low);
    let rows = state.to_device.since(&(user, OwnedDeviceId::from(device)), &low)?;
    let rows = rows.filter(|row| upto.covers(row.writer, row.at));
    Some(rows.take(MOST_MESSAGES + 1).map(|row| (row.at, row.value.clone())).collect())
}

async fn from_tables(
    pool: &Pool,
    user: UserNid,
    device: &str,
    low: Position,
    upto: Position,
) -> Result<Vec<(Position, Raw)>> {
    let limit = i64::try_from(MOST_MESSAGES).unwrap_or(i64::MAX) + 1;
    let rows = to_device::list(pool, user, device, low, upto, limit).await?;
    rows.into_iter()
        .map(|(at, message)| {
            let message = RawValue::from_string(message).map_err(chatd_base::Error::internal)?;
            Ok((at, Raw::from(message)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A device, its inbox in the tables, and the marks: what [`Inboxes::read`] does, step by
    /// step.
    #[derive(Default)]
    struct World {
        inbox: BTreeSet<i64>,
        /// What arrived since the start: memory forgets nothing that the device has confirmed.
        memory: BTreeSet<i64>,
        newest: i64,
        tables: Delivered,
        /// Of two instances.
        marks: [Marks; 2],
    }

    impl World {
        fn remove_confirmed(&mut self, at: usize, since: Option<Position>) {
            if let Some(upto) = self.marks[at].to_remove(since) {
                self.inbox.retain(|at| *at > upto.0);
                self.tables.removed = self.tables.removed.max(upto);
                self.marks[at].removed = upto;
            }
        }

        fn answer(&mut self, at: usize, since: Option<i64>, most: usize) -> (Vec<i64>, i64) {
            let since = since.map(Position);
            self.remove_confirmed(at, since);
            let low = self.marks[at].low(since);
            let rows = self.inbox.union(&self.memory).copied();
            let mut rows: Vec<i64> = rows.filter(|at| *at > low.0).collect();
            let has_more = rows.len() > most;
            rows.truncate(most);
            let last = rows.last().copied();
            if let Some(last) = last {
                self.marks[at] = self.marks[at].with(self.tables);
                self.remove_confirmed(at, since);
                let low = self.marks[at].low(since);
                rows.retain(|at| *at > low.0);
                self.tables.delivered = self.tables.delivered.max(Position(last));
                self.marks[at].delivered = self.marks[at].delivered.max(Position(last));
            }
            match last.filter(|_| has_more) {
                Some(last) => (rows, last),
                None => {
                    self.marks[at].clear = self.marks[at].clear.max(Position(self.newest));
                    (rows, self.newest)
                }
            }
        }
    }

    proptest! {
        /// Answers may get lost, the server may restart, and the device may come to another
        /// instance each time: what it takes is every message, once, in order.
        #[test]
        fn each_message_is_taken_once(
            steps in proptest::collection::vec((0_i64..4, any::<bool>(), any::<bool>(), 0_usize..2), 1..80),
            old in 0_i64..50,
            most in 1_usize..4,
            foreign in 0_i64..50,
        ) {
            let mut world = World::default();
            let mut taken = Vec::new();
            // The first token may come from elsewhere and be anything at or below the newest.
            let mut since = Some(foreign);
            world.newest = foreign;
            for (arrivals, is_lost, restarts, at) in steps {
                for _ in 0..arrivals {
                    world.newest += 1;
                    world.inbox.insert(world.newest);
                    world.memory.insert(world.newest);
                }
                if restarts {
                    world.memory.clear();
                    world.marks = [Marks::default().with(world.tables); 2];
                }
                let (rows, next) = world.answer(at, since, most);
                if !is_lost {
                    taken.extend(rows);
                    since = Some(next);
                }
            }
            for at in [0, 1].into_iter().cycle() {
                let (rows, next) = world.answer(at, since, most);
                since = Some(next);
                if rows.is_empty() && since == Some(world.newest) { break }
                taken.extend(rows);
            }
            prop_assert_eq!(taken, (foreign + 1..=world.newest).collect::<Vec<_>>());
            prop_assert!(world.inbox.is_empty());
            // Nor does an old token bring anything back.
            prop_assert_eq!(world.answer(1, Some(old), most).0, Vec::<i64>::new());
        }
    }
}
