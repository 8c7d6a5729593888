//! What this server tells of the keys of others, signed by it too: they use it when those others
//! cannot be reached.

use std::collections::{BTreeMap, BTreeSet};

use chatd_base::{Error, Refusal, Result};
use chatd_storage::server_keys::{self, ToldKey};
use ruma_common::{CanonicalJsonObject, OwnedServerName};

use crate::{Keyring, keyring::Needs};

/// Servers about which one request may ask (R8).
const MOST_SERVERS: usize = 100;
/// Keys of all of them.
const MOST_KEYS: usize = 1_000;

/// Which keys somebody asks for: those of the ids, good until at least then (milliseconds; now, if
/// absent); all keys of a server without any.
pub type KeyQuery = BTreeMap<OwnedServerName, BTreeMap<String, Option<u64>>>;

impl Keyring {
    /// Documents of those servers that tell of the keys, signed by the server and by this one;
    /// each canonical JSON. A server of which nothing is known is left out. Where all keys are
    /// asked for, those in use are to be good until `all_until_ms` (now, if absent).
    pub async fn query(&self, query: &KeyQuery, all_until_ms: Option<u64>) -> Result<Vec<Vec<u8>>> {
        let keys: usize = query.values().map(BTreeMap::len).sum();
        if query.len() > MOST_SERVERS || keys > MOST_KEYS {
            let message = format!("more than {MOST_SERVERS} servers or {MOST_KEYS} keys");
            return Err(Refusal::invalid_param(message).into());
        }
        let now_ms = self.inner.deps.clock.now_ms();
        let us = &self.inner.deps.config.server_name;
        let others: Needs = query
            .iter()
            .filter(|(server, _)| *server != us)
            .map(|(server, keys)| {
                let needed = |(id, at): (&String, &Option<u64>)| (id.clone(), at.unwrap_or(now_ms));
                (server.clone(), keys.iter().map(needed).collect())
            })
            .collect();
        let found = self.inner.gather(&others).await?;
        let until_ms = all_until_ms.unwrap_or(now_ms);
        let is_stale = |server: &&OwnedServerName| {
            others[*server].is_empty()
                && found.get(*server).is_some_and(|keys| keys.valid_until_ms() < until_ms)
        };
        self.inner.refresh(others.keys().filter(is_stale).cloned().collect()).await;
        let names: Vec<&str> = others.keys().map(|server| server.as_str()).collect();
        let mut documents = Vec::new();
        if !names.is_empty() {
            let told = server_keys::list_documents(&self.inner.deps.pool, &names).await?;
            documents = newest_documents(told, query);
        }
        if query.contains_key(us) {
            documents.push(String::from_utf8_lossy(&self.own_document()?).into_owned());
        }
        documents.iter().map(|document| self.signed(document)).collect()
    }

    fn signed(&self, document: &str) -> Result<Vec<u8>> {
        let mut object: CanonicalJsonObject =
            serde_json::from_str(document).map_err(Error::internal)?;
        self.inner.own.sign_as_notary(&mut object)?;
        serde_json::to_vec(&object).map_err(Error::internal)
    }
}

/// The documents that tell of the keys that are asked for, each once.
fn newest_documents(told: Vec<ToldKey>, query: &KeyQuery) -> Vec<String> {
    let is_wanted = |key: &ToldKey| {
        query.iter().any(|(server, ids)| {
            server.as_str() == key.server && (ids.is_empty() || ids.contains_key(&key.key_id))
        })
    };
    let wanted: BTreeSet<String> =
        told.into_iter().filter(is_wanted).map(|key| key.document).collect();
    wanted.into_iter().collect()
}
