//! Cross-signing keys, and signatures that users add to keys later.

use std::collections::{BTreeMap, HashMap};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use chatd_base::{Error, Refusal, Requester, Result, UserNid};
use chatd_storage::{
    Batch,
    cross_signing::{self, CrossSigning, KeyKind, Signature},
};
use chatd_streams::device_lists::KeyChange;
use ruma_common::{CanonicalJsonObject, OwnedUserId, SigningKeyAlgorithm, UserId};
use ruma_signatures::{to_canonical_json_string_for_signing, verify_canonical_json_bytes};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::keys::{Keys, changed, is_same_json};

/// Most signatures in one upload (R8).
const MAX_SIGNATURES: usize = 2_000;
/// Base64 as clients write it: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

type Object = Map<String, Value>;

/// Body of `/keys/device_signing/upload`.
#[derive(Debug, Default, Deserialize)]
pub struct NewKeys {
    master_key: Option<Object>,
    self_signing_key: Option<Object>,
    user_signing_key: Option<Object>,
}

impl NewKeys {
    fn each(&self) -> impl Iterator<Item = (KeyKind, &Object)> {
        [
            (KeyKind::Master, &self.master_key),
            (KeyKind::SelfSigning, &self.self_signing_key),
            (KeyKind::UserSigning, &self.user_signing_key),
        ]
        .into_iter()
        .filter_map(|(kind, key)| Some((kind, key.as_ref()?)))
    }
}

/// Signed objects by user and device id or public key.
pub type NewSignatures = BTreeMap<OwnedUserId, BTreeMap<String, Object>>;

impl Keys {
    /// Whether the requester must confirm who they are before `new` replaces what there is: not
    /// for the first keys, and not for those that are there already.
    pub async fn must_confirm(&self, who: &Requester, new: &NewKeys) -> Result<bool> {
        let stored = cross_signing::get(&self.deps.pool, who.user).await?;
        Ok(stored.master.is_some() && new.each().any(|(kind, key)| !is_stored(&stored, kind, key)))
    }

    /// Replaces cross-signing keys of the requester. Refuses keys of others, of another use, and
    /// those that the master key has not signed.
    pub async fn set_cross_signing(&self, who: &Requester, new: NewKeys) -> Result<()> {
        let stored = cross_signing::get(&self.deps.pool, who.user).await?;
        for (kind, key) in new.each() {
            check_cross_signing(key, kind, &who.user_id)?;
        }
        let old_master = stored.master.as_deref().map(parse).transpose()?;
        let master = new.master_key.as_ref().or(old_master.as_ref());
        for (kind, key) in new.each().filter(|(kind, _)| *kind != KeyKind::Master) {
            let master = master.ok_or_else(|| Refusal::missing_param("there is no master key"))?;
            if !public_keys(master).any(|(id, public)| is_signed(key, &who.user_id, id, public)) {
                let message = format!("the {} key is not signed by the master key", kind.as_str());
                return Err(Refusal::new(400, "M_INVALID_SIGNATURE", message).into());
            }
        }
        let texts: Vec<(KeyKind, String)> = new
            .each()
            .filter(|(kind, key)| !is_stored(&stored, *kind, key))
            .map(|(kind, key)| (kind, Value::Object(key.clone()).to_string()))
            .collect();
        if texts.is_empty() {
            return Ok(());
        }
        let user = who.user;
        let statements = move |batch: &mut Batch| {
            for (kind, text) in &texts {
                cross_signing::set_key(batch, user, *kind, text);
            }
        };
        let rows = vec![changed(user, &who.user_id, None)];
        self.writer.append(KeyChange { rows, statements: Box::new(statements) }).await?;
        Ok(())
    }

