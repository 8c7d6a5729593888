//! Signing keys: this other server's own, and those that servers publish.

use std::sync::Arc;

use ruma_common::{
    CanonicalJsonObject, canonical_json::try_from_json_map, serde::Base64 as RumaBase64,
};
use ruma_signatures::{Ed25519KeyPair, KeyPair, PublicKeyMap, PublicKeySet, Signature, sign_json};
use serde_json::{Map, Value, json};

/// Unpadded base64, as Matrix writes keys and signatures.
type Base64 = RumaBase64<ruma_common::serde::base64::Standard, Vec<u8>>;

/// An ed25519 key; cheap to clone.
#[derive(Clone)]
pub struct Key {
    pair: Arc<Ed25519KeyPair>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Key").field(&self.id()).finish()
    }
}

impl Key {
    /// A new one; `version` is what follows `ed25519:` in its id.
    pub fn generate(version: &str) -> Self {
        let pair = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), version.to_owned());
        Self { pair: Arc::new(pair.expect("a key as it was made")) }
    }

    /// The one that this seed makes, always the same.
    pub fn of_seed(version: &str, seed: [u8; 32]) -> Self {
        /// What stands before a seed in PKCS #8.
        const HEAD: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];
        let document: Vec<u8> = HEAD.into_iter().chain(seed).collect();
        let pair = Ed25519KeyPair::from_der(&document, version.to_owned());
        Self { pair: Arc::new(pair.expect("any seed makes a key")) }
    }

    /// `ed25519:<version>`.
    pub fn id(&self) -> String {
        format!("ed25519:{}", self.pair.version())
    }

    /// Its public half, in base64.
    pub fn public(&self) -> String {
        Base64::new(self.pair.public_key().to_vec()).encode()
    }

    /// What signs.
    pub(crate) fn pair(&self) -> &impl KeyPair {
        &*self.pair
    }

    /// Adds `server`'s signature to an object.
    pub fn sign(&self, server: &str, object: Value) -> Value {
        let mut object = canonical(object);
        sign_json(server, self.pair(), &mut object).expect("an object can be signed");
        serde_json::to_value(object).expect("canonical JSON is JSON")
    }

    /// The signature of some bytes, in base64.
    pub fn signature(&self, bytes: &[u8]) -> String {
        let signature: Signature = self.pair.sign(bytes);
        signature.base64()
    }
}

/// The keys that a server publishes.
#[derive(Clone, Debug)]
pub struct Published {
    /// Those that sign.
    pub current: Vec<Key>,
    /// Those that have signed until then, in milliseconds since the epoch.
    pub old: Vec<(Key, u64)>,
    /// Until when the current ones may be relied upon, in milliseconds since the epoch.
    pub valid_until_ms: u64,
}

impl Published {
    /// What `/_matrix/key/v2/server` answers.
    pub fn document(&self, server: &str) -> Value {
        let current: Map<String, Value> =
            self.current.iter().map(|key| (key.id(), json!({"key": key.public()}))).collect();
        let old: Map<String, Value> = self
            .old
            .iter()
            .map(|(key, until)| (key.id(), json!({"key": key.public(), "expired_ts": until})))
            .collect();
        let document = json!({
            "server_name": server,
            "verify_keys": current,
            "old_verify_keys": old,
            "valid_until_ts": self.valid_until_ms,
        });
        self.current.iter().fold(document, |document, key| key.sign(server, document))
    }
}

/// The keys in an answer of `/_matrix/key/v2/server`, as what signatures are checked with.
pub fn keys_of(document: &Value) -> PublicKeyMap {
    let server = document["server_name"].as_str().unwrap_or_default();
    let sections = ["verify_keys", "old_verify_keys"].map(|name| document[name].as_object());
    let keys: PublicKeySet = sections
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|(id, key)| Some((id.clone(), Base64::parse(key["key"].as_str()?).ok()?)))
        .collect();
    PublicKeyMap::from([(server.to_owned(), keys)])
}

/// Whether everybody whose signature is on `document` has signed it, with one of `keys`.
pub fn is_signed(document: &Value, keys: &PublicKeyMap) -> bool {
    ruma_signatures::verify_json(keys, &canonical(document.clone())).is_ok()
}

/// `value` as canonical JSON; panics if it is not an object, or cannot be canonical.
#[track_caller]
pub fn canonical(value: Value) -> CanonicalJsonObject {
    match value {
        Value::Object(object) => try_from_json_map(object).expect("canonical JSON"),
        other => panic!("not an object: {other}"),
    }
}

/// Milliseconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "another server has a clock of its own")]
pub fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_millis()).expect("before the year 584 million")
}
