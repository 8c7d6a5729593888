//! `outbound_federation_restricted_to`: an instance that may not speak with other servers has one
//! do it that may.

use std::{
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use chatd_base::{CallError, Calls, Error, Refusal, Result};
use chatd_config::{MAIN, Workers};
use http::Method;
use ruma_common::{OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Ask, Client, Failure, Retries, Servers};

const CALL: &str = "servers.ask";
/// Largest answer that is carried: somewhat less than a call may have.
const MOST_BYTES: usize = 60 << 20;
/// What the way between instances may add to the time of a request.
const ON_THE_WAY: Duration = Duration::from_secs(5);
/// Code of the refusal that stands for a [`Failure`] between instances.
const FAILURE: &str = "CHATD_FAILURE";

/// Calls other instances.
pub trait Relay: Send + Sync + 'static {
    /// Calls `instance` once.
    fn call<'a>(
        &'a self,
        instance: &'a str,
        name: &'a str,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>>;
}

/// Where requests go that this instance may not make itself.
pub(crate) struct Outbound {
    /// The instances that may; empty if this one may.
    instances: Vec<String>,
    relay: OnceLock<Arc<dyn Relay>>,
}

/// What another instance is to do.
pub(crate) struct Errand<'a> {
    /// The name of the call.
    pub call: &'static str,
    /// Whom the other instance is going to ask.
    pub server: &'a str,
    pub body: Bytes,
    pub within: Duration,
    /// Whether it may be done twice.
    pub is_harmless: bool,
}

/// A request on its way to another instance.
#[derive(Serialize, Deserialize)]
struct Carried {
    server: OwnedServerName,
    method: String,
    path: String,
    body: Option<Box<RawValue>>,
    within_ms: u64,
    most_bytes: usize,
    ignores_back_off: bool,
    retries: Retries,
}

impl Outbound {
    pub(crate) fn new(workers: &Workers) -> Self {
        let canonical = |name: &String| if name == "master" { MAIN } else { name }.to_owned();
        let instances: Vec<_> =
            workers.outbound_federation_restricted_to.iter().map(canonical).collect();
        let may = instances.iter().any(|name| name == workers.instance_name());
        Self { instances: if may { Vec::new() } else { instances }, relay: OnceLock::new() }
    }

    /// Makes the fleet known. Called once, while the instance is wired.
    pub(crate) fn join(&self, relay: Arc<dyn Relay>) {
        let _known_already = self.relay.set(relay);
    }

    /// Whether others make the requests.
    pub(crate) fn is_restricted(&self) -> bool {
        !self.instances.is_empty()
    }

    /// Has one of the instances make a request to `server`.
    pub(crate) async fn carry(&self, server: &ServerName, ask: &Ask) -> Result<Bytes, Failure> {
        self.run(Errand {
            call: CALL,
            server: server.as_str(),
            body: envelope(server, ask)?,
            within: ask.within,
            is_harmless: ask.method != Method::POST,
        })
        .await
    }

    /// Has one of the instances run the errand: the one that the server hashes to, or the next if
    /// that is away. What may have been done, and does harm when it is done twice (a POST takes
    /// keys away), is not done again.
    pub(crate) async fn run(&self, errand: Errand<'_>) -> Result<Bytes, Failure> {
        let Errand { call, server, body, within, is_harmless } = errand;
        let mut why = "the fleet is not known".to_owned();
        let Some(relay) = self.relay.get() else { return Err(Failure::Away(why)) };
        let late = |instance: &str| format!("{instance} does not answer in time");
        for instance in self.in_order(server) {
            let called = relay.call(instance, call, body.clone());
            match tokio::time::timeout(within + ON_THE_WAY, called).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(CallError::Refused(refusal))) => return Err(failure(refusal)),
                Ok(Err(CallError::Unsent(unsent))) => why = unsent,
                Ok(Err(CallError::Lost(lost))) if is_harmless => why = lost,
                Err(_) if is_harmless => why = late(instance),
                Ok(Err(CallError::Lost(lost))) => return Err(Failure::Away(lost)),
                Err(_) => return Err(Failure::Away(late(instance))),
            }
            tracing::debug!(server.name = %server, instance, why, "a request was not carried");
        }
        Err(Failure::Away(why))
    }

    fn in_order(&self, server: &str) -> impl Iterator<Item = &String> + use<'_> {
        let mut hasher = DefaultHasher::new();
        server.hash(&mut hasher);
        let count = self.instances.len();
        let first = usize::try_from(hasher.finish() % count as u64).unwrap_or(0);
        self.instances.iter().cycle().skip(first).take(count)
    }
}

