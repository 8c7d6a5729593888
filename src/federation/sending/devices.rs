//! Changes of device lists as EDUs. What a device's keys are is read when they are sent, so that
//! many changes are one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chatd_base::{Position, Result, UserNid};
use chatd_rooms::hosts::Hosts;
use chatd_storage::{
    Pool, keys,
    sending::{self, DeviceChange},
};
use chatd_streams::StreamToken;
use chatd_users::{Users, key_query::Wanted};
use ruma_common::{OwnedUserId, ServerName};
use serde_json::{Value, json};

use super::ephemeral::edu;

/// Changes that are read at a time.
pub(super) const MOST_READ: i64 = 500;

/// Changes of this server's users between two positions, oldest first; and up to where these are
/// all.
pub(super) async fn changes(
    pool: &Pool,
    own: &ServerName,
    low: Position,
    high: Position,
) -> Result<(Vec<DeviceChange>, Position)> {
    let mut all = sending::list_device_changes(pool, low, high, MOST_READ).await?;
    let is_full = i64::try_from(all.len()).unwrap_or(i64::MAX) >= MOST_READ;
    let end = all.last().filter(|_| is_full).map_or(high, |last| last.pos);
    let suffix = format!(":{own}");
    all.retain(|change| change.user_id.ends_with(&suffix));
    Ok((all, end))
}

/// What a server that is behind has missed after `since`: at most `limit` changes, and where it is
/// when it has them.
pub(super) async fn missed(
    pool: &Pool,
    hosts: &Hosts,
    own: &ServerName,
    server: &ServerName,
    (since, told): (&StreamToken, &StreamToken),
    limit: usize,
) -> Result<(Vec<DeviceChange>, StreamToken)> {
    let (mut all, end) = changes(pool, own, since.min, told.max()).await?;
    let users: BTreeSet<UserNid> = all.iter().map(|change| change.user).collect();
    let users: Vec<UserNid> = users.into_iter().collect();
    let sharing = hosts.sharing(&users).await?;
    all.retain(|change| sharing.get(&change.user).is_some_and(|all| all.contains(server)));
    if all.len() > limit {
        all.truncate(limit);
        let last = all.last().map_or(since.min, |change| change.pos);
        return Ok((all, StreamToken::at(last)));
    }
    Ok((all, StreamToken::at(end)))
}

/// The EDU of each change, by position. A constant number of queries.
pub(super) async fn edus(
    users: &Users,
    changes: &[DeviceChange],
) -> Result<HashMap<Position, String>> {
    if changes.is_empty() {
        return Ok(HashMap::new());
    }
    let mut wanted = Wanted::new();
    for change in changes {
        if let Ok(user) = OwnedUserId::try_from(change.user_id.as_str()) {
            wanted.entry(user).or_default();
        }
    }
    let mut known = users.keys.query_for_servers(&wanted).await?;
    let nids: BTreeSet<UserNid> = changes.iter().map(|change| change.user).collect();
    let nids: Vec<UserNid> = nids.into_iter().collect();
    let devices: HashSet<(UserNid, String)> =
        keys::list_devices(&users.deps.pool, &nids).await?.into_iter().collect();
    let mut edus = HashMap::with_capacity(changes.len());
    for change in changes {
        let user = &change.user_id;
        let of_user = known.device_keys.get_mut(user);
        let edu = if change.device_id.is_empty() {
            signing_keys(user, &known.master_keys, &known.self_signing_keys)
        } else {
            let keys = of_user.and_then(|keys| keys.get(&change.device_id).cloned());
            let is_there = devices.contains(&(change.user, change.device_id.clone()));
            device(change, keys, is_there)
        };
        edus.insert(change.pos, edu);
    }
    Ok(edus)
}

fn device(change: &DeviceChange, keys: Option<Value>, is_there: bool) -> String {
    let previous: Vec<i64> =
        Some(change.previous.0).filter(|previous| *previous > 0).into_iter().collect();
    let mut content = json!({
        "user_id": change.user_id,
        "device_id": change.device_id,
        "stream_id": change.pos,
        "prev_id": previous,
    });
    match keys {
        Some(mut keys) => {
            // The name of a device is its user's affair.
            if let Some(keys) = keys.as_object_mut() {
                keys.remove("unsigned");
            }
            content["keys"] = keys;
        }
        None if !is_there => content["deleted"] = true.into(),
        None => {}
    }
    edu("m.device_list_update", &content)
}

fn signing_keys(
    user: &str,
    master: &BTreeMap<String, Value>,
    self_signing: &BTreeMap<String, Value>,
) -> String {
    let mut content = json!({ "user_id": user });
    for (name, keys) in [("master_key", master), ("self_signing_key", self_signing)] {
        if let Some(key) = keys.get(user) {
            content[name] = key.clone();
        }
    }
    edu("m.signing_key_update", &content)
}
