//! Devices of users of other servers. They are followed from the first time that one of them is
//! told of: each update names the one before, and where one was missed the whole list has to be
//! fetched. Clients learn of changes by the stream of device lists, as of this server's own users.
//!
//! All of this is where the stream of device lists is written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use chatd_base::{Result, UserNid};
use chatd_storage::{
    keys, remote_devices,
    remote_devices::{Changes, Followed, Stale},
    remote_edus,
};
use chatd_streams::{
    Writer,
    device_lists::{DeviceListRow, DeviceLists, KeyChange},
};
use ruma_common::OwnedUserId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Deps;

/// Longest id and name of a device, and largest keys, in bytes (R8).
const MAX_ID_BYTES: usize = 255;
const MAX_KEYS_BYTES: usize = 64 * 1024;
/// Most devices of one user.
const MOST_DEVICES: usize = 2_000;
/// Users whose lists wait to be fetched that are worked on at a time.
const MOST_STALE: i64 = 200;

/// One device, as its server tells it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RemoteDevice {
    pub device_id: String,
    #[serde(default, alias = "display_name")]
    pub device_display_name: Option<String>,
    #[serde(default)]
    pub keys: Option<Map<String, Value>>,
}

/// `m.device_list_update` or `m.signing_key_update`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Update {
    Device {
        user_id: OwnedUserId,
        stream_id: i64,
        prev_id: Vec<i64>,
        device: RemoteDevice,
        deleted: bool,
    },
    CrossSigning {
        user_id: OwnedUserId,
        master_key: Option<Value>,
        self_signing_key: Option<Value>,
    },
}

impl Update {
    /// Whose keys change.
    pub fn user_id(&self) -> &OwnedUserId {
        match self {
            Self::Device { user_id, .. } | Self::CrossSigning { user_id, .. } => user_id,
        }
    }
}

/// All devices of a user, as their server tells them.
#[derive(Clone, Debug, Deserialize)]
pub struct DeviceList {
    pub stream_id: i64,
    #[serde(default)]
    pub devices: Vec<RemoteDevice>,
    #[serde(default)]
    pub master_key: Option<Value>,
    #[serde(default)]
    pub self_signing_key: Option<Value>,
}

/// Follows devices of users of other servers.
pub struct RemoteDevices {
    deps: Deps,
    writer: Writer<DeviceLists>,
}

/// What a batch of updates comes to.
#[derive(Default)]
struct Batched {
    devices: BTreeMap<(UserNid, String), Option<RemoteDevice>>,
    cross_signing: BTreeMap<(UserNid, i8), String>,
    lists: BTreeMap<UserNid, Followed>,
    fetched: Vec<(Stale, i64)>,
    rows: BTreeSet<(UserNid, Option<String>)>,
    /// The devices of users who have nearly as many as a user may have.
    known: BTreeMap<UserNid, BTreeSet<String>>,
    /// Whether a list has to be fetched.
    has_stale: bool,
}

impl RemoteDevices {
    pub(crate) fn new(deps: &Deps, writer: &Writer<DeviceLists>) -> Self {
        Self { deps: deps.clone(), writer: writer.clone() }
    }

    /// Takes in updates, in their order. On return they are durable. Users who share no room with
    /// anybody here are passed over; true if a list has to be fetched as a whole.
    pub async fn update(&self, updates: &[Update]) -> Result<bool> {
        let names: Vec<&str> = updates.iter().map(|update| update.user_id().as_str()).collect();
        let seen = remote_edus::list_seen(&self.deps.pool, &names).await?;
        let users: HashMap<String, UserNid> =
            seen.into_iter().map(|(user, name)| (name, user)).collect();
        let nids: Vec<UserNid> = users.values().copied().collect();
        let mut batched = Batched {
            lists: remote_devices::list(&self.deps.pool, &nids).await?.into_iter().collect(),
            known: self.nearly_full(&nids, updates.len()).await?,
            ..Batched::default()
        };
        for update in updates {
            if let Some(user) = users.get(update.user_id().as_str()) {
                batched.take(*user, update);
            }
        }
        let names = users.into_iter().map(|(name, user)| (user, name)).collect();
        let has_stale = batched.has_stale;
        self.write(batched, &names).await?;
        Ok(has_stale)
    }

