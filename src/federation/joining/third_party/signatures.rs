//! Whether an identity server has signed who has come. All of it is by strangers: the keys are in an
//! event of the room, the signatures in a request.

use chatd_base::{Error, Refusal, Result};
use ruma_common::{AnyKeyName, SigningKeyAlgorithm, SigningKeyId, canonical_json};
use ruma_signatures::verify_canonical_json_bytes;
use serde_json::{Map, Value};

use super::identity::{IdentityKey, MOST_KEYS};

/// Signatures that are tried, each with each key (R8).
const MOST: usize = 20;
/// Of what is signed, as text (R8).
const MOST_BYTES: usize = 8 << 10;

/// Base64 as Matrix has it.
type Base64 = ruma_common::serde::Base64<ruma_common::serde::base64::Standard, Vec<u8>>;

/// What was signed, and the signatures of it.
#[derive(Debug)]
pub(super) struct Signatures {
    bytes: Vec<u8>,
    all: Vec<(SigningKeyAlgorithm, Base64)>,
}

impl Signatures {
    /// Refuses what is larger than an identity server makes it.
    pub fn of(signed: &Map<String, Value>) -> Result<Self> {
        let mut bare = signed.clone();
        let signatures = bare.remove("signatures").unwrap_or_default();
        bare.remove("unsigned");
        let bad = |error: &dyn std::fmt::Display| Refusal::bad_json(format!("`signed`: {error}"));
        let bare = canonical_json::try_from_json_map(bare).map_err(|error| bad(&error))?;
        let bytes = serde_json::to_vec(&bare).map_err(Error::internal)?;
        let servers = signatures.as_object().into_iter().flat_map(Map::values);
        let each = servers.filter_map(Value::as_object).flatten();
        if bytes.len() > MOST_BYTES || each.clone().count() > MOST {
            return Err(bad(&"it is too much to be by an identity server").into());
        }
        let all = each.filter_map(|(id, signature)| {
            let id = <&SigningKeyId<AnyKeyName>>::try_from(id.as_str()).ok()?;
            Some((id.algorithm(), Base64::parse(signature.as_str()?).ok()?))
        });
        Ok(Self { bytes, all: all.collect() })
    }

    /// Whether one of them is by `public_key`.
    pub fn has_one_by(&self, public_key: &str) -> bool {
        let Ok(key) = Base64::parse(public_key) else { return false };
        self.all.iter().any(|(algorithm, signature)| {
            let (key, signature) = (key.as_bytes(), signature.as_bytes());
            verify_canonical_json_bytes(algorithm, key, signature, &self.bytes).is_ok()
        })
    }
}

/// The keys of a pending invite, of which one has to sign; no more than this server itself would
/// put there.
pub(super) fn keys_of(pending: &Map<String, Value>) -> Vec<IdentityKey> {
    let text = |name: &str| pending.get(name).and_then(Value::as_str).map(str::to_owned);
    let alone = text("public_key")
        .map(|public_key| IdentityKey { public_key, key_validity_url: text("key_validity_url") });
    let listed = pending.get("public_keys").and_then(Value::as_array).into_iter().flatten();
    let listed = listed.filter_map(|key| serde_json::from_value(key.clone()).ok());
    listed.take(MOST_KEYS).chain(alone).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(signed: Value) -> Result<Signatures> {
        Signatures::of(signed.as_object().unwrap())
    }

    #[test]
    fn no_more_is_tried_than_identity_servers_make() {
        let many = |count: usize| -> Map<String, Value> {
            (0..count).map(|at| (format!("ed25519:{at}"), json!("AAAA"))).collect()
        };
        let few = of(json!({"token": "t", "signatures": {"a": many(MOST - 1), "b": many(1)}}));
        assert_eq!(few.unwrap().all.len(), MOST);
        let much = of(json!({"token": "t", "signatures": {"a": many(MOST), "b": many(1)}}));
        assert_eq!(much.unwrap_err().errcode(), Some("M_BAD_JSON"));
        assert!(of(json!({"token": "t".repeat(MOST_BYTES)})).is_err());

        let keys: Vec<Value> = (0..1_000).map(|at| json!({"public_key": at.to_string()})).collect();
        let pending = json!({"public_keys": keys, "public_key": "k"});
        let keys = keys_of(pending.as_object().unwrap());
        assert_eq!(keys.len(), MOST_KEYS + 1);
        assert_eq!(keys.last().unwrap().public_key, "k");
    }

    #[test]
    fn what_is_no_signature_is_by_nobody() {
        let odd = json!({"signatures": {"a": {"nothing": "AAAA", "ed25519:1": "!", "ed25519:2": 3,
            "ed25519:3": "AAAA"}, "b": 1}});
        let odd = of(odd).unwrap();
        assert_eq!(odd.all.len(), 1);
        assert!(!odd.has_one_by("AAAA"));
        assert!(!odd.has_one_by("no key"));
    }
}
