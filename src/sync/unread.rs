//! How much of a room a user has not read: counted once from the tables, then kept by folds.

use std::collections::BTreeMap;

use chatd_base::Position;
use chatd_storage::sync::UnreadRow;
use ruma_common::OwnedEventId;

/// Notifications and highlights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub notifications: i64,
    pub highlights: i64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.notifications += other.notifications;
        self.highlights += other.highlights;
    }
}

#[derive(Clone, Debug)]
struct Event {
    at: Position,
    /// Root of the thread; empty for the main timeline.
    thread: String,
    is_highlight: bool,
}

/// Unread events of one user in one room, by thread.
#[derive(Clone, Debug)]
pub struct Unread {
    /// Counts of the events at or below `counted`.
    base: BTreeMap<String, Counts>,
    counted: Position,
    /// Unread events above `counted`, in order.
    recent: Vec<Event>,
    /// Receipts that came while the tables were read: (thread, position).
    meanwhile: Vec<(Option<String>, Position)>,
    is_known: bool,
}

/// Events that are kept one by one, so that a receipt in their middle needs no query.
const MOST_RECENT: usize = 100;

impl Unread {
    /// Begins to record from `counted` on; [`Unread::complete`] adds what is at or below it.
    pub fn begin(counted: Position) -> Self {
        Self {
            base: BTreeMap::new(),
            counted,
            recent: Vec::new(),
            meanwhile: Vec::new(),
            is_known: false,
        }
    }

    /// Whether the counts are right; else they have to be read.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Adds the counts of everything at or below `counted`, as they were read from the tables.
    pub fn complete(&mut self, rows: impl Iterator<Item = UnreadRow>) {
        self.base = rows
            .map(|row| {
                let counts =
                    Counts { notifications: row.notifications, highlights: row.highlights };
                (row.thread, counts)
            })
            .collect();
        self.is_known = true;
        for (thread, at) in std::mem::take(&mut self.meanwhile) {
            // The tables may have been read before or after it; it is safe to take it twice.
            self.read(thread.as_deref(), at);
        }
    }

    /// An event that leaves something unread.
    pub fn push(&mut self, at: Position, thread: Option<&OwnedEventId>, is_highlight: bool) {
        let thread = thread.map(ToString::to_string).unwrap_or_default();
        self.recent.push(Event { at, thread, is_highlight });
        if self.is_known && self.recent.len() > MOST_RECENT {
            for event in self.recent.drain(..MOST_RECENT / 2) {
                let one = Counts { notifications: 1, highlights: i64::from(event.is_highlight) };
                self.counted = self.counted.max(event.at);
                self.base.entry(event.thread).or_default().add(one);
            }
        }
    }

    /// A receipt of the user at `at`: for everything, for the main timeline (`main`), or for the
    /// thread with that root.
    pub fn read(&mut self, thread: Option<&str>, at: Position) {
        let concerned = |of: &str| match thread {
            None => true,
            Some("main") => of.is_empty(),
            Some(root) => of == root,
        };
        self.recent.retain(|event| event.at > at || !concerned(&event.thread));
        if !self.is_known {
            self.meanwhile.push((thread.map(str::to_owned), at));
        } else if at >= self.counted {
            self.base.retain(|of, _| !concerned(of));
        } else if self.base.keys().any(|of| concerned(of)) {
            // Somewhere among the events that were only counted: count again.
            *self = Self::begin(self.recent.last().map_or(self.counted, |last| last.at));
        }
    }

    /// Counts of the room without its threads, and of each thread that has any.
    pub fn by_thread(&self) -> (Counts, BTreeMap<String, Counts>) {
        let mut all = self.base.clone();
        for event in &self.recent {
            let one = Counts { notifications: 1, highlights: i64::from(event.is_highlight) };
            all.entry(event.thread.clone()).or_default().add(one);
        }
        let main = all.remove("").unwrap_or_default();
        (main, all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Unread {
        let mut unread = Unread::begin(Position(0));
        unread.complete(std::iter::empty());
        unread
    }

    fn main_count(unread: &Unread) -> i64 {
        unread.by_thread().0.notifications
    }

    #[test]
    fn a_receipt_reads_what_is_at_or_below_it() {
        let mut unread = known();
        let root: OwnedEventId = "$root".try_into().unwrap();
        for at in 1..=4 {
            unread.push(Position(at), (at == 2).then_some(&root), at == 4);
        }
        assert_eq!(unread.by_thread().0, Counts { notifications: 3, highlights: 1 });
        assert_eq!(unread.by_thread().1["$root"].notifications, 1);
        unread.read(Some("main"), Position(3));
        assert_eq!(unread.by_thread().0, Counts { notifications: 1, highlights: 1 });
        assert_eq!(unread.by_thread().1.len(), 1);
        unread.read(Some("$root"), Position(9));
        assert!(unread.by_thread().1.is_empty());
        unread.read(None, Position(4));
        assert_eq!(main_count(&unread), 0);
    }

    #[test]
    fn a_receipt_amid_counted_events_asks_the_tables_again() {
        let mut unread = known();
        for at in 1..=150 {
            unread.push(Position(at), None, false);
        }
        assert_eq!(main_count(&unread), 150);
        unread.read(None, Position(5));
        assert!(!unread.is_known());
        assert_eq!(unread.counted, Position(150));
        unread.push(Position(151), None, false);
        let row = UnreadRow {
            room: Default::default(),
            thread: String::new(),
            notifications: 145,
            highlights: 0,
        };
        unread.complete(std::iter::once(row));
        assert_eq!(main_count(&unread), 146);
    }

    #[test]
    fn a_receipt_that_comes_while_the_tables_are_read_counts() {
        let mut unread = Unread::begin(Position(10));
        unread.push(Position(11), None, false);
        unread.push(Position(12), None, false);
        unread.read(None, Position(11));
        let row = UnreadRow {
            room: Default::default(),
            thread: String::new(),
            notifications: 7,
            highlights: 0,
        };
        unread.complete(std::iter::once(row));
        assert_eq!(main_count(&unread), 1);
    }
}
