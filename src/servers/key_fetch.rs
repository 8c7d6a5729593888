//! Asking for keys: a server for its own, and a trusted one for those of others.

use std::time::Duration;

use bytes::Bytes;
use chatd_base::Clock;
use chatd_config::TrustedServer;
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName, serde::Base64,
};
use ruma_signatures::PublicKeySet;
use serde::Deserialize;
use serde_json::{Map, json};

use crate::{
    Ask, Client,
    key_document::{Document, check_signature},
    keyring::Needs,
};

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest document (R8).
const MOST_BYTES: usize = 64 * 1024;
/// Servers about which a trusted one is asked at a time.
const MOST_ASKED: usize = 100;
/// The largest answer to that.
const MOST_BYTES_OF_MANY: usize = 4 * 1024 * 1024;

/// The keys of a server as it tells them itself. The error is for the log.
pub(crate) async fn from_itself(
    client: &Client,
    server: &ServerName,
    clock: &Clock,
) -> Result<Document, String> {
    // It may be the first that is heard of a server that has come back.
    let ask = Ask::get("/_matrix/key/v2/server").within(PATIENCE).most_bytes(MOST_BYTES).anyway();
    let object: CanonicalJsonObject =
        client.ask_json(server, ask).await.map_err(|failure| failure.to_string())?;
    Document::parse(server, &object, clock.now_ms())
}

/// What a trusted server tells of the keys that are needed; what is wrong is left out.
pub(crate) async fn from_trusted(
    client: &Client,
    trusted: &TrustedServer,
    needs: &Needs,
    now_ms: u64,
) -> Vec<Document> {
    let mut documents = Vec::new();
    let all: Vec<_> = needs.iter().collect();
    for some in all.chunks(MOST_ASKED) {
        let body = Bytes::from(question(some).to_string());
        let ask = Ask::post("/_matrix/key/v2/query")
            .json(body)
            .within(PATIENCE)
            .most_bytes(MOST_BYTES_OF_MANY);
        match client.ask_json::<Answer>(&trusted.server_name, ask).await {
            Ok(answer) => documents.extend(checked(trusted, needs, answer, now_ms)),
            Err(failure) => {
                let server = &trusted.server_name;
                tracing::warn!(%server, %failure, "a trusted key server does not answer");
                break;
            }
        }
    }
    documents
}

/// The answer to a question about keys.
#[derive(Deserialize)]
struct Answer {
    server_keys: Vec<CanonicalJsonObject>,
}

fn question(
    needs: &[(&OwnedServerName, &std::collections::BTreeMap<String, u64>)],
) -> serde_json::Value {
    let servers: Map<_, _> = needs
        .iter()
        .map(|(server, keys)| {
            let keys: Map<_, _> = keys
                .iter()
                .map(|(key_id, at_ms)| (key_id.clone(), json!({ "minimum_valid_until_ts": at_ms })))
                .collect();
            (server.to_string(), keys.into())
        })
        .collect();
    json!({ "server_keys": servers })
}

/// The documents of servers that were asked for, signed by them and, where its keys are
/// configured, by the trusted server.
fn checked(trusted: &TrustedServer, needs: &Needs, answer: Answer, now_ms: u64) -> Vec<Document> {
    let keys: Option<PublicKeySet> = trusted.verify_keys.as_ref().map(|keys| {
        let key = |(id, key): (&String, &chatd_config::PublicKey)| {
            (id.clone(), Base64::new(key.0.to_vec()))
        };
        keys.iter().map(key).collect()
    });
    let check = |object: &CanonicalJsonObject| -> Result<Document, String> {
        let name = object.get("server_name").and_then(CanonicalJsonValue::as_str);
        let name = name.and_then(|name| ServerName::parse(name).ok());
        let Some(name) = name.filter(|name| needs.contains_key(name)) else {
            return Err("nobody has asked for it".to_owned());
        };
        if let Some(keys) = &keys {
            check_signature(trusted.server_name.as_str(), keys, object)?;
        }
        Document::parse(&name, object, now_ms)
    };
    let mut documents = Vec::new();
    for object in &answer.server_keys {
        match check(object) {
            Ok(document) => documents.push(document),
            Err(why) => {
                let server = &trusted.server_name;
                tracing::warn!(%server, why, "a trusted key server tells keys that are not to be trusted");
            }
        }
    }
    documents
}
