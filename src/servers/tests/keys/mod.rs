//! Keys and signatures as a whole: the specification's vectors, and documents and requests that
//! are signed, changed and expired.

mod documents;
mod events;
mod requests;

use chatd_config::{Keys, OldKey, PublicKey, SigningKey, SigningKeys};
use ruma_common::{CanonicalJsonObject, CanonicalJsonValue, serde::Base64};
use serde_json::Value;

use crate::{key_document::Document, own_keys::OwnKeys};

/// The seed of the specification's vectors.
const SEED: &str = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
const NOW_MS: u64 = 1_700_000_000_000;
const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1000;

fn signing_key(version: &str) -> SigningKey {
    let seed = Base64::<ruma_common::serde::base64::Standard>::parse(SEED).unwrap().into_inner();
    SigningKey { version: version.to_owned(), seed: seed.try_into().unwrap() }
}

fn own_keys(server: &str, config: &Keys) -> OwnKeys {
    let keys = SigningKeys::of(signing_key("1"));
    OwnKeys::new(server.try_into().unwrap(), &keys, None, config).unwrap()
}

fn with_old_key() -> Keys {
    let key = PublicKey([7; 32]);
    let old = OldKey { key, expired_ms: NOW_MS - 1_000 };
    Keys { old: [("ed25519:old".to_owned(), old)].into(), ..Keys::default() }
}

fn object(value: Value) -> CanonicalJsonObject {
    match CanonicalJsonValue::try_from(value).unwrap() {
        CanonicalJsonValue::Object(object) => object,
        other => panic!("{other:?} is no object"),
    }
}

/// What `server` tells of its keys, as it is read at `now_ms`.
fn document(server: &str, now_ms: u64) -> Document {
    let json = own_keys(server, &with_old_key()).document(NOW_MS).unwrap();
    let object = serde_json::from_slice(&json).unwrap();
    Document::parse(server.try_into().unwrap(), &object, now_ms).unwrap()
}
