//! The change index of one stream: which entity changed when, with the rows themselves.
//!
//! It is complete above a floor and bounded in rows and bytes (R8). A reader whose token is at or
//! above the floor is answered from here; one below it goes to the tables.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque, hash_map},
    hash::Hash,
};

use chatd_base::{Position, WriterId};
use chatd_streams::StreamToken;
use smallvec::SmallVec;

/// How much a log may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub rows: usize,
    pub bytes: usize,
    /// Rows of one entity. With 1, a new row stands for all before it.
    pub per_key: usize,
}

#[derive(Clone, Debug)]
pub struct Row<V> {
    pub writer: WriterId,
    pub at: Position,
    pub value: V,
    bytes: usize,
}

#[derive(Debug)]
struct Entity<V> {
    /// Rows that are missing here although readers of the log may not know them.
    dropped: Marks,
    rows: VecDeque<Row<V>>,
}

/// For each writer, up to where rows are missing. Not one position for all writers: one that
/// stands still would make every row look new.
#[derive(Debug, Default)]
struct Marks(SmallVec<[(WriterId, Position); 1]>);

impl Marks {
    fn raise(&mut self, writer: WriterId, at: Position) {
        match self.0.iter_mut().find(|(other, _)| *other == writer) {
            Some((_, mark)) => *mark = (*mark).max(at),
            None => self.0.push((writer, at)),
        }
    }

    /// Whether a reader knows all rows that are missing.
    fn are_covered_by(&self, since: &StreamToken) -> bool {
        self.0.iter().all(|(writer, at)| since.covers(*writer, *at))
    }

    /// `start` where these marks are not kept any more.
    fn raise_in(&self, start: &StreamToken) -> StreamToken {
        self.0.iter().fold(start.clone(), |start, (writer, at)| start.raised(*writer, *at))
    }

    fn max(&self) -> Position {
        self.0.iter().map(|(_, at)| *at).max().unwrap_or_default()
    }
}

/// Rows of a stream by entity.
#[derive(Debug)]
pub struct Log<K, V> {
    /// Everything that this token does not cover is here, or marked with its entity.
    start: StreamToken,
    bounds: Bounds,
    by_key: HashMap<K, Entity<V>>,
    /// All rows by position; some may be gone from their entity already.
    order: VecDeque<(Position, WriterId, K)>,
    rows: usize,
    bytes: usize,
    /// Entities that rows have passed by.
    passed: HashMap<K, Marks>,
    /// The same by the furthest position.
    passed_at: BTreeSet<(Position, K)>,
}

impl<K: Clone + Eq + Hash + Ord, V> Log<K, V> {
    /// An empty log that will see every row that `start` does not cover.
    pub fn new(start: StreamToken, bounds: Bounds) -> Self {
        Self {
            start,
            bounds,
            by_key: HashMap::new(),
            order: VecDeque::new(),
            rows: 0,
            bytes: 0,
            passed: HashMap::new(),
            passed_at: BTreeSet::new(),
        }
    }

    /// Adds a row that is newer than all of its writer; `bytes` is its weight.
    pub fn push(&mut self, key: K, writer: WriterId, at: Position, value: V, bytes: usize) {
        let entity = self
            .by_key
            .entry(key.clone())
            .or_insert_with(|| Entity { dropped: Marks::default(), rows: VecDeque::new() });
        entity.rows.push_back(Row { writer, at, value, bytes });
        self.rows += 1;
        self.bytes += bytes;
        while entity.rows.len() > self.bounds.per_key {
            if let Some(old) = entity.rows.pop_front() {
                self.rows -= 1;
                self.bytes -= old.bytes;
                if self.bounds.per_key > 1 {
                    entity.dropped.raise(old.writer, old.at);
                }
            }
        }
        // Writers take positions from one sequence, so a row is rarely far from the end.
        let behind = self.order.iter().rev().take_while(|(other, ..)| *other > at).count();
        self.order.insert(self.order.len() - behind, (at, writer, key));
        self.shrink();
    }

    /// Takes note that rows of `key` by `writer`, up to `position`, are in the tables and not here.
    pub fn pass(&mut self, key: K, writer: WriterId, position: Position) {
        if let Some(entity) = self.by_key.remove(&key) {
            self.rows -= entity.rows.len();
            self.bytes -= entity.rows.iter().map(|row| row.bytes).sum::<usize>();
        }
        let marks = self.passed.entry(key.clone()).or_default();
        self.passed_at.remove(&(marks.max(), key.clone()));
        marks.raise(writer, position);
        self.passed_at.insert((marks.max(), key));
        while self.passed.len() > self.bounds.rows {
            let Some((_, key)) = self.passed_at.pop_first() else { return };
            let marks = self.passed.remove(&key).unwrap_or_default();
            self.start = marks.raise_in(&self.start);
        }
    }

    /// Takes note that rows of `writer` up to `position` have not been seen.
    pub fn miss(&mut self, writer: WriterId, position: Position) {
        self.start = self.start.raised(writer, position);
    }

