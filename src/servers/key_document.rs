//! What a server tells of its keys: read, checked, and as it is kept.

use std::collections::BTreeMap;

use chatd_config::PublicKey;
use chatd_storage::server_keys::{ServerKey, ServerKeyDocument};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName, serde::Base64,
};
use ruma_signatures::{PublicKeyMap, PublicKeySet, verify_json};

use crate::x_matrix::is_key_id;

/// Longest time for which keys are taken as they are, whatever their server says (spec: 7 days).
const LONGEST_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Keys that one document may tell of (R8).
const MOST_KEYS: usize = 100;

/// One key of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub key: PublicKey,
    /// What it has signed at or before is good.
    pub valid_until_ms: u64,
    /// Whether the server signs with it no more.
    pub is_old: bool,
    /// Until when what tells of it is valid.
    told_until_ms: u64,
}

/// What is known of the keys of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerKeys {
    keys: BTreeMap<String, Known>,
    /// When the newest of it was fetched.
    fetched_ms: u64,
}

impl ServerKeys {
    /// The key of that id, if what it has signed at `at_ms` is good.
    pub(crate) fn find(&self, key_id: &str, at_ms: u64) -> Option<&Known> {
        self.keys.get(key_id).filter(|known| known.valid_until_ms >= at_ms)
    }

    /// Whether asking the server again may make the key of that id good at `at_ms`.
    pub(crate) fn may_change(&self, key_id: &str, at_ms: u64) -> bool {
        self.keys.get(key_id).is_none_or(|known| !known.is_old && known.valid_until_ms < at_ms)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether more than half of the time is over for which the key is good.
    pub(crate) fn is_half_over(&self, key_id: &str, now_ms: u64) -> bool {
        self.keys.get(key_id).is_some_and(|known| {
            let left = known.valid_until_ms.saturating_sub(now_ms);
            !known.is_old && left < known.valid_until_ms.saturating_sub(self.fetched_ms) / 2
        })
    }

    /// Until when all keys in use are good at least; 0 if there are none.
    pub(crate) fn valid_until_ms(&self) -> u64 {
        let in_use = self.keys.values().filter(|known| !known.is_old);
        in_use.map(|known| known.valid_until_ms).min().unwrap_or(0)
    }

    /// Adds one key. What an older document tells of it does not count.
    pub(crate) fn add(&mut self, key_id: String, known: Known, fetched_ms: u64) {
        self.fetched_ms = self.fetched_ms.max(fetched_ms);
        let place = self.keys.entry(key_id).or_insert(known);
        if place.told_until_ms <= known.told_until_ms {
            *place = known;
        }
    }

    pub(crate) fn add_document(&mut self, document: &Document, now_ms: u64) {
        for (key_id, known) in &document.keys {
            self.add(key_id.clone(), *known, now_ms);
        }
    }

    /// Adds a key as it is stored; one that is no key is left out.
    pub(crate) fn add_row(&mut self, row: ServerKey) {
        let Ok(key) = row.public_key.try_into().map(PublicKey) else { return };
        let ms = |value: i64| u64::try_from(value).unwrap_or(0);
        let known = Known {
            key,
            valid_until_ms: ms(row.valid_until_ms),
            is_old: row.is_old,
            told_until_ms: ms(row.told_until_ms),
        };
        self.add(row.key_id, known, ms(row.fetched_ms));
    }

    /// A key that is good for ever or until it expired: of this server.
    pub(crate) fn add_own(&mut self, key_id: String, key: PublicKey, expired_ms: Option<u64>) {
        let known = Known {
            key,
            valid_until_ms: expired_ms.unwrap_or(u64::MAX),
            is_old: expired_ms.is_some(),
            told_until_ms: u64::MAX,
        };
        self.add(key_id, known, 0);
    }
}

/// A document that its server has signed.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub server: OwnedServerName,
    pub keys: Vec<(String, Known)>,
    /// Canonical JSON, with all signatures.
    json: String,
}

