//! Numbers for strings: users, (type, state key) pairs and event types. Rooms are numbered when
//! they are created (`rooms`).
//!
//! Numbers never change, so the caches need no invalidation; they are bounded (R8).

use std::{hash::Hash, sync::Arc};

use chatd_base::{KeyNid, TypeNid, UserNid};
use quick_cache::sync::Cache;

use crate::{Pool, Result, statement::statements};

statements! {
    /// Numbers for user ids; makes those that are missing. `DO UPDATE` would write for nothing, so
    /// a row that another transaction has just made is found by the second branch or on a retry.
    INTERN_USERS = "WITH wanted AS (SELECT DISTINCT name FROM unnest($1::text[]) AS name),
                    made AS (INSERT INTO users_nid (user_id)
                             SELECT name FROM wanted
                             WHERE NOT EXISTS (SELECT 1 FROM users_nid u WHERE u.user_id = name)
                             ON CONFLICT DO NOTHING
                             RETURNING nid, user_id)
                    SELECT nid, user_id FROM made
                    UNION ALL
                    SELECT u.nid, u.user_id FROM users_nid u JOIN wanted ON u.user_id = name";
    LIST_USERS_BY_NID = "SELECT nid, user_id FROM users_nid WHERE nid = ANY($1::int4[])";
    LIST_USER_NIDS = "SELECT nid, user_id FROM users_nid WHERE user_id = ANY($1::text[])";
    INTERN_KEYS = "WITH wanted AS (SELECT DISTINCT type, state_key
                                   FROM unnest($1::text[], $2::text[]) AS w(type, state_key)),
                   made AS (INSERT INTO state_keys (type, state_key)
                            SELECT type, state_key FROM wanted w
                            WHERE NOT EXISTS (SELECT 1 FROM state_keys k
                                              WHERE k.type = w.type AND k.state_key = w.state_key)
                            ON CONFLICT DO NOTHING
                            RETURNING nid, type, state_key)
                   SELECT nid, type, state_key FROM made
                   UNION ALL
                   SELECT k.nid, k.type, k.state_key FROM state_keys k JOIN wanted w
                   ON k.type = w.type AND k.state_key = w.state_key";
    LIST_KEYS_BY_NID = "SELECT nid, type, state_key FROM state_keys WHERE nid = ANY($1::int8[])";
    LIST_KEY_NIDS = "SELECT nid, type, state_key FROM state_keys
                     JOIN unnest($1::text[], $2::text[]) AS w(t, k) ON type = w.t AND state_key = w.k";
    INTERN_TYPES = "WITH wanted AS (SELECT DISTINCT type FROM unnest($1::text[]) AS type),
                    made AS (INSERT INTO event_types (type)
                             SELECT type FROM wanted w
                             WHERE NOT EXISTS (SELECT 1 FROM event_types t WHERE t.type = w.type)
                             ON CONFLICT DO NOTHING
                             RETURNING nid, type)
                    SELECT nid, type FROM made
                    UNION ALL
                    SELECT t.nid, t.type FROM event_types t JOIN wanted w ON t.type = w.type";
    LIST_TYPES_BY_NID = "SELECT nid, type FROM event_types WHERE nid = ANY($1::int4[])";
}

/// A (type, state key) pair.
pub type Key = (Arc<str>, Arc<str>);

struct Table<N, S> {
    by_name: Cache<S, N>,
    by_nid: Cache<N, S>,
}

impl<N: Copy + Eq + Hash, S: Clone + Eq + Hash> Table<N, S> {
    fn new(capacity: usize) -> Self {
        Self { by_name: Cache::new(capacity), by_nid: Cache::new(capacity) }
    }

    fn remember(&self, nid: N, name: S) {
        self.by_name.insert(name.clone(), nid);
        self.by_nid.insert(nid, name);
    }
}

/// Caches over the tables of numbers. One per instance.
pub struct Interner {
    pool: Pool,
    users: Table<UserNid, Arc<str>>,
    keys: Table<KeyNid, Key>,
    types: Table<TypeNid, Arc<str>>,
}

/// Attempts to see a row that a concurrent transaction has made but not yet committed.
const ATTEMPTS: usize = 20;

impl Interner {
    /// `capacity`: entries that each of the caches may hold.
    pub fn new(pool: &Pool, capacity: usize) -> Self {
        Self {
            pool: pool.clone(),
            users: Table::new(capacity),
            keys: Table::new(capacity),
            types: Table::new(capacity.min(10_000)),
        }
    }

