//! An identity server, as somebody asks it who invites (spec: identity service API, version 2).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chatd_base::{Error, Refusal, Result};
use chatd_servers::{Failure, Outside};
use ruma_common::OwnedUserId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use url::Url;

use super::{super::candidates::unreached, ByAddress};
use crate::queries::is_of_token;

/// Keys of one invite that are taken on (R8).
pub(super) const MOST_KEYS: usize = 20;

/// An identity server, and whom it is asked about.
pub(super) struct IdentityServer<'a> {
    outside: &'a Outside,
    base: Url,
    by: &'a ByAddress,
    /// As addresses are compared.
    address: String,
}

/// What the identity server has taken on.
#[derive(Debug, Deserialize)]
pub(super) struct Stored {
    pub token: String,
    pub display_name: String,
    #[serde(default)]
    public_keys: Vec<IdentityKey>,
    /// The older form: the key alone.
    public_key: Option<String>,
}

/// A key that signs who has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct IdentityKey {
    pub public_key: String,
    /// Where it is told whether the key counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_validity_url: Option<String>,
}

impl Stored {
    /// The keys, the most important first. `validity_url`: where the key counts that comes alone.
    pub fn keys(&self, validity_url: &str) -> Vec<IdentityKey> {
        let alone = self.public_key.as_ref().map(|key| IdentityKey {
            public_key: key.clone(),
            key_validity_url: Some(validity_url.to_owned()),
        });
        if self.public_keys.is_empty() {
            return alone.into_iter().collect();
        }
        let mut keys: Vec<_> = self.public_keys.iter().take(MOST_KEYS).cloned().collect();
        if let Some(alone) = alone
            && let Some(at) = keys.iter().position(|key| key.public_key == alone.public_key)
        {
            keys.swap(0, at);
        }
        keys
    }
}

#[derive(Deserialize)]
struct HashDetails {
    algorithms: Vec<String>,
    lookup_pepper: String,
}

impl HashDetails {
    /// How the server wants to be asked about somebody: the algorithm, and what it makes of the
    /// address.
    fn lookup(&self, address: &str, medium: &str) -> Option<(&'static str, String)> {
        let knows = |name: &str| self.algorithms.iter().any(|algorithm| algorithm == name);
        if knows("sha256") {
            let hash = Sha256::digest(format!("{address} {medium} {}", self.lookup_pepper));
            return Some(("sha256", URL_SAFE_NO_PAD.encode(hash)));
        }
        knows("none").then(|| ("none", format!("{address} {medium}")))
    }
}

impl<'a> IdentityServer<'a> {
    pub fn new(outside: &'a Outside, by: &'a ByAddress) -> Result<Self> {
        let base = Url::parse(&format!("https://{}/", by.id_server)).map_err(|_| {
            Refusal::invalid_param(format!("{} is no identity server", by.id_server))
        })?;
        let address = match by.medium.as_str() {
            "email" => by.address.to_lowercase(),
            _ => by.address.clone(),
        };
        Ok(Self { outside, base, by, address })
    }

    fn at(&self, path: &str) -> Result<Url> {
        self.base.join(&format!("/_matrix/identity/v2/{path}")).map_err(Error::internal)
    }

    /// Where it tells whether one of its keys counts.
    pub fn validity_url(&self) -> Result<String> {
        self.at("pubkey/isvalid").map(String::from)
    }

    /// The user whose address it is. A server that cannot say so may still take an invite.
    pub async fn look_up(&self) -> Option<OwnedUserId> {
        match self.try_look_up().await {
            Ok(found) => found,
            Err(error) => {
                let server = &self.by.id_server;
                tracing::info!(id_server = %server, %error, "an address could not be looked up");
                None
            }
        }
    }

    async fn try_look_up(&self) -> Result<Option<OwnedUserId>> {
        #[derive(Deserialize)]
        struct Found {
            mappings: HashMap<String, OwnedUserId>,
        }
        let token = Some(self.by.id_access_token.expose());
        let details: HashDetails =
            self.outside.get(&self.at("hash_details")?, token).await.map_err(|f| self.told(f))?;
        let Some((algorithm, lookup)) = details.lookup(&self.address, &self.by.medium) else {
            let message = "the identity server wants addresses in a form that is not known here";
            return Err(Refusal::new(502, "M_UNKNOWN", message).into());
        };
        let body = json!({
            "addresses": [lookup],
            "algorithm": algorithm,
            "pepper": details.lookup_pepper,
        });
        let found: Found =
            self.outside.post(&self.at("lookup")?, token, &body).await.map_err(|f| self.told(f))?;
        Ok(found.mappings.get(&lookup).cloned())
    }

    /// Has it write to the address.
    pub async fn store_invite(&self, letter: &Value) -> Result<Stored> {
        let token = Some(self.by.id_access_token.expose());
        let asked = self.outside.post(&self.at("store-invite")?, token, letter).await;
        let stored: Stored = asked.map_err(|failure| self.told(failure))?;
        if stored.public_keys.is_empty() && stored.public_key.is_none() {
            let why = Failure::Odd("it names no key".to_owned());
            return Err(self.told(why).into());
        }
        Ok(stored)
    }

    /// What the client is told when it does not help. What it thinks of the access token is the
    /// client's business, who has got it there; but it is not the token of this server.
    fn told(&self, failure: Failure) -> Refusal {
        let server = &self.by.id_server;
        match failure {
            Failure::Refused { status: 401, errcode, error, .. } if errcode == "M_UNAUTHORIZED" => {
                Refusal::new(403, errcode, format!("{server}: {error}"))
            }
            Failure::Refused { errcode, error, .. } if is_of_token(&errcode) => {
                Refusal::forbidden(format!("{server}: {error}"))
            }
            Failure::Forbidden(_) => Refusal::forbidden(failure.told()),
            failure => unreached(&[(server.clone(), failure)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hashed_as_the_specification_does() {
        let details = |algorithms: &[&str]| HashDetails {
            algorithms: algorithms.iter().map(|name| (*name).to_owned()).collect(),
            lookup_pepper: "matrixrocks".to_owned(),
        };
        // The examples of the specification.
        let hashed = details(&["none", "sha256"]).lookup("alice@example.com", "email");
        let alice = "4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc".to_owned();
        assert_eq!(hashed, Some(("sha256", alice)));
        let plain = details(&["none"]).lookup("18005552067", "msisdn");
        assert_eq!(plain, Some(("none", "18005552067 msisdn".to_owned())));
        assert_eq!(details(&["md5"]).lookup("a", "email"), None);
    }

    #[test]
    fn keys_come_alone_or_in_a_list() {
        let stored = |value: Value| serde_json::from_value::<Stored>(value).unwrap().keys("u");
        let alone = stored(json!({"token": "t", "display_name": "a", "public_key": "k"}));
        let key = |key: &str, url: Option<&str>| IdentityKey {
            public_key: key.to_owned(),
            key_validity_url: url.map(str::to_owned),
        };
        assert_eq!(alone, [key("k", Some("u"))]);
        let listed = stored(json!({"token": "t", "display_name": "a", "public_key": "k",
            "public_keys": [{"public_key": "l", "key_validity_url": "v"}, {"public_key": "k"}]}));
        assert_eq!(listed, [key("k", None), key("l", Some("v"))]);
    }
}