    /// The devices of those users who may have too many after so many updates.
    async fn nearly_full(
        &self,
        users: &[UserNid],
        updates: usize,
    ) -> Result<BTreeMap<UserNid, BTreeSet<String>>> {
        let most = MOST_DEVICES.saturating_sub(updates);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let long = remote_devices::list_longer(&self.deps.pool, users, most).await?;
        let mut known: BTreeMap<UserNid, BTreeSet<String>> = BTreeMap::new();
        if !long.is_empty() {
            for (user, device) in keys::list_devices(&self.deps.pool, &long).await? {
                known.entry(user).or_default().insert(device);
            }
        }
        Ok(known)
    }

    /// Some lists of users above `after` that have to be fetched as a whole; none if there are no
    /// more.
    pub async fn list_stale(&self, after: UserNid) -> Result<Vec<Stale>> {
        Ok(remote_devices::list_stale(&self.deps.pool, after, MOST_STALE).await?)
    }

    /// Puts a whole list in the place of what was known of a user. On return it is durable. One of
    /// which something has been told since it was `stale` has to be fetched again: that may be newer.
    pub async fn replace(&self, stale: Stale, list: DeviceList) -> Result<()> {
        let (user, names) = (stale.user, HashMap::from([(stale.user, stale.user_id.clone())]));
        let mut batched = Batched::default();
        for (_, device) in keys::list_devices(&self.deps.pool, &[user]).await? {
            batched.devices.insert((user, device), None);
        }
        for device in list.devices.into_iter().filter(is_sound).take(MOST_DEVICES) {
            batched.devices.insert((user, device.device_id.clone()), Some(device));
        }
        batched.rows.extend(batched.devices.keys().map(|(user, id)| (*user, Some(id.clone()))));
        batched.sign(user, list.master_key.as_ref(), list.self_signing_key.as_ref());
        batched.fetched.push((stale, list.stream_id));
        batched.rows.insert((user, None));
        self.write(batched, &names).await
    }

    async fn write(&self, batched: Batched, names: &HashMap<UserNid, String>) -> Result<()> {
        let mut rows = Vec::with_capacity(batched.rows.len());
        for (user, device_id) in &batched.rows {
            let user_id = names.get(user).and_then(|name| OwnedUserId::try_from(&**name).ok());
            let Some(user_id) = user_id else { continue };
            rows.push(DeviceListRow {
                user: *user,
                user_id,
                device_id: device_id.clone(),
                is_gone: false,
            });
        }
        if rows.is_empty() {
            return Ok(());
        }
        let changes = Arc::new(batched.changes());
        let statements = move |batch: &mut _| remote_devices::write(batch, &changes);
        self.writer.append(KeyChange { rows, statements: Box::new(statements) }).await?;
        Ok(())
    }
}

impl Batched {
    fn take(&mut self, user: UserNid, update: &Update) {
        match update {
            Update::Device { stream_id, prev_id, device, deleted, .. } if is_sound(device) => {
                let known = self.lists.get(&user).copied();
                if known.is_some_and(|known| !known.is_stale && *stream_id <= known.stream_id) {
                    return;
                }
                let follows = known.filter(|known| {
                    !known.is_stale && prev_id.iter().all(|prev| *prev <= known.stream_id)
                });
                if follows.is_none() {
                    self.miss(user, known);
                    return;
                }
                let device = (!deleted).then(|| device.clone());
                let id = match update {
                    Update::Device { device, .. } => device.device_id.clone(),
                    Update::CrossSigning { .. } => return,
                };
                if self.has_place(user, &id, device.is_some()) {
                    self.rows.insert((user, Some(id.clone())));
                    self.devices.insert((user, id), device);
                }
                let followed = Followed { stream_id: *stream_id, is_stale: false };
                self.lists.insert(user, followed);
            }
            Update::Device { .. } => {}
            Update::CrossSigning { master_key, self_signing_key, .. } => {
                match self.lists.get(&user).copied() {
                    Some(known) => {
                        self.has_stale |= known.is_stale;
                        self.sign(user, master_key.as_ref(), self_signing_key.as_ref());
                        self.rows.insert((user, None));
                    }
                    None => self.miss(user, None),
                }
            }
        }
    }

    /// Whether the user may have that device, too (R8). One that is deleted makes place.
    fn has_place(&mut self, user: UserNid, id: &str, is_there: bool) -> bool {
        let Some(known) = self.known.get_mut(&user) else { return true };
        if !is_there {
            known.remove(id);
            return true;
        }
        if known.len() >= MOST_DEVICES && !known.contains(id) {
            tracing::info!(user.nid = user.0, device = id, "a user has too many devices");
            return false;
        }
        known.insert(id.to_owned());
        true
    }

