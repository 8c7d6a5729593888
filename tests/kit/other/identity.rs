//! An identity server: it knows whose some addresses are, takes invites of others, and signs who
//! has come.

use std::sync::{Arc, Mutex};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Key, Other, Reply, Seen, lock};

/// What addresses are hashed with.
const PEPPER: &str = "a pepper";
/// What it knows those by who may ask.
pub const ACCESS_TOKEN: &str = "a token of the identity server";

/// The part of an identity server that signs who has come; cheap to clone.
#[derive(Clone, Debug)]
pub struct Vouching {
    server: String,
    key: Key,
    is_valid: Arc<Mutex<bool>>,
    taken: Arc<Mutex<Vec<Value>>>,
}

impl Vouching {
    /// What it signs of `user`, whom `sender` has invited by `token`.
    pub fn sign(&self, sender: &str, user: &str, token: &str) -> Value {
        let signed = json!({"sender": sender, "mxid": user, "token": token});
        self.key.sign(&self.server, signed)
    }

    /// The same with one more signature, by this server.
    pub fn sign_too(&self, signed: Value) -> Value {
        self.key.sign(&self.server, signed)
    }

    /// The content of an event that waits in the room for whoever comes, with the keys of all of
    /// these servers.
    pub fn pending(of: &[&Self]) -> Value {
        let key = |one: &&Self| json!({"public_key": one.key.public(), "key_validity_url": one.validity_url()});
        json!({"display_name": "c...@e...", "public_keys": of.iter().map(key).collect::<Vec<_>>()})
    }

    fn validity_url(&self) -> String {
        format!("https://{}/_matrix/identity/v2/pubkey/isvalid", self.server)
    }

    /// What homeservers are told of somebody who has come.
    pub fn bound(&self, room: &str, sender: &str, user: &str, token: &str) -> Value {
        let signed = self.sign(sender, user, token);
        json!({"room_id": room, "sender": sender, "mxid": user, "signed": signed})
    }

    /// The public half of the key that it signs with.
    pub fn public_key(&self) -> String {
        self.key.public()
    }

    /// Says from now on that its key does not count.
    pub fn revoke(&self) {
        *lock(&self.is_valid) = false;
    }

    /// The invites that it was asked to take, as they came.
    pub fn taken(&self) -> Vec<Value> {
        lock(&self.taken).clone()
    }

    fn take(&self, seen: &Seen) -> Reply {
        let mut taken = lock(&self.taken);
        taken.push(seen.body.clone());
        let url = self.validity_url();
        Reply::json(&json!({
            "token": format!("token{}", taken.len()),
            "display_name": "c...@e...",
            "public_key": self.key.public(),
            "public_keys": [{"public_key": self.key.public(), "key_validity_url": url}],
        }))
    }
}

impl Other {
    /// Makes it an identity server as well, for those who show [`ACCESS_TOKEN`]: it knows these
    /// pairs of addresses (of mail) and users.
    pub fn identify(&self, known: &[(&str, &str)]) -> Vouching {
        let vouching = Vouching {
            server: self.name(),
            key: Key::generate("0"),
            is_valid: Arc::new(Mutex::new(true)),
            taken: Arc::default(),
        };
        let hashed = |address: &str| {
            URL_SAFE_NO_PAD.encode(Sha256::digest(format!("{address} email {PEPPER}")))
        };
        let known: Vec<(String, String)> =
            known.iter().map(|(address, user)| (hashed(address), (*user).to_owned())).collect();
        let details = json!({"algorithms": ["none", "sha256"], "lookup_pepper": PEPPER});
        self.always("GET", "/_matrix/identity/v2/hash_details", Reply::json(&details));
        self.on("POST", "/_matrix/identity/v2/lookup", move |seen| {
            let asked = seen.body["addresses"].as_array().cloned().unwrap_or_default();
            let found = known.iter().filter(|(hash, _)| asked.contains(&json!(hash)));
            let found: Value = found.map(|(hash, user)| (hash.clone(), json!(user))).collect();
            Some(Reply::json(&json!({"mappings": found})))
        });
        let taking = vouching.clone();
        self.on("POST", "/_matrix/identity/v2/store-invite", move |seen| Some(taking.take(seen)));
        let asked = vouching.clone();
        self.on("GET", "/_matrix/identity/v2/pubkey/isvalid", move |seen| {
            let is_ours = seen.query("public_key") == Some(asked.key.public());
            Some(Reply::json(&json!({"valid": is_ours && *lock(&asked.is_valid)})))
        });
        for path in ["hash_details", "lookup", "store-invite"] {
            self.on("", &format!("/_matrix/identity/v2/{path}"), |seen| {
                let shown = seen.headers.get("authorization");
                let is_known =
                    shown.is_some_and(|token| *token == format!("Bearer {ACCESS_TOKEN}"));
                (!is_known).then(|| Reply::refused(401, "M_UNAUTHORIZED"))
            });
        }
        vouching
    }
}