    /// Numbers of `names`, in their order. No query if all are known.
    pub async fn users(&self, names: &[&str]) -> Result<Vec<UserNid>> {
        intern(
            &self.users,
            &names.iter().map(|name| Arc::from(*name)).collect::<Vec<Arc<str>>>(),
            async |missing: &[Arc<str>]| {
                let missing: Vec<&str> = missing.iter().map(|name| &**name).collect();
                let rows = self.pool.query(&INTERN_USERS, &[&missing]).await?;
                Ok(rows
                    .iter()
                    .map(|r| (UserNid(r.get(0)), Arc::from(r.get::<_, &str>(1))))
                    .collect())
            },
        )
        .await
    }

    /// Number of one user id.
    pub async fn user(&self, name: &str) -> Result<UserNid> {
        Ok(self.users(&[name]).await?[0])
    }

    /// User ids of `nids`, in their order; `None` for numbers that do not exist.
    pub async fn user_names(&self, nids: &[UserNid]) -> Result<Vec<Option<Arc<str>>>> {
        names(&self.users, nids, async |missing: &[UserNid]| {
            let missing: Vec<i32> = missing.iter().map(|nid| nid.0).collect();
            let rows = self.pool.query(&LIST_USERS_BY_NID, &[&missing]).await?;
            Ok(rows.iter().map(|r| (UserNid(r.get(0)), Arc::from(r.get::<_, &str>(1)))).collect())
        })
        .await
    }

    /// Numbers of those `names` that have one; makes none, so that guesses of a client leave no
    /// trace.
    pub async fn known_users(&self, names: &[&str]) -> Result<Vec<Option<UserNid>>> {
        known(
            &self.users,
            &names.iter().map(|name| Arc::from(*name)).collect::<Vec<Arc<str>>>(),
            async |missing: &[Arc<str>]| {
                let missing: Vec<&str> = missing.iter().map(|name| &**name).collect();
                let rows = self.pool.query(&LIST_USER_NIDS, &[&missing]).await?;
                Ok(rows
                    .iter()
                    .map(|r| (UserNid(r.get(0)), Arc::from(r.get::<_, &str>(1))))
                    .collect())
            },
        )
        .await
    }

    /// Numbers of (type, state key) pairs, in their order. No query if all are known.
    pub async fn keys(&self, pairs: &[(&str, &str)]) -> Result<Vec<KeyNid>> {
        intern(
            &self.keys,
            &pairs.iter().map(shared).collect::<Vec<_>>(),
            async |missing: &[Key]| {
                let (types, keys) = columns(missing);
                let rows = self.pool.query(&INTERN_KEYS, &[&types, &keys]).await?;
                Ok(rows.iter().map(key_row).collect())
            },
        )
        .await
    }

    /// Numbers of those pairs that have one; makes none.
    pub async fn known_keys(&self, pairs: &[(&str, &str)]) -> Result<Vec<Option<KeyNid>>> {
        known(
            &self.keys,
            &pairs.iter().map(shared).collect::<Vec<_>>(),
            async |missing: &[Key]| {
                let (types, keys) = columns(missing);
                let rows = self.pool.query(&LIST_KEY_NIDS, &[&types, &keys]).await?;
                Ok(rows.iter().map(key_row).collect())
            },
        )
        .await
    }

    /// The number of a pair if it is in memory.
    pub fn cached_key(&self, kind: &str, state_key: &str) -> Option<KeyNid> {
        self.keys.by_name.get(&shared(&(kind, state_key)))
    }

    /// (type, state key) pairs of `nids`, in their order.
    pub async fn key_names(&self, nids: &[KeyNid]) -> Result<Vec<Option<Key>>> {
        names(&self.keys, nids, async |missing: &[KeyNid]| {
            let missing: Vec<i64> = missing.iter().map(|nid| nid.0).collect();
            let rows = self.pool.query(&LIST_KEYS_BY_NID, &[&missing]).await?;
            Ok(rows.iter().map(key_row).collect())
        })
        .await
    }

