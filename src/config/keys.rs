//! Signing keys: old ones of this server, and whom it asks for those of others.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use ruma_common::{
    OwnedServerName,
    serde::{Base64, base64::Standard},
};
use serde::{Deserialize, Deserializer, de};

use crate::units;

/// What the configuration says of signing keys, besides `signing_key_path`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Keys {
    /// `old_signing_keys`: keys that this server does not sign with any more, by their ids.
    #[serde(rename = "old_signing_keys", deserialize_with = "by_key_id")]
    pub old: BTreeMap<String, OldKey>,
    /// `key_refresh_interval`: for how long others may take this server's keys as they are.
    /// Default one day.
    #[serde(rename = "key_refresh_interval", deserialize_with = "units::duration")]
    pub refresh_interval: Duration,
    /// `trusted_key_servers`: who is asked for the keys of servers that do not answer. Default
    /// matrix.org.
    #[serde(rename = "trusted_key_servers")]
    pub trusted_servers: Vec<TrustedServer>,
    /// `suppress_key_server_warning`.
    #[serde(rename = "suppress_key_server_warning")]
    pub suppress_warning: bool,
    /// `key_server_signing_keys_path`: keys that sign what this server says of others' keys.
    /// Default: the signing key.
    #[serde(rename = "key_server_signing_keys_path")]
    pub notary_keys_path: Option<PathBuf>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            old: BTreeMap::new(),
            refresh_interval: Duration::from_secs(24 * 60 * 60),
            trusted_servers: vec![TrustedServer {
                server_name: "matrix.org".try_into().expect("it is a host name"),
                verify_keys: None,
                accept_keys_insecurely: false,
            }],
            suppress_warning: false,
            notary_keys_path: None,
        }
    }
}

/// One of `old_signing_keys`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OldKey {
    /// The public key.
    #[serde(deserialize_with = "public_key")]
    pub key: PublicKey,
    /// When it was used last, in milliseconds since the epoch.
    #[serde(rename = "expired_ts")]
    pub expired_ms: u64,
}

/// One of `trusted_key_servers`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TrustedServer {
    pub server_name: OwnedServerName,
    /// Keys that its answers must be signed with, by their ids. Without them TLS has to do.
    #[serde(default, deserialize_with = "maybe_by_key_id")]
    pub verify_keys: Option<BTreeMap<String, PublicKey>>,
    /// Whether it is believed although neither its signature nor its certificate is checked.
    #[serde(default)]
    pub accept_keys_insecurely: bool,
}

/// An ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// From base64, padded or not.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Base64::<Standard>::parse(text).ok()?;
        Some(Self(bytes.as_bytes().try_into().ok()?))
    }

    /// Unpadded base64.
    pub fn to_base64(self) -> String {
        Base64::<Standard, _>::new(self.0).encode()
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        public_key(deserializer)
    }
}

fn public_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
    let text = String::deserialize(deserializer)?;
    PublicKey::parse(&text).ok_or_else(|| {
        de::Error::invalid_value(de::Unexpected::Str(&text), &"a public ed25519 key in base64")
    })
}

fn by_key_id<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(maybe_by_key_id(deserializer)?.unwrap_or_default())
}

fn maybe_by_key_id<'de, D, T>(deserializer: D) -> Result<Option<BTreeMap<String, T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let keys = Option::<BTreeMap<String, T>>::deserialize(deserializer)?;
    let is_id =
        |id: &String| id.strip_prefix("ed25519:").is_some_and(|version| !version.is_empty());
    match keys.iter().flat_map(BTreeMap::keys).find(|id| !is_id(id)) {
        Some(wrong) => Err(de::Error::invalid_value(
            de::Unexpected::Str(wrong),
            &"the id of a key, such as ed25519:a_AbCd",
        )),
        None => Ok(keys),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Config, Overrides};

    const KEY: &str = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI";

    fn read(yaml: &str) -> Result<super::Keys, String> {
        let text = format!("server_name: example.org\n{yaml}");
        Config::from_texts(&[("test.yaml", &text)], &Overrides::default())
            .map(|config| config.keys)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_read_as_synapse_has_them() {
        let keys = read(&format!(
            "old_signing_keys:\n  \"ed25519:a_1\": {{ key: {KEY}=, expired_ts: 1576149250000 }}\n\
             key_refresh_interval: 2h\n\
             trusted_key_servers:\n  - server_name: keys.example.org\n    verify_keys:\n      \
             \"ed25519:auto\": {KEY}\n  - server_name: matrix.org\n"
        ))
        .unwrap();
        assert_eq!(keys.old["ed25519:a_1"].expired_ms, 1_576_149_250_000);
        assert_eq!(keys.old["ed25519:a_1"].key.to_base64(), KEY);
        assert_eq!(keys.refresh_interval.as_secs(), 7_200);
        assert_eq!(keys.trusted_servers.len(), 2);
        assert_eq!(keys.trusted_servers[0].verify_keys.as_ref().unwrap().len(), 1);
        assert_eq!(read("").unwrap().trusted_servers[0].server_name, "matrix.org");
    }

    #[test]
    fn what_is_no_key_is_named() {
        let table = [
            ("old_signing_keys:\n  a_1: { key: KEY, expired_ts: 1 }", "the id of a key"),
            ("old_signing_keys:\n  \"ed25519:a\": { key: AAAA, expired_ts: 1 }", "ed25519 key"),
            ("trusted_key_servers:\n  - server_name: \"a b\"", "trusted_key_servers"),
            ("trusted_key_servers:\n  - server: a", "server_name"),
            (
                "federation_verify_certificates: false\ntrusted_key_servers:\n  - server_name: a",
                "neither its certificate nor its signature",
            ),
        ];
        for (yaml, told) in table {
            let error = read(&yaml.replace("KEY", KEY)).unwrap_err();
            assert!(error.contains(told), "{yaml}: {error}");
        }
    }
}
