//! Keys of devices: what they upload, what others claim, and how many are left.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chatd_base::{Cache, Error, Refusal, Requester, Result, UserNid};
use chatd_storage::{
    Batch,
    keys::{self, Key},
    notices::Notice,
    remote_devices,
};
use chatd_streams::{
    Writer,
    device_lists::{DeviceListRow, DeviceLists, KeyChange},
};
use ruma_common::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Deps, logins::ts};

/// Devices whose counts are remembered (R8).
const CACHED_COUNTS: usize = 100_000;
/// Most one-time keys in one upload, and most keys that one request may claim (R8).
const MAX_UPLOADED: usize = 1_000;
const MAX_CLAIMED: usize = 10_000;

/// Keys that a device has left, as `/sync` and `/keys/upload` tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyCounts {
    /// One-time keys by algorithm; `signed_curve25519` is always there.
    pub one_time: BTreeMap<String, u64>,
    /// Algorithms with a fallback key that nobody has claimed.
    pub unused_fallback: Vec<String>,
}

/// Body of `/keys/upload`.
#[derive(Debug, Default, Deserialize)]
pub struct Upload {
    #[serde(default)]
    device_keys: Option<Map<String, Value>>,
    #[serde(default)]
    one_time_keys: Option<BTreeMap<String, Value>>,
    #[serde(default, alias = "org.matrix.msc2732.fallback_keys")]
    fallback_keys: Option<BTreeMap<String, Value>>,
}

/// What a claim returned: keys by user, device and `algorithm:id`.
pub type Claimed = BTreeMap<OwnedUserId, BTreeMap<String, Map<String, Value>>>;

/// Keys of this server's devices.
pub struct Keys {
    pub(crate) deps: Deps,
    pub(crate) writer: Writer<DeviceLists>,
    counts: Arc<CountCache>,
}

/// What devices have left, as far as somebody has asked lately.
pub(crate) type CountCache = Cache<(UserNid, String), Arc<KeyCounts>>;

impl Keys {
    pub(crate) fn new(deps: &Deps, writer: &Writer<DeviceLists>) -> Self {
        let counts: Arc<CountCache> = Arc::new(Cache::new("key_counts", CACHED_COUNTS));
        // Keys go with their device, and another one may come by the same name.
        let (changed, skipped) = (counts.clone(), counts.clone());
        deps.streams.device_lists.on_rows(move |frame| {
            for (_, row) in frame.rows.iter() {
                if let Some(device) = &row.device_id {
                    changed.remove(&(row.user, device.clone()));
                }
            }
        });
        deps.streams.device_lists.on_skipped(move |_, _| skipped.clear());
        Self { deps: deps.clone(), writer: writer.clone(), counts }
    }

    pub(crate) fn count_cache(&self) -> &Arc<CountCache> {
        &self.counts
    }

    /// Stores what a device uploads and returns what it has then. On return it is durable.
    pub async fn upload(&self, who: &Requester, upload: Upload) -> Result<Arc<KeyCounts>> {
        let device = own_device(who)?;
        let one_time = parse_keys(upload.one_time_keys.unwrap_or_default())?;
        let fallback = parse_keys(upload.fallback_keys.unwrap_or_default())?;
        let new = self.new_one_time_keys(who.user, device, one_time).await?;
        if let Some(device_keys) = upload.device_keys.filter(|keys| !keys.is_empty()) {
            self.set_device_keys(who, device, device_keys).await?;
        }
        let mut batch = Batch::new();
        if !new.is_empty() {
            let now_ms = ts(self.deps.clock.now_ms());
            keys::insert_one_time_keys(&mut batch, who.user, device, &new, now_ms);
        }
        // One key an algorithm: the last one, as they are sorted by id.
        let fallback: BTreeMap<_, _> =
            fallback.into_iter().map(|key| (key.algorithm.clone(), key)).collect();
        if !fallback.is_empty() {
            let fallback: Vec<Key> = fallback.into_values().collect();
            keys::set_fallback_keys(&mut batch, who.user, device, &fallback);
        }
        if !batch.is_empty() {
            let devices = vec![(who.user, device.to_owned())];
            self.deps.notices.tell(&mut batch, Notice::KeyCounts { devices });
            let outcome = self.deps.pool.commit(batch).await;
            self.counts.remove(&(who.user, device.to_owned()));
            outcome?;
        }
        self.counts(who.user, device).await
    }

