//! Signs requests (spec: server-server API, request authentication).

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use chatd_config::SigningKey as Key;
use ed25519_dalek::{Signer as _, SigningKey};
use ruma_common::{OwnedServerName, ServerName};
use serde::Serialize;
use serde_json::Value;

/// Makes the `Authorization` header of requests from this server.
pub(crate) struct RequestSigner {
    origin: OwnedServerName,
    key_id: String,
    key: SigningKey,
}

/// What is signed. The fields are in the order of canonical JSON.
#[derive(Serialize)]
struct Signed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Value>,
    destination: &'a str,
    method: &'a str,
    origin: &'a str,
    uri: &'a str,
}

impl RequestSigner {
    pub(crate) fn new(origin: OwnedServerName, key: &Key) -> Self {
        Self { origin, key_id: key.key_id(), key: SigningKey::from_bytes(&key.seed) }
    }

    /// The header's value. Fails if `body` is not JSON.
    ///
    /// Numbers that canonical JSON does not have (in to-device messages of clients, say) are
    /// signed as they are written: other servers check the text that they parse.
    pub(crate) fn header(
        &self,
        method: &http::Method,
        destination: &ServerName,
        path_and_query: &str,
        body: Option<&[u8]>,
    ) -> Result<String, serde_json::Error> {
        let signed = Signed {
            // A `Value` keeps the members of its objects sorted.
            content: body.map(serde_json::from_slice).transpose()?,
            destination: destination.as_str(),
            method: method.as_str(),
            origin: self.origin.as_str(),
            uri: path_and_query,
        };
        let signature = self.key.sign(&serde_json::to_vec(&signed)?);
        Ok(format!(
            "X-Matrix origin=\"{}\",destination=\"{destination}\",key=\"{}\",sig=\"{}\"",
            self.origin,
            self.key_id,
            STANDARD_NO_PAD.encode(signature.to_bytes()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::Signature;

    use super::*;

    fn signed(body: Option<&str>, text: &str) {
        let key = Key { version: "1".to_owned(), seed: [3; 32] };
        let signer = RequestSigner::new(ServerName::parse("a.example").unwrap(), &key);
        let to = ServerName::parse("b.example:1").unwrap();
        let header =
            signer.header(&http::Method::PUT, &to, "/x?y=%2F", body.map(str::as_bytes)).unwrap();
        let start =
            "X-Matrix origin=\"a.example\",destination=\"b.example:1\",key=\"ed25519:1\",sig=\"";
        let signature = header.strip_prefix(start).unwrap().strip_suffix('"').unwrap();
        let signature = STANDARD_NO_PAD.decode(signature).unwrap();
        let signature = Signature::from_slice(&signature).unwrap();
        signer.key.verifying_key().verify_strict(text.as_bytes(), &signature).unwrap();
    }

    #[test]
    fn the_signature_covers_canonical_json() {
        signed(
            Some(r#" {"b": {"z": 1, "a": "é\u0041"}, "a": null} "#),
            r#"{"content":{"a":null,"b":{"a":"éA","z":1}},"destination":"b.example:1","method":"PUT","origin":"a.example","uri":"/x?y=%2F"}"#,
        );
        signed(
            None,
            r#"{"destination":"b.example:1","method":"PUT","origin":"a.example","uri":"/x?y=%2F"}"#,
        );
    }
}
