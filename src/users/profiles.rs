//! Profiles of this server's users: displayname, avatar_url, and fields of their own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use chatd_base::{Cache, Error, Refusal, Result, UserNid};
use chatd_storage::{
    Batch, Pool, accounts, memberships,
    notices::{Notice, Notices},
    profiles,
};
use serde_json::Value;

use crate::Deps;

pub const DISPLAYNAME: &str = "displayname";
pub const AVATAR_URL: &str = "avatar_url";

const MAX_DISPLAYNAME: usize = 256;
const MAX_AVATAR_URL: usize = 1000;
/// Limits of the specification, in bytes.
const MAX_KEY: usize = 255;
const MAX_PROFILE: usize = 65_536;
/// Profiles kept in memory.
const CACHED: usize = 20_000;

/// One user's profile. Values are never null.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    pub fields: BTreeMap<String, Value>,
    /// False for users of other servers and for names that nobody has.
    pub is_local: bool,
}

impl Profile {
    pub fn displayname(&self) -> Option<&str> {
        self.fields.get(DISPLAYNAME)?.as_str()
    }

    pub fn avatar_url(&self) -> Option<&str> {
        self.fields.get(AVATAR_URL)?.as_str()
    }
}

/// Profiles of this server's users.
pub struct Profiles {
    pool: Pool,
    notices: Arc<Notices>,
    cache: Cache<UserNid, Arc<Profile>>,
    /// Goes up before an entry is taken out, so that one that was being read meanwhile is not
    /// put back.
    generation: AtomicU64,
}

impl Profiles {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self {
            pool: deps.pool.clone(),
            notices: deps.notices.clone(),
            cache: Cache::new("profiles", CACHED),
            generation: AtomicU64::new(0),
        }
    }

    /// The profile of one user. No query if it is known.
    pub async fn get(&self, user: UserNid) -> Result<Arc<Profile>> {
        Ok(self.get_many(&[user]).await?.pop().unwrap_or_default())
    }

    /// Profiles of `users`, in their order; empty ones where there is none. At most one round of
    /// queries, whatever their number.
    pub async fn get_many(&self, users: &[UserNid]) -> Result<Vec<Arc<Profile>>> {
        let mut found: Vec<_> = users.iter().map(|user| self.cache.get(user)).collect();
        let missing: Vec<UserNid> = users
            .iter()
            .zip(&found)
            .filter(|(_, profile)| profile.is_none())
            .map(|(user, _)| *user)
            .collect();
        if !missing.is_empty() {
            let read = self.read(&missing).await?;
            for (slot, user) in found.iter_mut().zip(users).filter(|(slot, _)| slot.is_none()) {
                *slot = read.get(user).cloned();
            }
        }
        Ok(found.into_iter().map(Option::unwrap_or_default).collect())
    }

    async fn read(&self, users: &[UserNid]) -> Result<BTreeMap<UserNid, Arc<Profile>>> {
        let generation = self.generation.load(Ordering::SeqCst);
        let (local, fields) = futures::try_join!(
            accounts::list_existing(&self.pool, users),
            profiles::list(&self.pool, users),
        )?;
        let mut read: BTreeMap<UserNid, Profile> =
            users.iter().map(|user| (*user, Profile::default())).collect();
        for user in local {
            read.entry(user).or_default().is_local = true;
        }
        for field in fields {
            let value = serde_json::from_str(&field.value).map_err(Error::internal)?;
            read.entry(field.user).or_default().fields.insert(field.name, value);
        }
        let read: BTreeMap<_, _> =
            read.into_iter().map(|(user, profile)| (user, Arc::new(profile))).collect();
        for (user, profile) in &read {
            self.cache.insert(*user, profile.clone());
            if self.generation.load(Ordering::SeqCst) != generation {
                self.cache.remove(user);
            }
        }
        Ok(read)
    }

    /// Sets one field; an empty displayname or avatar_url, or null, removes it. Returns the
    /// profile as it is now, and whether it has changed.
    pub async fn set(
        &self,
        user: UserNid,
        name: &str,
        value: Value,
    ) -> Result<(Arc<Profile>, bool)> {
        check_value(name, &value)?;
        let before = self.get(user).await?;
        let is_empty = value.is_null() || (is_basic(name) && value.as_str() == Some(""));
        let new = (!is_empty).then_some(value);
        if before.fields.get(name) == new.as_ref() {
            return Ok((before, false));
        }
        let mut batch = Batch::new();
        match new {
            Some(value) => {
                let value = value.to_string();
                check_size(&before, name, value.len())?;
                profiles::upsert(
                    &mut batch,
                    profiles::Field { user, name: name.to_owned(), value },
                );
            }
            None => profiles::delete(&mut batch, user, name),
        }
        if is_basic(name) {
            profiles::note_change(&mut batch, user);
        }
        self.notices.tell(&mut batch, Notice::Profile { user });
        let outcome = self.pool.commit(batch).await;
        self.forget(user);
        outcome?;
        Ok((self.get(user).await?, true))
    }

    /// Whether there is a room that both are in.
    pub async fn share_a_room(&self, one: UserNid, other: UserNid) -> Result<bool> {
        Ok(!memberships::list_sharing(&self.pool, one, &[other]).await?.is_empty())
    }

    /// Drops what is in memory about a profile that has been written.
    pub(crate) fn forget(&self, user: UserNid) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.cache.remove(&user);
    }

    /// Drops everything: some profiles may have been written unheard.
    pub(crate) fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.cache.clear();
    }
}

