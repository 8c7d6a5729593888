//! Numbers for strings: users, (type, state key) pairs and event types. Rooms are numbered when
//! they are created (`rooms`).
//!
//! Numbers never change, so the caches need no invalidation; they are bounded (R8).

use std::{collections::HashMap, hash::Hash, sync::Arc};

use chatd_base::{Cache, KeyNid, TypeNid, UserNid};

use crate::{Pool, Result, Row, Statement, statement::statements};

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

impl<N, S> Table<N, S>
where
    N: Copy + Eq + Hash + Send + Sync + 'static,
    S: Clone + Eq + Hash + Send + Sync + 'static,
{
    fn new((by_name, by_nid): (&'static str, &'static str), capacity: usize) -> Self {
        Self { by_name: Cache::new(by_name, capacity), by_nid: Cache::new(by_nid, capacity) }
    }

    /// Numbers that are known, and the names whose number is not.
    fn look_up(&self, names: &[S]) -> (Vec<Option<N>>, Vec<S>) {
        let found: Vec<Option<N>> = names.iter().map(|name| self.by_name.get(name)).collect();
        let missing = names.iter().zip(&found).filter(|(_, nid)| nid.is_none());
        let missing = missing.map(|(name, _)| name.clone()).collect();
        (found, missing)
    }

    /// Fills the gaps in `found` from rows that were read, and remembers those.
    fn complete(
        &self,
        names: &[S],
        mut found: Vec<Option<N>>,
        rows: impl Iterator<Item = (N, S)>,
    ) -> Vec<Option<N>> {
        let rows: HashMap<S, N> = rows.map(|(nid, name)| (name, nid)).collect();
        self.remember(rows.iter().map(|(name, nid)| (*nid, name.clone())));
        for (slot, name) in found.iter_mut().zip(names).filter(|(slot, _)| slot.is_none()) {
            *slot = rows.get(name).copied();
        }
        found
    }

    /// As [`Table::look_up`], the other way round.
    fn look_up_names(&self, nids: &[N]) -> (Vec<Option<S>>, Vec<N>) {
        let found: Vec<Option<S>> = nids.iter().map(|nid| self.by_nid.get(nid)).collect();
        let missing = nids.iter().zip(&found).filter(|(_, name)| name.is_none());
        let missing = missing.map(|(nid, _)| *nid).collect();
        (found, missing)
    }

    /// As [`Table::complete`], the other way round.
    fn complete_names(
        &self,
        nids: &[N],
        mut found: Vec<Option<S>>,
        rows: impl Iterator<Item = (N, S)>,
    ) -> Vec<Option<S>> {
        let rows: HashMap<N, S> = rows.collect();
        self.remember(rows.iter().map(|(nid, name)| (*nid, name.clone())));
        for (slot, nid) in found.iter_mut().zip(nids).filter(|(slot, _)| slot.is_none()) {
            *slot = rows.get(nid).cloned();
        }
        found
    }

    fn remember(&self, rows: impl Iterator<Item = (N, S)>) {
        for (nid, name) in rows {
            self.by_name.insert(name.clone(), nid);
            self.by_nid.insert(nid, name);
        }
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
            users: Table::new(("users_by_id", "users_by_number"), capacity),
            keys: Table::new(("state_keys_by_name", "state_keys_by_number"), capacity),
            types: Table::new(
                ("event_types_by_name", "event_types_by_number"),
                capacity.min(10_000),
            ),
        }
    }

    /// Numbers of `names`, in their order. No query if all are known.
    pub async fn users(&self, names: &[&str]) -> Result<Vec<UserNid>> {
        for _ in 0..ATTEMPTS {
            if let Some(all) = self.find_users(names, &INTERN_USERS).await?.into_iter().collect() {
                return Ok(all);
            }
        }
        Err(not_numbered())
    }

    /// Number of one user id.
    pub async fn user(&self, name: &str) -> Result<UserNid> {
        Ok(self.users(&[name]).await?[0])
    }

    /// Numbers of those `names` that have one; makes none, so that guesses of a client leave no
    /// trace.
    pub async fn known_users(&self, names: &[&str]) -> Result<Vec<Option<UserNid>>> {
        self.find_users(names, &LIST_USER_NIDS).await
    }

    async fn find_users(
        &self,
        names: &[&str],
        statement: &'static Statement,
    ) -> Result<Vec<Option<UserNid>>> {
        let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
        let (found, missing) = self.users.look_up(&names);
        if missing.is_empty() {
            return Ok(found);
        }
        let missing: Vec<&str> = missing.iter().map(|name| &**name).collect();
        let rows = self.pool.query(statement, &[&missing]).await?;
        Ok(self.users.complete(&names, found, rows.iter().map(user_row)))
    }

    /// User ids of `nids`, in their order; `None` for numbers that do not exist.
    pub async fn user_names(&self, nids: &[UserNid]) -> Result<Vec<Option<Arc<str>>>> {
        let (found, missing) = self.users.look_up_names(nids);
        if missing.is_empty() {
            return Ok(found);
        }
        let missing: Vec<i32> = missing.iter().map(|nid| nid.0).collect();
        let rows = self.pool.query(&LIST_USERS_BY_NID, &[&missing]).await?;
        Ok(self.users.complete_names(nids, found, rows.iter().map(user_row)))
    }

    /// Numbers of (type, state key) pairs, in their order. No query if all are known.
    pub async fn keys(&self, pairs: &[(&str, &str)]) -> Result<Vec<KeyNid>> {
        for _ in 0..ATTEMPTS {
            if let Some(all) = self.find_keys(pairs, &INTERN_KEYS).await?.into_iter().collect() {
                return Ok(all);
            }
        }
        Err(not_numbered())
    }

    /// Numbers of those pairs that have one; makes none.
    pub async fn known_keys(&self, pairs: &[(&str, &str)]) -> Result<Vec<Option<KeyNid>>> {
        self.find_keys(pairs, &LIST_KEY_NIDS).await
    }

    async fn find_keys(
        &self,
        pairs: &[(&str, &str)],
        statement: &'static Statement,
    ) -> Result<Vec<Option<KeyNid>>> {
        let pairs: Vec<Key> =
            pairs.iter().map(|(kind, key)| (Arc::from(*kind), Arc::from(*key))).collect();
        let (found, missing) = self.keys.look_up(&pairs);
        if missing.is_empty() {
            return Ok(found);
        }
        let (types, keys): (Vec<&str>, Vec<&str>) =
            missing.iter().map(|(kind, key)| (&**kind, &**key)).unzip();
        let rows = self.pool.query(statement, &[&types, &keys]).await?;
        Ok(self.keys.complete(&pairs, found, rows.iter().map(key_row)))
    }

    /// (type, state key) pairs of `nids`, in their order.
    pub async fn key_names(&self, nids: &[KeyNid]) -> Result<Vec<Option<Key>>> {
        let (found, missing) = self.keys.look_up_names(nids);
        if missing.is_empty() {
            return Ok(found);
        }
        let missing: Vec<i64> = missing.iter().map(|nid| nid.0).collect();
        let rows = self.pool.query(&LIST_KEYS_BY_NID, &[&missing]).await?;
        Ok(self.keys.complete_names(nids, found, rows.iter().map(key_row)))
    }

    /// Numbers of event types, in their order. No query if all are known.
    pub async fn types(&self, names: &[&str]) -> Result<Vec<TypeNid>> {
        let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
        for _ in 0..ATTEMPTS {
            let (mut found, missing) = self.types.look_up(&names);
            if !missing.is_empty() {
                let missing: Vec<&str> = missing.iter().map(|name| &**name).collect();
                let rows = self.pool.query(&INTERN_TYPES, &[&missing]).await?;
                found = self.types.complete(&names, found, rows.iter().map(type_row));
            }
            if let Some(all) = found.into_iter().collect() {
                return Ok(all);
            }
        }
        Err(not_numbered())
    }

    /// Event types of `nids`, in their order.
    pub async fn type_names(&self, nids: &[TypeNid]) -> Result<Vec<Option<Arc<str>>>> {
        let (found, missing) = self.types.look_up_names(nids);
        if missing.is_empty() {
            return Ok(found);
        }
        let missing: Vec<i32> = missing.iter().map(|nid| nid.0).collect();
        let rows = self.pool.query(&LIST_TYPES_BY_NID, &[&missing]).await?;
        Ok(self.types.complete_names(nids, found, rows.iter().map(type_row)))
    }
}

fn not_numbered() -> crate::Error {
    crate::Error::Corrupt("a name could not be numbered".to_owned())
}

fn user_row(row: &Row) -> (UserNid, Arc<str>) {
    (UserNid(row.get(0)), Arc::from(row.get::<_, &str>(1)))
}

fn key_row(row: &Row) -> (KeyNid, Key) {
    (KeyNid(row.get(0)), (Arc::from(row.get::<_, &str>(1)), Arc::from(row.get::<_, &str>(2))))
}

fn type_row(row: &Row) -> (TypeNid, Arc<str>) {
    (TypeNid(row.get(0)), Arc::from(row.get::<_, &str>(1)))
}
