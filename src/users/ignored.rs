//! Users whom others do not want to hear from: `m.ignored_user_list`.
//! <https://spec.matrix.org/latest/client-server-api/#ignoring-users>

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{Cache, Result, UserNid};
use chatd_storage::{Pool, account_data};
use parking_lot::Mutex;
use ruma_common::{OwnedUserId, UserId};
use serde::Deserialize;

use crate::Deps;

/// The type of the account data that lists them.
pub const KIND: &str = "m.ignored_user_list";
/// Users whose lists are remembered (R8).
const CACHED_USERS: usize = 100_000;

/// The users whom somebody ignores.
pub type List = Arc<HashSet<OwnedUserId>>;

/// What has been loaded; the number counts changes, so that a load which a change overtook is
/// not remembered.
struct Loaded {
    lists: Cache<UserNid, List>,
    changes: Mutex<u64>,
}

/// Whom this server's users ignore.
pub struct Ignored {
    pool: Pool,
    loaded: Arc<Loaded>,
}

impl Ignored {
    pub(crate) fn new(deps: &Deps) -> Self {
        let loaded =
            Loaded { lists: Cache::new("ignored_users", CACHED_USERS), changes: Mutex::default() };
        let loaded = Arc::new(loaded);
        let view = loaded.clone();
        deps.streams.account_data.on_rows(move |frame| {
            for (_, row) in frame.rows.iter() {
                if row.room.is_none() && row.kind == KIND {
                    let mut changes = view.changes.lock();
                    *changes += 1;
                    view.lists.insert(row.user, Arc::new(parse(row.content.get())));
                }
            }
        });
        let view = loaded.clone();
        deps.streams.account_data.on_skipped(move |_, _| {
            let mut changes = view.changes.lock();
            *changes += 1;
            view.lists.clear();
        });
        Self { pool: deps.pool.clone(), loaded }
    }

    /// Whom `user` ignores. No query once warm.
    pub async fn of(&self, user: UserNid) -> Result<List> {
        let mut lists = self.of_many(&[user]).await?;
        Ok(lists.remove(&user).unwrap_or_default())
    }

    /// Those of `users` who ignore `sender`. No query once warm, else one.
    pub async fn who_ignore(&self, users: &[UserNid], sender: &UserId) -> Result<HashSet<UserNid>> {
        let lists = self.of_many(users).await?;
        Ok(lists.into_iter().filter(|(_, list)| list.contains(sender)).map(|(u, _)| u).collect())
    }

    /// The lists of `users` that are not empty.
    async fn of_many(&self, users: &[UserNid]) -> Result<HashMap<UserNid, List>> {
        let (mut found, mut missing) = (HashMap::new(), Vec::new());
        for user in users {
            match self.loaded.lists.get(user) {
                Some(list) if list.is_empty() => {}
                Some(list) => drop(found.insert(*user, list)),
                None => missing.push(*user),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let seen = *self.loaded.changes.lock();
        let rows = account_data::list_global(&self.pool, &missing, KIND).await?;
        let mut read: HashMap<UserNid, List> =
            rows.into_iter().map(|(user, content)| (user, Arc::new(parse(&content)))).collect();
        let changes = self.loaded.changes.lock();
        for user in missing {
            let list = read.remove(&user).unwrap_or_default();
            if *changes == seen {
                self.loaded.lists.insert(user, list.clone());
            }
            if !list.is_empty() {
                found.insert(user, list);
            }
        }
        Ok(found)
    }
}

/// The users in the content of an `m.ignored_user_list`; none if it is not one.
pub fn parse(content: &str) -> HashSet<OwnedUserId> {
    #[derive(Deserialize)]
    struct Content {
        ignored_users: BTreeMap<String, serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Content>(content)
        .map(|content| content.ignored_users.into_keys())
        .into_iter()
        .flatten()
        .filter_map(|user| user.try_into().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_list_ignores_nobody() {
        let list = parse(r#"{"ignored_users":{"@a:x":{},"nobody":{}}}"#);
        assert_eq!(list.iter().map(|user| user.as_str()).collect::<Vec<_>>(), ["@a:x"]);
        for content in ["{}", r#"{"ignored_users":[]}"#, "5"] {
            assert!(parse(content).is_empty(), "{content}");
        }
    }
}