    /// Numbers of event types, in their order. No query if all are known.
    pub async fn types(&self, names: &[&str]) -> Result<Vec<TypeNid>> {
        intern(
            &self.types,
            &names.iter().map(|name| Arc::from(*name)).collect::<Vec<Arc<str>>>(),
            async |missing: &[Arc<str>]| {
                let missing: Vec<&str> = missing.iter().map(|name| &**name).collect();
                let rows = self.pool.query(&INTERN_TYPES, &[&missing]).await?;
                Ok(rows
                    .iter()
                    .map(|r| (TypeNid(r.get(0)), Arc::from(r.get::<_, &str>(1))))
                    .collect())
            },
        )
        .await
    }

    /// Event types of `nids`, in their order.
    pub async fn type_names(&self, nids: &[TypeNid]) -> Result<Vec<Option<Arc<str>>>> {
        names(&self.types, nids, async |missing: &[TypeNid]| {
            let missing: Vec<i32> = missing.iter().map(|nid| nid.0).collect();
            let rows = self.pool.query(&LIST_TYPES_BY_NID, &[&missing]).await?;
            Ok(rows.iter().map(|r| (TypeNid(r.get(0)), Arc::from(r.get::<_, &str>(1)))).collect())
        })
        .await
    }
}

fn shared(pair: &(&str, &str)) -> Key {
    (Arc::from(pair.0), Arc::from(pair.1))
}

fn columns(pairs: &[Key]) -> (Vec<&str>, Vec<&str>) {
    pairs.iter().map(|(kind, state_key)| (&**kind, &**state_key)).unzip()
}

fn key_row(row: &tokio_postgres::Row) -> (KeyNid, Key) {
    (KeyNid(row.get(0)), (Arc::from(row.get::<_, &str>(1)), Arc::from(row.get::<_, &str>(2))))
}

/// Looks names up, and asks `make` for the missing ones until all have a number.
async fn intern<N, S>(
    table: &Table<N, S>,
    wanted: &[S],
    make: impl AsyncFn(&[S]) -> Result<Vec<(N, S)>>,
) -> Result<Vec<N>>
where
    N: Copy + Eq + Hash,
    S: Clone + Eq + Hash,
{
    for _ in 0..ATTEMPTS {
        let found = known(table, wanted, &make).await?;
        if let Some(all) = found.into_iter().collect() {
            return Ok(all);
        }
    }
    Err(crate::Error::Corrupt("a name could not be numbered".to_owned()))
}

async fn known<N, S>(
    table: &Table<N, S>,
    wanted: &[S],
    find: impl AsyncFn(&[S]) -> Result<Vec<(N, S)>>,
) -> Result<Vec<Option<N>>>
where
    N: Copy + Eq + Hash,
    S: Clone + Eq + Hash,
{
    let mut found: Vec<Option<N>> = wanted.iter().map(|name| table.by_name.get(name)).collect();
    let missing: Vec<S> = wanted
        .iter()
        .zip(&found)
        .filter(|(_, nid)| nid.is_none())
        .map(|(n, _)| n.clone())
        .collect();
    if !missing.is_empty() {
        let rows: std::collections::HashMap<S, N> = find(&missing)
            .await?
            .into_iter()
            .map(|(nid, name)| {
                table.remember(nid, name.clone());
                (name, nid)
            })
            .collect();
        for (slot, name) in found.iter_mut().zip(wanted).filter(|(slot, _)| slot.is_none()) {
            *slot = rows.get(name).copied();
        }
    }
    Ok(found)
}

async fn names<N, S>(
    table: &Table<N, S>,
    nids: &[N],
    find: impl AsyncFn(&[N]) -> Result<Vec<(N, S)>>,
) -> Result<Vec<Option<S>>>
where
    N: Copy + Eq + Hash,
    S: Clone + Eq + Hash,
{
    let mut found: Vec<Option<S>> = nids.iter().map(|nid| table.by_nid.get(nid)).collect();
    let missing: Vec<N> =
        nids.iter().zip(&found).filter(|(_, name)| name.is_none()).map(|(nid, _)| *nid).collect();
    if !missing.is_empty() {
        let rows: std::collections::HashMap<N, S> = find(&missing).await?.into_iter().collect();
        for (nid, name) in &rows {
            table.remember(*nid, name.clone());
        }
        for (slot, nid) in found.iter_mut().zip(nids).filter(|(slot, _)| slot.is_none()) {
            *slot = rows.get(nid).cloned();
        }
    }
    Ok(found)
}
