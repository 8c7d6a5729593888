//! Whether events are signed by the servers that have to sign them, and hashed (spec: checks
//! performed on receipt of a PDU, steps 1 to 3).

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use chatd_base::event_form;
use futures::{StreamExt, stream};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName, canonical_json::redact,
    room_version_rules::RoomVersionRules, serde::Base64,
};
use ruma_signatures::{
    PublicKeyMap, Verified, content_hash, required_server_signatures_to_verify_event, verify_event,
};

use crate::{
    Keyring,
    keyring::{Found, Needs},
    x_matrix::is_key_id,
};

/// Why an event cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsound {
    /// A signature that must be there is missing or wrong, or the event has not the form of one.
    Forged(String),
    /// The keys of a server that has signed it cannot be had at the moment.
    NoKey(String),
}

impl std::fmt::Display for Unsound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forged(why) | Self::NoKey(why) => f.write_str(why),
        }
    }
}

/// Events that one thread checks at a time.
const CHUNK: usize = 64;
/// Threads that work for one call.
const THREADS: usize = 8;

/// An event, and who must have signed it.
struct Candidate {
    event: CanonicalJsonObject,
    signers: BTreeSet<OwnedServerName>,
    /// When it was made, where that matters for keys.
    at_ms: u64,
}

type Outcome = Result<CanonicalJsonObject, Unsound>;

impl Keyring {
    /// Checks that all servers have signed the events that have to (spec: checks performed on
    /// receipt of a PDU, steps 1 to 3). An event whose content hash is wrong comes back redacted.
    /// Keys are fetched for all events at once, and signatures are checked off the async threads.
    /// Fails if the keys that are known cannot be read: that says nothing of the events.
    pub async fn check_events(
        &self,
        events: Vec<CanonicalJsonObject>,
        rules: &RoomVersionRules,
    ) -> Result<Vec<Outcome>, chatd_base::Error> {
        let candidates: Vec<_> =
            events.into_iter().map(|event| Candidate::new(event, rules)).collect();
        let mut needs = Needs::new();
        for candidate in candidates.iter().flatten() {
            candidate.add_needs(&mut needs);
        }
        let keys = Arc::new(self.inner.gather(&needs).await?);
        Ok(check_all(candidates, keys, rules.clone()).await)
    }
}

/// Whether the content hash is that of the event.
fn has_its_hash(event: &CanonicalJsonObject) -> bool {
    let told = event.get("hashes").and_then(|hashes| hashes.as_object()?.get("sha256")?.as_str());
    let told =
        told.and_then(|told| Base64::<ruma_common::serde::base64::Standard>::parse(told).ok());
    content_hash(event)
        .is_ok_and(|hash| told.is_some_and(|told| told.as_bytes() == hash.as_bytes()))
}

/// Checks chunks on several threads; outcomes are in the order of the events.
async fn check_all(
    candidates: Vec<Result<Candidate, Unsound>>,
    keys: Arc<Found>,
    rules: RoomVersionRules,
) -> Vec<Outcome> {
    let mut chunks = Vec::with_capacity(candidates.len().div_ceil(CHUNK));
    let mut candidates = candidates.into_iter().peekable();
    while candidates.peek().is_some() {
        chunks.push(candidates.by_ref().take(CHUNK).collect::<Vec<_>>());
    }
    let checked = stream::iter(chunks).map(|chunk| {
        let (keys, rules, count) = (keys.clone(), rules.clone(), chunk.len());
        let work = tokio::task::spawn_blocking(move || {
            let check = |one: Result<Candidate, Unsound>| one?.check(&keys, &rules);
            chunk.into_iter().map(check).collect::<Vec<_>>()
        });
        async move {
            work.await.unwrap_or_else(|error| {
                tracing::error!(%error, "checking events has failed");
                let failed = || Unsound::NoKey("the check has failed".to_owned());
                (0..count).map(|_| Err(failed())).collect()
            })
        }
    });
    checked.buffered(THREADS).collect::<Vec<_>>().await.into_iter().flatten().collect()
}