    /// Those of `wanted` that are not stored yet; refuses another key under the same id.
    async fn new_one_time_keys(
        &self,
        user: UserNid,
        device: &str,
        wanted: Vec<Key>,
    ) -> Result<Vec<Key>> {
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let stored = keys::list_one_time_keys(&self.deps.pool, user, device, &wanted).await?;
        let stored: HashMap<(String, String), String> =
            stored.into_iter().map(|key| ((key.algorithm, key.key_id), key.key)).collect();
        let mut new = Vec::with_capacity(wanted.len());
        for key in wanted {
            match stored.get(&(key.algorithm.clone(), key.key_id.clone())) {
                None => new.push(key),
                Some(old) if is_same_json(old, &key.key) => {}
                Some(_) => {
                    let message = format!(
                        "One time key {}:{} already exists and is another one",
                        key.algorithm, key.key_id
                    );
                    return Err(Refusal::unknown(message).into());
                }
            }
        }
        Ok(new)
    }

    async fn set_device_keys(
        &self,
        who: &Requester,
        device: &str,
        mut uploaded: Map<String, Value>,
    ) -> Result<()> {
        check_device_keys(&uploaded, &who.user_id, device)?;
        uploaded.remove("unsigned");
        let text = Value::Object(uploaded).to_string();
        let stored = keys::get_device_keys(&self.deps.pool, who.user, device).await?;
        if stored.is_some_and(|stored| is_same_json(&stored, &text)) {
            return Ok(());
        }
        let (user, device) = (who.user, device.to_owned());
        let rows = vec![changed(user, &who.user_id, Some(&device))];
        let statements =
            move |batch: &mut Batch| keys::set_device_keys(batch, user, &device, &text);
        self.writer.append(KeyChange { rows, statements: Box::new(statements) }).await?;
        Ok(())
    }

    /// What a device has left. No query once warm.
    pub async fn counts(&self, user: UserNid, device: &str) -> Result<Arc<KeyCounts>> {
        // A key that is uploaded or claimed meanwhile removes the entry that is being loaded.
        self.counts
            .get_or_insert_async(&(user, device.to_owned()), async {
                let rows = keys::count(&self.deps.pool, user, device).await?;
                Ok::<_, Error>(Arc::new(counts_of(rows)))
            })
            .await
    }

    /// Claims a key of each device in `wanted` (algorithm by user and device). Users of other
    /// servers are left out. No two callers get the same one-time key.
    pub async fn claim(
        &self,
        wanted: &BTreeMap<OwnedUserId, BTreeMap<String, String>>,
    ) -> Result<Claimed> {
        if wanted.values().map(BTreeMap::len).sum::<usize>() > MAX_CLAIMED {
            return Err(Refusal::too_large("too many keys in one claim").into());
        }
        let users = self.local_users(wanted.keys()).await?;
        let list: Vec<_> = users
            .iter()
            .filter_map(|(nid, user)| Some((nid, wanted.get(*user)?)))
            .flat_map(|(nid, devices)| {
                devices.iter().map(|(device, algorithm)| (*nid, device.clone(), algorithm.clone()))
            })
            .collect();
        let mut claimed = Claimed::new();
        if list.is_empty() {
            return Ok(claimed);
        }
        let devices: Vec<_> =
            list.iter().map(|(user, device, _)| (*user, device.clone())).collect();
        let mut batch = Batch::new();
        let claim = keys::claim(&mut batch, &list);
        self.deps.notices.tell(&mut batch, Notice::KeyCounts { devices: devices.clone() });
        let outcome = self.deps.pool.commit(batch).await;
        for device in &devices {
            self.counts.remove(device);
        }
        for (nid, device, key) in keys::claimed(&outcome?, claim) {
            let Some(user) = users.get(&nid) else { continue };
            let value: Value = serde_json::from_str(&key.key).map_err(Error::internal)?;
            let keys = claimed.entry((*user).clone()).or_default().entry(device).or_default();
            keys.insert(format!("{}:{}", key.algorithm, key.key_id), value);
        }
        Ok(claimed)
    }

    /// Numbers of those of `users` who belong to this server and exist.
    pub(crate) async fn local_users<'a>(
        &self,
        users: impl Iterator<Item = &'a OwnedUserId>,
    ) -> Result<HashMap<UserNid, &'a OwnedUserId>> {
        let local: Vec<_> =
            users.filter(|user| user.server_name() == self.deps.config.server_name).collect();
        let names: Vec<&str> = local.iter().map(|user| user.as_str()).collect();
        let nids = self.deps.interner.known_users(&names).await?;
        Ok(nids.into_iter().zip(local).filter_map(|(nid, user)| Some((nid?, user))).collect())
    }

    /// Numbers of those of `users` of whom this server has heard, of whatever server they are.
    pub(crate) async fn existing_users<'a>(
        &self,
        users: impl Iterator<Item = &'a OwnedUserId>,
    ) -> Result<HashMap<UserNid, &'a OwnedUserId>> {
        let users: Vec<_> = users.collect();
        let names: Vec<&str> = users.iter().map(|user| user.as_str()).collect();
        let nids = self.deps.interner.known_users(&names).await?;
        Ok(nids.into_iter().zip(users).filter_map(|(nid, user)| Some((nid?, user))).collect())
    }

    /// Numbers of those of `users` who belong to other servers and whose keys are known here
    /// without asking these.
    pub async fn followed_users<'a>(
        &self,
        users: impl Iterator<Item = &'a OwnedUserId>,
    ) -> Result<HashMap<UserNid, &'a OwnedUserId>> {
        let remote: Vec<_> =
            users.filter(|user| user.server_name() != self.deps.config.server_name).collect();
        let names: Vec<&str> = remote.iter().map(|user| user.as_str()).collect();
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let followed = remote_devices::list_current(&self.deps.pool, &names).await?;
        let by_name: HashMap<&str, &OwnedUserId> =
            remote.into_iter().map(|user| (user.as_str(), user)).collect();
        let found = followed.iter().filter_map(|(nid, name)| Some((*nid, *by_name.get(&**name)?)));
        Ok(found.collect())
    }
}