impl Document {
    /// Checks what is said to be the keys of `server`: it must have signed that itself, with one
    /// of its keys in use. The error is a part of a sentence.
    pub(crate) fn parse(
        server: &ServerName,
        object: &CanonicalJsonObject,
        now_ms: u64,
    ) -> Result<Self, String> {
        let named = object.get("server_name").and_then(CanonicalJsonValue::as_str);
        if named != Some(server.as_str()) {
            return Err(format!("its server_name is {named:?}"));
        }
        let told_until_ms = milliseconds(object.get("valid_until_ts"))
            .ok_or("its valid_until_ts is no time")?
            .min(now_ms.saturating_add(LONGEST_MS));
        let mut keys = Vec::new();
        let mut in_use = PublicKeySet::new();
        for (key_id, key, _) in entries(object, "verify_keys") {
            in_use.insert(key_id.clone(), Base64::new(key.0.to_vec()));
            let valid_until_ms = told_until_ms;
            keys.push((key_id, Known { key, valid_until_ms, is_old: false, told_until_ms }));
        }
        for (key_id, key, entry) in entries(object, "old_verify_keys") {
            let Some(expired_ms) = milliseconds(entry.get("expired_ts")) else { continue };
            if !in_use.contains_key(&key_id) {
                let valid_until_ms = expired_ms;
                keys.push((key_id, Known { key, valid_until_ms, is_old: true, told_until_ms }));
            }
        }
        if keys.len() > MOST_KEYS {
            return Err(format!("it has {} keys", keys.len()));
        }
        check_signature(server.as_str(), &in_use, object)?;
        let json = serde_json::to_string(object).map_err(|error| error.to_string())?;
        Ok(Self { server: server.to_owned(), keys, json })
    }

    /// As it is kept.
    pub(crate) fn to_stored(&self, now_ms: u64) -> ServerKeyDocument {
        let ms = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let row = |(key_id, known): &(String, Known)| ServerKey {
            server: self.server.to_string(),
            key_id: key_id.clone(),
            public_key: known.key.0.to_vec(),
            valid_until_ms: ms(known.valid_until_ms),
            is_old: known.is_old,
            told_until_ms: ms(known.told_until_ms),
            fetched_ms: ms(now_ms),
        };
        ServerKeyDocument { keys: self.keys.iter().map(row).collect(), json: self.json.clone() }
    }
}

/// Whether `entity` has signed `object` with one of `keys`.
pub(crate) fn check_signature(
    entity: &str,
    keys: &PublicKeySet,
    object: &CanonicalJsonObject,
) -> Result<(), String> {
    let of_entity = object.get("signatures").and_then(|all| all.as_object()?.get(entity));
    let Some(of_entity) = of_entity else { return Err(format!("{entity} has not signed it")) };
    // Others' signatures are nobody's business here.
    let mut signed = object.clone();
    let only = CanonicalJsonObject::from([(entity.to_owned(), of_entity.clone())]);
    signed.insert("signatures".to_owned(), CanonicalJsonValue::Object(only));
    let keys = PublicKeyMap::from([(entity.to_owned(), keys.clone())]);
    verify_json(&keys, &signed).map_err(|error| format!("the signature of {entity}: {error}"))
}

/// The ed25519 keys under `member`, each with what else is said of it.
fn entries<'a>(
    object: &'a CanonicalJsonObject,
    member: &str,
) -> impl Iterator<Item = (String, PublicKey, &'a CanonicalJsonObject)> {
    let all = object.get(member).and_then(CanonicalJsonValue::as_object);
    all.into_iter().flatten().filter_map(|(key_id, entry)| {
        let entry = entry.as_object()?;
        let key = PublicKey::parse(entry.get("key")?.as_str()?)?;
        is_key_id(key_id).then(|| (key_id.clone(), key, entry))
    })
}

fn milliseconds(value: Option<&CanonicalJsonValue>) -> Option<u64> {
    u64::try_from(i64::from(value?.as_integer()?)).ok()
}
