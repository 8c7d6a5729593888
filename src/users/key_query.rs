//! What `/keys/query` tells of users: device keys and cross-signing keys, with the signatures
//! that the asking user may see.

use std::collections::{BTreeMap, HashMap};

use chatd_base::{Error, Refusal, Requester, Result, UserNid};
use chatd_storage::{
    cross_signing,
    keys::{self, KeyRow},
};
use ruma_common::OwnedUserId;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::keys::Keys;

/// Most users that one request may ask for (R8).
const MAX_USERS: usize = 10_000;

/// The answer of `/keys/query`.
#[derive(Debug, Default, Serialize)]
pub struct Queried {
    pub device_keys: BTreeMap<String, Map<String, Value>>,
    pub master_keys: BTreeMap<String, Value>,
    pub self_signing_keys: BTreeMap<String, Value>,
    /// Only the asking user's own.
    pub user_signing_keys: BTreeMap<String, Value>,
    pub failures: Map<String, Value>,
}

/// Device ids by user; an empty list means all.
pub type Wanted = BTreeMap<OwnedUserId, Vec<String>>;

/// A signature that was added to a key after it was uploaded.
struct Late {
    user: UserNid,
    target: String,
    signer: UserNid,
    key_id: String,
    signature: String,
}

impl Keys {
    /// Keys of this server's users in `wanted` as the requester may see them, and of those others
    /// whose devices are followed.
    pub async fn query(&self, who: &Requester, wanted: &Wanted) -> Result<Queried> {
        if wanted.len() > MAX_USERS {
            return Err(Refusal::too_large("too many users in one query").into());
        }
        let mut answer = Queried::default();
        let local = wanted.keys().filter(|u| u.server_name() == self.deps.config.server_name);
        answer.device_keys = local.map(|user| (user.to_string(), Map::new())).collect();
        let mut users = self.local_users(wanted.keys()).await?;
        for (nid, user) in self.followed_users(wanted.keys()).await? {
            answer.device_keys.insert(user.to_string(), Map::new());
            users.insert(nid, user);
        }
        if users.is_empty() {
            return Ok(answer);
        }
        let mut names: HashMap<UserNid, String> =
            users.iter().map(|(nid, user)| (*nid, user.to_string())).collect();
        self.name_signers(&mut names, who);
        self.read_keys(&mut answer, &users, who.user, wanted, names).await?;
        Ok(answer)
    }

    /// Puts what the requester has signed on keys that other servers have told of `users`.
    pub async fn sign_as<'a>(
        &self,
        who: &Requester,
        users: impl Iterator<Item = &'a OwnedUserId>,
        answer: &mut Queried,
    ) -> Result<()> {
        let names: Vec<&str> = users.map(|user| user.as_str()).collect();
        let nids = self.deps.interner.known_users(&names).await?;
        let known = nids.into_iter().zip(names).filter_map(|(nid, name)| Some((nid?, name)));
        let mut names: HashMap<_, _> = known.map(|(nid, name)| (nid, name.to_owned())).collect();
        let nids: Vec<UserNid> = names.keys().copied().collect();
        if nids.is_empty() {
            return Ok(());
        }
        let signed = cross_signing::list_signatures_by(&self.deps.pool, &nids, who.user).await?;
        let late = signed.into_iter().map(|signature| Late {
            user: signature.user,
            target: signature.target,
            signer: who.user,
            key_id: signature.key_id,
            signature: signature.signature,
        });
        self.name_signers(&mut names, who);
        answer.sign(&names, late.collect());
        Ok(())
    }

    /// As [`Keys::query`], for other servers: with the signatures that everybody may see.
    pub async fn query_for_servers(&self, wanted: &Wanted) -> Result<Queried> {
        let mut answer = Queried::default();
        let users = self.local_users(wanted.keys()).await?;
        if !users.is_empty() {
            let names = users.iter().map(|(nid, user)| (*nid, user.to_string())).collect();
            self.read_keys(&mut answer, &users, UserNid(0), wanted, names).await?;
        }
        Ok(answer)
    }

    /// Reads keys of `users` as `asker` may see them. `names` are those of possible signers.
    async fn read_keys(
        &self,
        answer: &mut Queried,
        users: &HashMap<UserNid, &OwnedUserId>,
        asker: UserNid,
        wanted: &Wanted,
        names: HashMap<UserNid, String>,
    ) -> Result<()> {
        let nids: Vec<UserNid> = users.keys().copied().collect();
        let mut late = Vec::new();
        for (user, row) in keys::list(&self.deps.pool, &nids, asker).await? {
            let Some(user_id) = users.get(&user) else { continue };
            match row {
                KeyRow::Signature { target, signer, key_id, signature } => {
                    late.push(Late { user, target, signer, key_id, signature });
                }
                row => answer.add(user_id, wanted, row)?,
            }
        }
        answer.sign(&names, late);
        Ok(())
    }

    /// Signers are the users themselves or the asking one.
    fn name_signers(&self, names: &mut HashMap<UserNid, String>, who: &Requester) {
        names.entry(who.user).or_insert_with(|| who.user_id.to_string());
    }
}

impl Queried {
    fn add(&mut self, user: &OwnedUserId, wanted: &Wanted, row: KeyRow) -> Result<()> {
        let parse = |text: &str| serde_json::from_str::<Value>(text).map_err(Error::internal);
        match row {
            KeyRow::Device { device_id, keys, display_name } => {
                let list = wanted.get(user).map_or(&[][..], Vec::as_slice);
                if list.is_empty() || list.contains(&device_id) {
                    let mut keys = parse(&keys)?;
                    if let Some(name) = display_name {
                        keys["unsigned"] = json!({ "device_display_name": name });
                    }
                    self.device_keys.entry(user.to_string()).or_default().insert(device_id, keys);
                }
            }
            KeyRow::CrossSigning { kind, key } => {
                let keys = match kind {
                    b'm' => &mut self.master_keys,
                    b's' => &mut self.self_signing_keys,
                    _ => &mut self.user_signing_keys,
                };
                keys.insert(user.to_string(), parse(&key)?);
            }
            KeyRow::Signature { .. } => {}
        }
        Ok(())
    }

    /// Puts signatures on the keys that they are on.
    fn sign(&mut self, names: &HashMap<UserNid, String>, late: Vec<Late>) {
        for signature in late {
            let (Some(user), Some(signer)) =
                (names.get(&signature.user), names.get(&signature.signer))
            else {
                continue;
            };
            let device =
                self.device_keys.get_mut(user).and_then(|keys| keys.get_mut(&signature.target));
            let key = device.or_else(|| {
                self.master_keys.get_mut(user).filter(|key| has_key(key, &signature.target))
            });
            if let Some(key) = key {
                key["signatures"][signer.as_str()][signature.key_id.as_str()] =
                    signature.signature.into();
            }
        }
    }
}

/// Whether a cross-signing key has this public part.
fn has_key(key: &Value, public: &str) -> bool {
    let keys = key.get("keys").and_then(Value::as_object);
    keys.is_some_and(|keys| keys.values().any(|value| value.as_str() == Some(public)))
}
