//! This server's own keys: what it signs with, and what it tells others of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use chatd_base::{Error, Result};
use chatd_config::{OldKey, PublicKey, SigningKey, SigningKeys};
use ed25519_dalek::Signer as _;
use js_int::UInt;
use parking_lot::Mutex;
use ruma_common::{AnyKeyName, CanonicalJsonObject, OwnedServerName, OwnedSigningKeyId};
use ruma_signatures::{KeyPair, Signature, sign_json};
use serde_json::{Map, json};

use crate::key_document::ServerKeys;

/// One key that signs.
pub(crate) struct Pair {
    key_id: OwnedSigningKeyId<AnyKeyName>,
    key: ed25519_dalek::SigningKey,
}

impl Pair {
    pub(crate) fn new(key: &SigningKey) -> Result<Self> {
        let key_id = OwnedSigningKeyId::try_from(key.key_id()).map_err(Error::internal)?;
        Ok(Self { key_id, key: ed25519_dalek::SigningKey::from_bytes(&key.seed) })
    }

    fn public(&self) -> PublicKey {
        PublicKey(self.key.verifying_key().to_bytes())
    }
}

/// The public part of a key.
pub fn public_key(key: &SigningKey) -> PublicKey {
    PublicKey(ed25519_dalek::SigningKey::from_bytes(&key.seed).verifying_key().to_bytes())
}

impl KeyPair for Pair {
    fn sign(&self, message: &[u8]) -> Signature {
        Signature::new(self.key_id.clone(), self.key.sign(message).to_bytes().to_vec())
    }
}

/// The keys of this server.
pub(crate) struct OwnKeys {
    server: OwnedServerName,
    pairs: Vec<Pair>,
    /// Sign what is told of the keys of others.
    notary: Vec<Pair>,
    old: BTreeMap<String, OldKey>,
    refresh_interval: Duration,
    told: Mutex<Option<Told>>,
    as_known: Arc<ServerKeys>,
}

/// A document that can be told until half of its time is over.
struct Told {
    until_ms: u64,
    json: Bytes,
}

impl OwnKeys {
    pub(crate) fn new(
        server: OwnedServerName,
        keys: &SigningKeys,
        notary: Option<&SigningKeys>,
        config: &chatd_config::Keys,
    ) -> Result<Self> {
        let pairs = |keys: &SigningKeys| -> Result<Vec<Pair>> {
            std::iter::once(keys.current()).chain(keys.others()).map(Pair::new).collect()
        };
        let notary = pairs(notary.unwrap_or(keys))?;
        let pairs = pairs(keys)?;
        let mut known = ServerKeys::default();
        for (key_id, old) in &config.old {
            known.add_own(key_id.clone(), old.key, Some(old.expired_ms));
        }
        for pair in &pairs {
            known.add_own(pair.key_id.to_string(), pair.public(), None);
        }
        let (old, refresh_interval) = (config.old.clone(), config.refresh_interval);
        let (told, as_known) = (Mutex::default(), Arc::new(known));
        Ok(Self { server, pairs, notary, old, refresh_interval, told, as_known })
    }

    /// The keys as those of any server.
    pub(crate) fn as_known(&self) -> &Arc<ServerKeys> {
        &self.as_known
    }

    /// What is answered to whoever asks for this server's keys: signed JSON.
    pub(crate) fn document(&self, now_ms: u64) -> Result<Bytes> {
        let mut told = self.told.lock();
        if let Some(told) = told.as_ref().filter(|told| told.until_ms > now_ms) {
            return Ok(told.json.clone());
        }
        let interval_ms = u64::try_from(self.refresh_interval.as_millis()).unwrap_or(u64::MAX);
        let json = Bytes::from(self.make(now_ms.saturating_add(interval_ms))?);
        let until_ms = now_ms.saturating_add(interval_ms / 2);
        *told = Some(Told { until_ms, json: json.clone() });
        Ok(json)
    }

    fn make(&self, valid_until_ms: u64) -> Result<Vec<u8>> {
        let in_use: Map<_, _> = self
            .pairs
            .iter()
            .map(|pair| (pair.key_id.to_string(), json!({ "key": pair.public().to_base64() })))
            .collect();
        let old: Map<_, _> = self
            .old
            .iter()
            .map(|(key_id, old)| {
                let entry = json!({ "key": old.key.to_base64(), "expired_ts": old.expired_ms });
                (key_id.clone(), entry)
            })
            .collect();
        let document = json!({
            "server_name": self.server,
            "valid_until_ts": UInt::new_saturating(valid_until_ms),
            "verify_keys": in_use,
            "old_verify_keys": old,
        });
        let mut object: CanonicalJsonObject =
            serde_json::from_value(document).map_err(Error::internal)?;
        self.sign_with(&self.pairs, &mut object)?;
        serde_json::to_vec(&object).map_err(Error::internal)
    }

    /// Signs what is told of the keys of another server.
    pub(crate) fn sign_as_notary(&self, object: &mut CanonicalJsonObject) -> Result<()> {
        self.sign_with(&self.notary, object)
    }

    fn sign_with(&self, pairs: &[Pair], object: &mut CanonicalJsonObject) -> Result<()> {
        for pair in pairs {
            sign_json(self.server.as_str(), pair, object).map_err(Error::internal)?;
        }
        Ok(())
    }
}