fn envelope(server: &ServerName, ask: &Ask) -> Result<Bytes, Failure> {
    let odd = |error: serde_json::Error| Failure::Odd(format!("not a request: {error}"));
    let body = ask.body.as_deref().map(serde_json::from_slice).transpose().map_err(odd)?;
    let carried = Carried {
        server: server.to_owned(),
        method: ask.method.to_string(),
        path: ask.path.clone(),
        body,
        within_ms: u64::try_from(ask.within.as_millis()).unwrap_or(u64::MAX),
        most_bytes: ask.most_bytes.min(MOST_BYTES),
        ignores_back_off: ask.ignores_back_off,
        retries: ask.retries,
    };
    serde_json::to_vec(&carried).map(Bytes::from).map_err(odd)
}

/// What a refusal between instances stands for.
fn failure(mut refusal: Refusal) -> Failure {
    let told = refusal.extra.remove("failure").map(serde_json::from_value);
    match told {
        Some(Ok(failure)) if refusal.errcode == FAILURE => failure,
        _ => Failure::Away(refusal.to_string()),
    }
}

/// A failure as it goes between instances.
pub(crate) fn told(failure: &Failure) -> Error {
    match serde_json::to_value(failure) {
        Ok(told) => Refusal::new(502, FAILURE, failure.to_string()).with("failure", told).into(),
        Err(error) => Error::internal(error),
    }
}

impl Servers {
    /// Makes the fleet known, for requests that other instances have to make. Called once, while
    /// the instance is wired.
    pub fn join(&self, relay: Arc<dyn Relay>) {
        self.client.outbound.join(relay);
    }

    /// Starts to make requests for instances that may not.
    pub fn answer_calls(&self, calls: &Calls) {
        self.client.answer_calls(calls);
        self.outside.answer_calls(calls);
    }
}

impl Client {
    fn answer_calls(self: &Arc<Self>, calls: &Calls) {
        let client = Arc::downgrade(self);
        calls.on(CALL, move |body| {
            let client = client.upgrade();
            async move {
                let client = client.ok_or_else(|| Refusal::not_owner(String::new()))?;
                client.ask_for_another(&body).await
            }
        });
    }

    async fn ask_for_another(&self, body: &[u8]) -> Result<Vec<u8>> {
        let bad = |error: &dyn std::fmt::Display| Refusal::bad_json(format!("no request: {error}"));
        // A misconfigured fleet must not carry requests in circles.
        if self.outbound.is_restricted() {
            return Err(Refusal::not_owner(String::new()).into());
        }
        let carried: Carried = serde_json::from_slice(body).map_err(|error| bad(&error))?;
        let method = Method::from_bytes(carried.method.as_bytes()).map_err(|error| bad(&error))?;
        let ask = Ask {
            method,
            path: carried.path,
            body: carried.body.map(|body| Bytes::from(String::from(Box::<str>::from(body)))),
            within: Duration::from_millis(carried.within_ms),
            most_bytes: carried.most_bytes,
            ignores_back_off: carried.ignores_back_off,
            retries: carried.retries,
        };
        match self.ask(&carried.server, ask).await {
            Ok(answer) => Ok(answer.into()),
            Err(failure) => Err(told(&failure)),
        }
    }
}
