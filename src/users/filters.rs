//! Filters that clients store once and name in each sync.

use chatd_base::{Cache, Refusal, Result, UserNid};
use chatd_storage::filters;
use chatd_streams::Raw;
use serde_json::value::RawValue;

use crate::{Deps, digest};

/// Filters that are remembered (R8).
const CACHED_FILTERS: usize = 10_000;
/// Largest filter, in bytes.
const MAX_FILTER_BYTES: usize = 64 * 1024;

/// Filters of this server's users. A stored filter never changes.
pub struct Filters {
    deps: Deps,
    cache: Cache<(UserNid, i64), Raw>,
}

impl Filters {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self { deps: deps.clone(), cache: Cache::new("filters", CACHED_FILTERS) }
    }

    /// Stores a filter and returns its id; the same text has the same id.
    pub async fn create(&self, user: UserNid, filter: &RawValue) -> Result<i64> {
        let text = filter.get();
        if text.len() > MAX_FILTER_BYTES {
            return Err(Refusal::too_large("the filter is too large").into());
        }
        Ok(filters::intern(&self.deps.pool, user, digest::of(&[text]), text).await?)
    }

    /// A stored filter; refuses with 404 if the user has none with that id. No query once warm.
    pub async fn get(&self, user: UserNid, id: &str) -> Result<Raw> {
        let unknown = || Refusal::not_found("there is no such filter");
        let id: i64 = id.parse().map_err(|_| Refusal::invalid_param("invalid filter id"))?;
        if let Some(filter) = self.cache.get(&(user, id)) {
            return Ok(filter);
        }
        let text = filters::get(&self.deps.pool, user, id).await?.ok_or_else(unknown)?;
        let filter: Raw = RawValue::from_string(text).map_err(chatd_base::Error::internal)?.into();
        self.cache.insert((user, id), filter.clone());
        Ok(filter)
    }
}