    /// Adds signatures that keys of the requester made on their own devices and master key, and on
    /// the master keys of others. Returns those that were refused, by user and key. `elsewhere`
    /// are master keys as other servers have told them just now.
    pub async fn add_signatures(
        &self,
        who: &Requester,
        new: &NewSignatures,
        elsewhere: &BTreeMap<String, Value>,
    ) -> Result<BTreeMap<String, Map<String, Value>>> {
        if new.values().map(BTreeMap::len).sum::<usize>() > MAX_SIGNATURES {
            return Err(Refusal::too_large("too many signatures in one upload").into());
        }
        let names: Vec<&str> = elsewhere.keys().map(String::as_str).collect();
        self.deps.interner.users(&names).await?;
        let users = self.existing_users(new.keys()).await?;
        let nids: Vec<UserNid> = users.keys().copied().collect();
        let mut known = self.known(who, &nids).await?;
        for (nid, user) in &users {
            if let Some(Value::Object(master)) = elsewhere.get(user.as_str()) {
                known.masters.insert(*nid, master.clone());
            }
        }
        let by_id: HashMap<&UserId, UserNid> =
            users.iter().map(|(nid, user)| (&***user, *nid)).collect();
        let mut failures: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
        let (mut good, mut touched) = (Vec::new(), BTreeMap::new());
        for (user, objects) in new {
            for (target, object) in objects {
                let nid = by_id.get(&**user).copied();
                match known.check(who, user, nid, target, object) {
                    Ok(signatures) => {
                        let device = known.devices.contains_key(target) && *user == who.user_id;
                        touched.insert((user.clone(), device.then(|| target.clone())), nid);
                        good.extend(signatures);
                    }
                    Err(refusal) => {
                        let failed = failures.entry(user.to_string()).or_default();
                        failed.insert(target.clone(), refusal.to_json());
                    }
                }
            }
        }
        let rows: Vec<_> = touched
            .iter()
            .filter_map(|((user, device), nid)| Some(changed((*nid)?, user, device.as_deref())))
            .collect();
        if !good.is_empty() {
            let signer = who.user;
            let statements =
                move |batch: &mut Batch| cross_signing::insert_signatures(batch, signer, &good);
            self.writer.append(KeyChange { rows, statements: Box::new(statements) }).await?;
        }
        Ok(failures)
    }

    async fn known(&self, who: &Requester, users: &[UserNid]) -> Result<Known> {
        let pool = &self.deps.pool;
        let own = cross_signing::get(pool, who.user).await?;
        let mut devices = HashMap::new();
        for (id, keys) in cross_signing::list_device_keys(pool, who.user).await? {
            devices.insert(id, parse(&keys)?);
        }
        let mut masters = HashMap::new();
        for (user, key) in cross_signing::list_master_keys(pool, users).await? {
            masters.insert(user, parse(&key)?);
        }
        let key = |text: Option<String>| text.as_deref().map(parse).transpose();
        Ok(Known {
            devices,
            masters,
            self_signing: key(own.self_signing)?,
            user_signing: key(own.user_signing)?,
        })
    }
}

/// What signatures are checked against.
struct Known {
    /// The requester's own.
    devices: HashMap<String, Object>,
    masters: HashMap<UserNid, Object>,
    self_signing: Option<Object>,
    user_signing: Option<Object>,
}