    /// Forgets all rows; `start` as for [`Log::new`].
    pub fn restart(&mut self, start: StreamToken) {
        *self = Self::new(start, self.bounds);
    }

    fn shrink(&mut self) {
        let ghosts = self.bounds.rows.saturating_mul(2).max(64);
        while self.rows > self.bounds.rows
            || self.bytes > self.bounds.bytes
            || self.order.len() > ghosts
        {
            let Some((at, writer, key)) = self.order.pop_front() else { return };
            let hash_map::Entry::Occupied(mut entity) = self.by_key.entry(key) else { continue };
            let oldest = entity.get().rows.front();
            if oldest.is_some_and(|row| (row.at, row.writer) == (at, writer)) {
                if let Some(row) = entity.get_mut().rows.pop_front() {
                    self.rows -= 1;
                    self.bytes -= row.bytes;
                }
                self.start = self.start.raised(writer, at);
                if entity.get().rows.is_empty() {
                    let dropped = entity.remove().dropped;
                    self.start = dropped.raise_in(&self.start);
                }
            }
        }
    }

    /// Whether every row after `since`, of whatever entity, is known here.
    pub fn is_complete_since(&self, since: &StreamToken) -> bool {
        since.is_at_least(&self.start)
    }

    /// The rows of `key` after `since`, oldest first; `None` if some may be missing.
    pub fn since<'a>(
        &'a self,
        key: &K,
        since: &'a StreamToken,
    ) -> Option<impl DoubleEndedIterator<Item = &'a Row<V>> + use<'a, K, V>> {
        let entity = self.by_key.get(key);
        let marks = [entity.map(|entity| &entity.dropped), self.passed.get(key)];
        let has_all = marks.into_iter().flatten().all(|marks| marks.are_covered_by(since));
        if !self.is_complete_since(since) || !has_all {
            return None;
        }
        let rows = entity.map(|entity| &entity.rows).into_iter().flatten();
        Some(rows.filter(|row| !since.covers(row.writer, row.at)))
    }

    /// Entities with rows after `since`; `None` if some may be missing.
    pub fn changed_since(&self, since: &StreamToken) -> Option<Vec<K>> {
        if !self.is_complete_since(since) {
            return None;
        }
        let mut seen = HashSet::new();
        let mut changed = Vec::new();
        for (at, writer, key) in self.order.iter().rev() {
            if *at <= since.min {
                break;
            }
            if !since.covers(*writer, *at) && seen.insert(key.clone()) {
                changed.push(key.clone());
            }
        }
        for (at, key) in self.passed_at.iter().rev() {
            if *at <= since.min {
                break;
            }
            let is_known = self.passed.get(key).is_none_or(|marks| marks.are_covered_by(since));
            if !is_known && seen.insert(key.clone()) {
                changed.push(key.clone());
            }
        }
        Some(changed)
    }

    /// All rows that are held of `key`, oldest first.
    pub fn held_mut(&mut self, key: &K) -> impl Iterator<Item = &mut Row<V>> {
        self.by_key.get_mut(key).map(|entity| entity.rows.iter_mut()).into_iter().flatten()
    }

    /// The newest row of `key` that is held.
    pub fn newest(&self, key: &K) -> Option<&Row<V>> {
        self.by_key.get(key)?.rows.back()
    }

    /// Rows and bytes held.
    pub fn size(&self) -> (usize, usize) {
        (self.rows, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const WRITER: WriterId = WriterId(1);

    fn at(position: i64) -> StreamToken {
        StreamToken::at(Position(position))
    }

    fn log(rows: usize, per_key: usize) -> Log<u8, i64> {
        Log::new(at(0), Bounds { rows, bytes: 1000, per_key })
    }

    #[test]
    fn a_reader_below_the_start_goes_to_the_tables() {
        let mut log: Log<u8, i64> = Log::new(at(10), Bounds { rows: 9, bytes: 9, per_key: 9 });
        log.push(1, WRITER, Position(11), 11, 1);
        assert!(log.since(&1, &at(9)).is_none());
        assert_eq!(log.since(&1, &at(10)).unwrap().count(), 1);
        assert_eq!(log.since(&2, &at(10)).unwrap().count(), 0);
    }

    #[test]
    fn a_reader_below_what_was_missed_goes_to_the_tables() {
        let mut log = log(9, 9);
        log.push(1, WriterId(2), Position(5), 5, 1);
        log.miss(WRITER, Position(8));
        assert!(log.since(&1, &"m4~1.7".parse().unwrap()).is_none());
        assert_eq!(log.since(&1, &"m4~1.8".parse().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut log: Log<u8, i64> = Log::new(at(0), Bounds { rows: 100, bytes: 10, per_key: 100 });
        for position in 1..=5 {
            log.push(1, WRITER, Position(position), position, 4);
        }
        assert_eq!(log.size(), (2, 8));
        assert!(log.since(&1, &at(2)).is_none());
        assert_eq!(log.since(&1, &at(3)).unwrap().count(), 2);
    }

    #[test]
    fn a_writer_that_stands_still_makes_nothing_look_new() {
        let mut log = log(100, 2);
        for position in 1..=3 {
            log.push(1, WriterId(2), Position(position), position, 1);
        }
        log.pass(2, WriterId(2), Position(4));
        let since: StreamToken = "m0~2.4".parse().unwrap();
        assert_eq!(log.since(&1, &since).unwrap().count(), 0);
        assert_eq!(log.since(&2, &since).unwrap().count(), 0);
        assert_eq!(log.changed_since(&since).unwrap(), Vec::<u8>::new());
        let since: StreamToken = "m0~2.3".parse().unwrap();
        assert!(log.since(&2, &since).is_none());
        assert_eq!(log.changed_since(&since).unwrap(), [2]);
    }

    #[test]
    fn a_writer_that_is_behind_hides_nothing() {
        let mut log = log(100, 100);
        log.push(1, WriterId(1), Position(30), 30, 1);
        log.push(2, WriterId(2), Position(20), 20, 1);
        log.push(3, WriterId(1), Position(40), 40, 1);
        let since: StreamToken = "m10~1.40".parse().unwrap();
        assert_eq!(log.changed_since(&since).unwrap(), [2]);
    }

    proptest! {
        /// R3: whatever the bounds and the tokens, an interval that is answered from memory
        /// holds exactly the rows of that interval, and consecutive intervals hold each row once.
        #[test]
        fn what_is_answered_is_complete(
            keys in proptest::collection::vec(0_u8..4, 1..60),
            rows in 1_usize..20,
            per_key in 2_usize..20,
            readers in proptest::collection::vec(0_usize..60, 0..12),
        ) {
            let mut log = log(rows, per_key);
            let mut truth: BTreeMap<i64, u8> = BTreeMap::new();
            let mut cursor = 0;
            for (index, key) in keys.iter().enumerate() {
                let position = index as i64 * 3 + 1;
                log.push(*key, WRITER, Position(position), position, 1);
                truth.insert(position, *key);
                if !readers.contains(&index) {
                    continue;
                }
                let since = at(cursor);
                let mut changed: Vec<u8> = truth.range(cursor + 1..).map(|(_, k)| *k).collect();
                changed.sort_unstable();
                changed.dedup();
                if let Some(mut told) = log.changed_since(&since) {
                    told.sort_unstable();
                    prop_assert_eq!(told, changed);
                }
                for key in 0_u8..4 {
                    let expected: Vec<i64> =
                        truth.range(cursor + 1..).filter(|(_, k)| **k == key).map(|(p, _)| *p).collect();
                    if let Some(rows) = log.since(&key, &since) {
                        prop_assert_eq!(rows.map(|row| row.value).collect::<Vec<_>>(), expected);
                    }
                }
                cursor = position;
            }
            prop_assert!(log.size().0 <= rows);
        }

        /// The same where rows of some keys are not wanted and pass by: what is answered has no
        /// hole, and a key that got something is among the changed.
        #[test]
        fn what_passes_by_is_not_hidden(
            keys in proptest::collection::vec((0_u8..4, any::<bool>()), 1..60),
            rows in 1_usize..20,
            from in 0_i64..180,
        ) {
            let mut log = log(rows, 20);
            let mut truth: BTreeMap<i64, u8> = BTreeMap::new();
            for (index, (key, is_wanted)) in keys.iter().enumerate() {
                let position = index as i64 * 3 + 1;
                match is_wanted {
                    true => log.push(*key, WRITER, Position(position), position, 1),
                    false => log.pass(*key, WRITER, Position(position)),
                }
                truth.insert(position, *key);
            }
            let since = at(from);
            let told = log.changed_since(&since);
            for key in 0_u8..4 {
                let expected: Vec<i64> =
                    truth.range(from + 1..).filter(|(_, k)| **k == key).map(|(p, _)| *p).collect();
                if let Some(told) = &told {
                    prop_assert!(expected.is_empty() || told.contains(&key));
                }
                if let Some(found) = log.since(&key, &since) {
                    prop_assert_eq!(found.map(|row| row.value).collect::<Vec<_>>(), expected);
                }
            }
            prop_assert!(log.passed.len() <= rows && log.passed.len() == log.passed_at.len());
        }

        /// With one row an entity, the newest row of each changed entity is there.
        #[test]
        fn the_latest_row_stands_for_all(keys in proptest::collection::vec(0_u8..4, 1..40), from in 0_i64..40) {
            let mut log = log(1000, 1);
            for (index, key) in keys.iter().enumerate() {
                log.push(*key, WRITER, Position(index as i64 + 1), index as i64 + 1, 1);
            }
            let since = at(from);
            for key in 0_u8..4 {
                let newest = keys.iter().rposition(|k| *k == key).map(|i| i as i64 + 1).filter(|p| *p > from);
                let told: Vec<i64> = log.since(&key, &since).unwrap().map(|row| row.value).collect();
                prop_assert_eq!(told, newest.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