/// Whether a field is one that member events carry.
pub fn is_basic(name: &str) -> bool {
    matches!(name, DISPLAYNAME | AVATAR_URL)
}

/// Refuses names of fields that the specification does not allow.
pub fn check_name(name: &str) -> Result<()> {
    if name.len() > MAX_KEY {
        let message = format!("the name of the field is longer than {MAX_KEY} bytes");
        return Err(Refusal::new(400, "M_KEY_TOO_LARGE", message).into());
    }
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(is_word) {
        let message = "the name of a field begins with a-z and has only a-z, 0-9 and _-. after it";
        return Err(Refusal::invalid_param(message).into());
    }
    Ok(())
}

fn check_value(name: &str, value: &Value) -> Result<()> {
    check_name(name)?;
    if !chatd_base::json::has_canonical_numbers(value) {
        return Err(Refusal::bad_json("a number is not an integer below 2^53").into());
    }
    let limit = match name {
        DISPLAYNAME => MAX_DISPLAYNAME,
        AVATAR_URL => MAX_AVATAR_URL,
        _ => return Ok(()),
    };
    match value {
        Value::Null => Ok(()),
        Value::String(text) if text.chars().count() <= limit => Ok(()),
        Value::String(_) => {
            Err(Refusal::invalid_param(format!("{name} is longer than {limit} characters")).into())
        }
        _ => Err(Refusal::invalid_param(format!("{name} is not a string")).into()),
    }
}

/// Refuses a field that would make the whole profile larger than allowed.
fn check_size(profile: &Profile, name: &str, value_bytes: usize) -> Result<()> {
    // Quotes, colon and comma of each member.
    let member = |name: &str, value: usize| name.len() + value + 4;
    let others: usize = profile
        .fields
        .iter()
        .filter(|(key, _)| *key != name)
        .map(|(key, value)| member(key, value.to_string().len()))
        .sum();
    if others + member(name, value_bytes) + 2 > MAX_PROFILE {
        let message = format!("the profile would be larger than {MAX_PROFILE} bytes");
        return Err(Refusal::new(400, "M_PROFILE_TOO_LARGE", message).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn code(result: Result<()>) -> Option<String> {
        result.err().map(|error| error.errcode().unwrap_or("internal").to_owned())
    }

    #[test]
    fn names_follow_the_common_grammar() {
        for good in ["displayname", "m.tz", "org.example.a-b_c", "a"] {
            assert_eq!(code(check_name(good)), None, "{good}");
        }
        for bad in ["", "M.tz", "1a", "_a", "a b", "a/b", "\u{e9}"] {
            assert_eq!(code(check_name(bad)).as_deref(), Some("M_INVALID_PARAM"), "{bad}");
        }
        assert_eq!(code(check_name(&"a".repeat(256))).as_deref(), Some("M_KEY_TOO_LARGE"));
    }

    #[test]
    fn values_have_types_and_limits() {
        assert_eq!(code(check_value(DISPLAYNAME, &json!("x".repeat(256)))), None);
        for bad in [json!("x".repeat(257)), json!(1), json!({"a": 1})] {
            let found = code(check_value(DISPLAYNAME, &bad));
            assert_eq!(found.as_deref(), Some("M_INVALID_PARAM"), "{bad}");
        }
        assert_eq!(code(check_value("m.x", &json!({"a": [1, "b", null]}))), None);
        assert_eq!(code(check_value("m.x", &json!(1.5))).as_deref(), Some("M_BAD_JSON"));
    }

    #[test]
    fn a_profile_has_a_largest_size() {
        let fields = BTreeMap::from([("m.a".to_owned(), json!("x".repeat(60_000)))]);
        let profile = Profile { fields, is_local: true };
        assert_eq!(code(check_size(&profile, "m.b", 5_000)), None);
        let found = code(check_size(&profile, "m.b", 6_000));
        assert_eq!(found.as_deref(), Some("M_PROFILE_TOO_LARGE"));
        assert_eq!(code(check_size(&profile, "m.a", 65_000)), None, "its own old value goes");
    }
}