/// The device that the requester uses.
pub(crate) fn own_device(who: &Requester) -> Result<&str> {
    who.device_id
        .as_ref()
        .map(|device| device.as_str())
        .ok_or_else(|| Refusal::unknown("only a device has keys").into())
}

pub(crate) fn changed(user: UserNid, user_id: &UserId, device: Option<&str>) -> DeviceListRow {
    let (user_id, device_id) = (user_id.to_owned(), device.map(str::to_owned));
    DeviceListRow { user, user_id, device_id, is_gone: false }
}

fn counts_of(rows: Vec<(String, Option<i64>)>) -> KeyCounts {
    let mut counts = KeyCounts::default();
    counts.one_time.insert("signed_curve25519".to_owned(), 0);
    for (algorithm, count) in rows {
        match count.and_then(|count| u64::try_from(count).ok()) {
            Some(count) => drop(counts.one_time.insert(algorithm, count)),
            None => counts.unused_fallback.push(algorithm),
        }
    }
    counts
}

/// Splits `algorithm:id` and refuses what is not a key.
fn parse_keys(keys: BTreeMap<String, Value>) -> Result<Vec<Key>> {
    if keys.len() > MAX_UPLOADED {
        return Err(Refusal::too_large("too many keys in one upload").into());
    }
    let parse = |(name, key): (String, Value)| {
        let (algorithm, key_id) = name
            .split_once(':')
            .filter(|(algorithm, id)| !algorithm.is_empty() && !id.is_empty())
            .ok_or_else(|| Refusal::invalid_param(format!("{name} is not algorithm:id")))?;
        let is_key = key.is_string() || key.get("key").is_some_and(Value::is_string);
        if !is_key || name.len() > 255 {
            return Err(Refusal::bad_json(format!("{name} is not a key")).into());
        }
        let (algorithm, key_id) = (algorithm.to_owned(), key_id.to_owned());
        Ok(Key { algorithm, key_id, key: key.to_string() })
    };
    keys.into_iter().map(parse).collect()
}

fn check_device_keys(keys: &Map<String, Value>, user: &UserId, device: &str) -> Result<()> {
    let is = |name: &str, wanted: &str| keys.get(name).and_then(Value::as_str) == Some(wanted);
    if !is("user_id", user.as_str()) || !is("device_id", device) {
        let message = "user_id and device_id in device_keys must be those of the access token";
        return Err(Refusal::bad_json(message).into());
    }
    if !keys.get("algorithms").is_some_and(Value::is_array)
        || !keys.get("keys").is_some_and(Value::is_object)
    {
        return Err(Refusal::bad_json("device_keys needs algorithms and keys").into());
    }
    Ok(())
}

pub(crate) fn is_same_json(one: &str, other: &str) -> bool {
    one == other
        || matches!(
            (serde_json::from_str::<Value>(one), serde_json::from_str::<Value>(other)),
            (Ok(one), Ok(other)) if one == other
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_named_by_algorithm_and_id() {
        let keys = |name: &str, key: Value| parse_keys([(name.to_owned(), key)].into());
        let good = keys("signed_curve25519:AAAA", json!({ "key": "x", "signatures": {} })).unwrap();
        assert_eq!((&*good[0].algorithm, &*good[0].key_id), ("signed_curve25519", "AAAA"));
        for name in ["curve25519", ":A", "curve25519:"] {
            assert!(keys(name, json!("x")).is_err(), "{name}");
        }
        assert!(keys("curve25519:A", json!(1)).is_err());
    }

    #[test]
    fn a_device_without_keys_is_told_so() {
        assert_eq!(counts_of(vec![]).one_time["signed_curve25519"], 0);
        let counts = counts_of(vec![("a".into(), Some(3)), ("b".into(), None)]);
        assert_eq!((counts.one_time["a"], counts.unused_fallback), (3, vec!["b".to_owned()]));
    }
}