/// One event, with keys that are known.
#[cfg(test)]
pub(crate) fn check_one(
    event: CanonicalJsonObject,
    known: &Found,
    rules: &RoomVersionRules,
) -> Outcome {
    Candidate::new(event, rules)?.check(known, rules)
}

impl Candidate {
    /// Refuses what has not the form of an event of such a room, and what is too large.
    fn new(mut event: CanonicalJsonObject, rules: &RoomVersionRules) -> Result<Self, Unsound> {
        // Not a part of the event: whoever sends it adds what is of use to the receiver.
        let unsigned = event.remove("unsigned");
        event_form::check(&event, &rules.event_format)
            .map_err(|error| Unsound::Forged(error.to_string()))?;
        let signers = required_server_signatures_to_verify_event(&event, &rules.signatures)
            .map_err(|error| Unsound::Forged(error.to_string()))?;
        let made_ms = event.get("origin_server_ts").and_then(CanonicalJsonValue::as_integer);
        let Some(made_ms) = made_ms else {
            return Err(Unsound::Forged("origin_server_ts is no integer".to_owned()));
        };
        let made_ms = u64::try_from(i64::from(made_ms)).unwrap_or(0);
        event.extend(unsigned.map(|unsigned| ("unsigned".to_owned(), unsigned)));
        Ok(Self { event, signers, at_ms: if rules.enforce_key_validity { made_ms } else { 0 } })
    }

    /// Ids of the keys with which `server` has signed it.
    fn key_ids(&self, server: &ServerName) -> impl Iterator<Item = &String> {
        let all = self.event.get("signatures").and_then(CanonicalJsonValue::as_object);
        let of_server = all.and_then(|all| all.get(server.as_str())?.as_object());
        of_server.into_iter().flat_map(|keys| keys.keys()).filter(|key_id| is_key_id(key_id))
    }

    fn add_needs(&self, needs: &mut Needs) {
        for server in &self.signers {
            for key_id in self.key_ids(server) {
                let keys = needs.entry(server.clone()).or_default();
                let at_ms = keys.entry(key_id.clone()).or_default();
                *at_ms = self.at_ms.max(*at_ms);
            }
        }
    }

    fn check(self, known: &Found, rules: &RoomVersionRules) -> Outcome {
        let mut keys = PublicKeyMap::new();
        for server in &self.signers {
            keys.insert(server.to_string(), self.keys_of(server, known)?);
        }
        let forged = |error: &dyn std::fmt::Display| Unsound::Forged(error.to_string());
        let signed = event_form::as_signed(&self.event, &rules.redaction);
        let verified = verify_event(&keys, &signed, rules).map_err(|error| forged(&error))?;
        let has_its_hash = match &signed {
            Cow::Borrowed(_) => verified == Verified::All,
            Cow::Owned(_) => has_its_hash(&self.event),
        };
        if has_its_hash {
            return Ok(self.event);
        }
        redact(signed.into_owned(), &rules.redaction, None).map_err(|error| forged(&error))
    }

    /// The keys of `server` that count for this event.
    fn keys_of(
        &self,
        server: &ServerName,
        known: &Found,
    ) -> Result<ruma_signatures::PublicKeySet, Unsound> {
        let known = known.get(server);
        let mut keys = ruma_signatures::PublicKeySet::new();
        let (mut signed, mut expired) = (false, false);
        for key_id in self.key_ids(server) {
            signed = true;
            match known.and_then(|known| known.find(key_id, self.at_ms)) {
                Some(key) => drop(keys.insert(key_id.clone(), Base64::new(key.key.0.to_vec()))),
                None => {
                    expired |= known.is_some_and(|known| !known.may_change(key_id, self.at_ms));
                }
            }
        }
        match (keys.is_empty(), signed) {
            (false, _) => Ok(keys),
            (true, false) => Err(Unsound::Forged(format!("{server} has not signed the event"))),
            (true, true) if expired => Err(Unsound::Forged(format!(
                "{server} did not sign with that key any more when the event was made"
            ))),
            (true, true) => {
                Err(Unsound::NoKey(format!("the key of {server} cannot be had at the moment")))
            }
        }
    }
}
