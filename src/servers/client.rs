//! Requests to other servers: signed, bounded, and sent to where discovery says.

use bytes::Bytes;
use ruma_common::ServerName;
use serde::de::DeserializeOwned;

use crate::{Ask, Deps};

/// Why another server has given no answer that counts.
#[derive(Clone, Debug)]
pub enum Failure {
    /// It refuses: the status, `errcode` and `error` of its answer, and the whole of it.
    Refused { status: u16, errcode: String, error: String, body: serde_json::Value },
    /// It cannot be reached, or does not answer in time.
    Away(String),
    /// It has been away, and is left alone until then (milliseconds since the epoch).
    BackingOff { until_ms: u64 },
    /// This server does not talk to it: the configuration, or the address, forbids it.
    Forbidden(String),
    /// It answers what it should not: no JSON, too much, a redirection.
    Odd(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { status, errcode, error, .. } => {
                write!(f, "{status} {errcode}: {error}")
            }
            Self::Away(why) | Self::Forbidden(why) | Self::Odd(why) => f.write_str(why),
            Self::BackingOff { until_ms } => {
                write!(f, "it has been away and is left alone until {until_ms}")
            }
        }
    }
}

impl std::error::Error for Failure {}

/// Asks other servers.
pub struct Client {
    deps: Deps,
}

impl Client {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self { deps: deps.clone() }
    }

    /// Makes a request; the body of its answer.
    pub async fn ask(&self, server: &ServerName, ask: Ask) -> Result<Bytes, Failure> {
        let _ = (&self.deps, ask);
        Err(Failure::Forbidden(format!("{server}: this server does not federate")))
    }

    /// The same for an answer of that form.
    pub async fn ask_json<T: DeserializeOwned>(
        &self,
        server: &ServerName,
        ask: Ask,
    ) -> Result<T, Failure> {
        let body = self.ask(server, ask).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Odd(format!("{server}: not the expected JSON: {error}")))
    }
}
