//! Caches with a limit on their entries (R8), whose size and use are on the metrics page.

use std::{
    collections::BTreeMap,
    fmt,
    hash::Hash,
    ops::Deref,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use quick_cache::sync::Cache as Inner;

use crate::Sheet;

/// A bounded cache with a name.
pub struct Cache<K, V>(Arc<Inner<K, V>>);

/// Every cache of this process that is still there.
static ALL: Mutex<Vec<(&'static str, Weak<dyn Measure>)>> = Mutex::new(Vec::new());

impl<K, V> Cache<K, V>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache of at most `capacity` entries. Those of one name are measured as one.
    pub fn new(name: &'static str, capacity: usize) -> Self {
        let inner = Arc::new(Inner::new(capacity));
        let measured: Weak<Inner<K, V>> = Arc::downgrade(&inner);
        let mut all = ALL.lock();
        all.retain(|(_, cache)| cache.strong_count() > 0);
        all.push((name, measured));
        Self(inner)
    }
}

impl<K, V> Deref for Cache<K, V> {
    type Target = Inner<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

/// Entries, places for entries, look-ups that found something, and those that did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Use {
    size: u64,
    capacity: u64,
    hits: u64,
    misses: u64,
}

trait Measure: Send + Sync {
    fn measure(&self) -> Use;
}

impl<K, V> Measure for Inner<K, V>
where
    K: Eq + Hash + Send + Sync,
    V: Clone + Send + Sync,
{
    fn measure(&self) -> Use {
        Use {
            size: self.len() as u64,
            capacity: self.capacity(),
            hits: self.hits(),
            misses: self.misses(),
        }
    }
}

/// The use of every cache of this process, by name.
pub fn figures(sheet: &mut Sheet) {
    let mut by_name = BTreeMap::<&str, Use>::new();
    let all: Vec<_> = ALL.lock().clone();
    for (name, cache) in all {
        let Some(cache) = cache.upgrade() else { continue };
        let (one, sum) = (cache.measure(), by_name.entry(name).or_default());
        sum.size += one.size;
        sum.capacity += one.capacity;
        sum.hits += one.hits;
        sum.misses += one.misses;
    }
    for (name, sum) in by_name {
        let labels = [("name", name)];
        sheet.count("synapse_util_caches_cache_size", &labels, sum.size);
        sheet.count("synapse_util_caches_cache_max_size", &labels, sum.capacity);
        sheet.count("synapse_util_caches_cache_hits", &labels, sum.hits);
        sheet.count("synapse_util_caches_cache", &labels, sum.hits + sum.misses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(sheet: &Sheet, name: &str) -> Option<f64> {
        let mut of_test = sheet
            .figures()
            .iter()
            .filter(|figure| figure.labels == [("name", "test of caches".to_owned())]);
        of_test.find(|figure| figure.name == name).map(|figure| figure.value)
    }

    #[test]
    fn caches_of_one_name_are_measured_as_one_while_they_are_there() {
        let (first, second) =
            (Cache::new("test of caches", 100), Cache::<u8, u8>::new("test of caches", 100));
        first.insert(1_u32, "one");
        second.insert(1, 1);
        assert_eq!((first.get(&1), first.get(&2), second.get(&3)), (Some("one"), None, None));
        let mut sheet = Sheet::default();
        figures(&mut sheet);
        assert_eq!(value(&sheet, "synapse_util_caches_cache_size"), Some(2.0));
        assert_eq!(value(&sheet, "synapse_util_caches_cache_hits"), Some(1.0));
        assert_eq!(value(&sheet, "synapse_util_caches_cache"), Some(3.0));
        drop((first, second));
        let mut sheet = Sheet::default();
        figures(&mut sheet);
        assert_eq!(value(&sheet, "synapse_util_caches_cache_size"), None);
    }
}