    /// The list has to be fetched. Clients are told at once: what they know is not true any more.
    fn miss(&mut self, user: UserNid, known: Option<Followed>) {
        let stream_id = known.map_or(0, |known| known.stream_id);
        self.lists.insert(user, Followed { stream_id, is_stale: true });
        self.rows.insert((user, None));
        self.has_stale = true;
    }

    fn sign(&mut self, user: UserNid, master: Option<&Value>, self_signing: Option<&Value>) {
        for (letter, key) in [(b'm', master), (b's', self_signing)] {
            let text = key.filter(|key| key.is_object()).map(Value::to_string);
            if let Some(text) = text.filter(|text| text.len() <= MAX_KEYS_BYTES) {
                self.cross_signing.insert((user, i8::from_ne_bytes([letter])), text);
            }
        }
    }

    fn changes(self) -> Changes {
        let mut changes = Changes {
            cross_signing: self
                .cross_signing
                .into_iter()
                .map(|((user, kind), key)| (user, kind, key))
                .collect(),
            lists: self.lists.into_iter().collect(),
            fetched: self.fetched,
            ..Changes::default()
        };
        for ((user, id), device) in self.devices {
            match device {
                Some(device) => {
                    let keys = device.keys.map(|mut keys| {
                        keys.remove("unsigned");
                        Value::Object(keys).to_string()
                    });
                    changes.devices.push((user, id, device.device_display_name, keys));
                }
                None => changes.gone.push((user, id)),
            }
        }
        changes
    }
}

/// Whether a device is one, within bounds, and its keys say that they are its own.
fn is_sound(device: &RemoteDevice) -> bool {
    let is_short = |text: &str| text.len() <= MAX_ID_BYTES;
    let has_name = device.device_display_name.as_deref().is_none_or(is_short);
    let has_keys = device.keys.as_ref().is_none_or(|keys| {
        let id = keys.get("device_id").and_then(Value::as_str);
        let size = serde_json::to_string(keys).map_or(usize::MAX, |text| text.len());
        id == Some(device.device_id.as_str()) && size <= MAX_KEYS_BYTES
    });
    !device.device_id.is_empty() && is_short(&device.device_id) && has_name && has_keys
}

#[cfg(test)]
mod tests {
    use ruma_common::owned_user_id;

    use super::*;

    const BOB: UserNid = UserNid(7);

    fn update(stream_id: i64, prev_id: &[i64]) -> Update {
        Update::Device {
            user_id: owned_user_id!("@bob:there"),
            stream_id,
            prev_id: prev_id.to_vec(),
            device: RemoteDevice {
                device_id: "PHONE".to_owned(),
                device_display_name: None,
                keys: None,
            },
            deleted: false,
        }
    }

    fn known(stream_id: i64) -> Batched {
        let list = Followed { stream_id, is_stale: false };
        Batched { lists: BTreeMap::from([(BOB, list)]), ..Batched::default() }
    }

    #[test]
    fn an_update_that_follows_is_taken_in() {
        let mut batched = known(4);
        batched.take(BOB, &update(6, &[3, 4]));
        batched.take(BOB, &update(9, &[6]));
        assert_eq!(batched.lists[&BOB], Followed { stream_id: 9, is_stale: false });
        assert_eq!(batched.devices.len(), 1);
    }

    #[test]
    fn one_that_was_missed_makes_the_list_stale() {
        for mut batched in [known(4), Batched::default()] {
            batched.take(BOB, &update(9, &[6]));
            batched.take(BOB, &update(10, &[9]));
            assert!(batched.lists[&BOB].is_stale && batched.has_stale);
            assert!(batched.devices.is_empty());
        }
    }

    #[test]
    fn a_user_has_no_more_devices_than_that() {
        let mut batched = known(4);
        let mut devices: BTreeSet<String> = (1..MOST_DEVICES).map(|n| format!("D{n}")).collect();
        devices.insert("OTHER".to_owned());
        batched.known.insert(BOB, devices);
        batched.take(BOB, &update(5, &[4]));
        assert!(batched.devices.is_empty() && batched.rows.is_empty());
        assert_eq!(batched.lists[&BOB], Followed { stream_id: 5, is_stale: false });
        batched.known.get_mut(&BOB).unwrap().remove("OTHER");
        batched.take(BOB, &update(6, &[5]));
        batched.take(BOB, &update(7, &[6]));
        assert_eq!(batched.devices.len(), 1, "one that is there may change");
    }

    #[test]
    fn a_repeat_changes_nothing() {
        let mut batched = known(9);
        batched.take(BOB, &update(9, &[6]));
        batched.take(BOB, &update(6, &[]));
        assert!(batched.rows.is_empty());
    }
}