impl Known {
    /// The signatures of the requester on `object`, all of them good.
    fn check(
        &self,
        who: &Requester,
        user: &UserId,
        nid: Option<UserNid>,
        target: &str,
        object: &Object,
    ) -> Result<Vec<Signature>, Refusal> {
        let is_own = user == who.user_id;
        let nid = nid.ok_or_else(|| Refusal::not_found("unknown user"))?;
        let own_device = self.devices.get(target).filter(|_| is_own);
        let master = || {
            let master = self.masters.get(&nid);
            master.filter(|key| public_keys(key).any(|(_, public)| public == target))
        };
        let stored =
            own_device.or_else(master).ok_or_else(|| Refusal::not_found("there is no such key"))?;
        if unsigned(stored) != unsigned(object) {
            return Err(Refusal::invalid_param("the key is not the one that is stored"));
        }
        let signers: Vec<&Object> = if own_device.is_some() {
            self.self_signing.iter().collect()
        } else if is_own {
            self.devices.values().collect()
        } else {
            self.user_signing.iter().collect()
        };
        let made = object.get("signatures").and_then(|s| s.get(who.user_id.as_str()));
        let made = made.and_then(Value::as_object).cloned().unwrap_or_default();
        let old = stored.get("signatures").and_then(|s| s.get(who.user_id.as_str()));
        let mut found = Vec::new();
        for (key_id, signature) in &made {
            if old.and_then(|old| old.get(key_id)) == Some(signature) {
                continue;
            }
            let mut keys = signers.iter().flat_map(|signer| public_keys(signer));
            let is_good = keys
                .any(|(id, public)| id == key_id && is_signed(object, &who.user_id, id, public));
            let signature = signature.as_str().filter(|_| is_good).ok_or_else(|| {
                Refusal::new(400, "M_INVALID_SIGNATURE", "the signature is not good")
            })?;
            let (target, key_id) = (target.to_owned(), key_id.clone());
            found.push(Signature { user: nid, target, key_id, signature: signature.to_owned() });
        }
        Ok(found)
    }
}

fn parse(text: &str) -> Result<Object> {
    serde_json::from_str(text).map_err(Error::internal)
}

fn is_stored(stored: &CrossSigning, kind: KeyKind, key: &Object) -> bool {
    let old = match kind {
        KeyKind::Master => &stored.master,
        KeyKind::SelfSigning => &stored.self_signing,
        KeyKind::UserSigning => &stored.user_signing,
    };
    old.as_ref().is_some_and(|old| is_same_json(old, &Value::Object(key.clone()).to_string()))
}

/// (key id, public part) of the ed25519 keys in a device's or a cross-signing key.
fn public_keys(key: &Object) -> impl Iterator<Item = (&str, &str)> {
    let keys = key.get("keys").and_then(Value::as_object);
    keys.into_iter()
        .flatten()
        .filter(|(id, _)| id.starts_with("ed25519:"))
        .filter_map(|(id, public)| Some((id.as_str(), public.as_str()?)))
}

/// The object without what is not signed.
fn unsigned(object: &Object) -> Object {
    let mut object = object.clone();
    object.remove("signatures");
    object.remove("unsigned");
    object
}

/// Whether `user`'s key `key_id` with this public part has signed `object`.
fn is_signed(object: &Object, user: &UserId, key_id: &str, public: &str) -> bool {
    let signature = object
        .get("signatures")
        .and_then(|signatures| signatures.get(user.as_str())?.get(key_id)?.as_str())
        .and_then(|signature| BASE64.decode(signature).ok());
    let canonical = serde_json::from_value::<CanonicalJsonObject>(Value::Object(object.clone()))
        .ok()
        .and_then(|object| to_canonical_json_string_for_signing(&object).ok());
    let (Some(signature), Some(canonical), Ok(public)) =
        (signature, canonical, BASE64.decode(public))
    else {
        return false;
    };
    let algorithm = SigningKeyAlgorithm::Ed25519;
    verify_canonical_json_bytes(&algorithm, &public, &signature, canonical.as_bytes()).is_ok()
}

fn check_cross_signing(key: &Object, kind: KeyKind, user: &UserId) -> Result<()> {
    let is_own = key.get("user_id").and_then(Value::as_str) == Some(user.as_str());
    let usage = key.get("usage").and_then(Value::as_array);
    let has_usage = usage.is_some_and(|usage| usage.contains(&json!(kind.as_str())));
    let count = key.get("keys").and_then(Value::as_object).map_or(0, Map::len);
    if !is_own || !has_usage || count != 1 || public_keys(key).count() != 1 {
        let message = format!("the {} key is not one of this user", kind.as_str());
        return Err(Refusal::invalid_param(message).into());
    }
    Ok(())
}
