//! Other servers: where they are, how they are asked, and which keys they sign with. Nothing here
//! knows rooms or users.

mod back_off;
mod client;
mod connect;
mod dns;
mod event_check;
mod failure;
mod key_document;
mod key_fetch;
mod keyring;
mod notary;
mod outside;
mod own_keys;
mod pace;
mod relay;
mod sign;
mod signed_request;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod tunnel;
mod well_known;
mod x_matrix;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chatd_base::{Clock, Stop};
use chatd_config::{Config, SigningKeys};
use chatd_storage::{Pool, notices::Notices};
use http::Method;
use serde::{Deserialize, Serialize};

pub use back_off::BackOff;
pub use client::{Client, PATIENT};
pub use event_check::Unsound;
pub use failure::Failure;
pub use keyring::Keyring;
pub use notary::KeyQuery;
pub use outside::Outside;
pub use own_keys::public_key;
pub use relay::Relay;
pub use transport::Body;

/// What every service of this member is built from. Cheap to clone.
#[derive(Clone)]
pub struct Deps {
    pub pool: Pool,
    pub config: Arc<Config>,
    pub clock: Clock,
    /// Ends the services, after the last request.
    pub stop: Stop,
    /// This server's own.
    pub keys: Arc<SigningKeys>,
    /// Tells the other instances what has changed.
    pub notices: Arc<Notices>,
    /// Where other servers tell to whom they delegate: [`HTTPS`], but in tests.
    pub well_known_port: u16,
    /// Sign what this server tells of the keys of others; `keys` if absent.
    pub notary_keys: Option<Arc<SigningKeys>>,
}

/// The port of HTTP over TLS.
pub const HTTPS: u16 = 443;

/// All that has to do with other servers as such. Cheap to clone.
#[derive(Clone)]
pub struct Servers {
    /// Asks them.
    pub client: Arc<Client>,
    /// Knows which of them do not answer.
    pub back_off: Arc<BackOff>,
    /// Knows their keys, and this server's own.
    pub keyring: Arc<Keyring>,
    /// Asks those that are no homeservers.
    pub outside: Arc<Outside>,
}

impl Servers {
    /// Fails if the configuration names authorities that cannot be read, or keys that cannot be
    /// used.
    pub fn new(deps: &Deps) -> Result<Self, String> {
        let limits = &deps.config.federation.limits;
        let back_off = Arc::new(BackOff::new(&deps.pool, &deps.notices, &deps.clock, limits));
        let client = Arc::new(Client::new(deps, &back_off)?);
        let keyring = Keyring::new(deps, &client).map_err(|error| error.to_string())?;
        let outside = Arc::new(Outside::new(&deps.config, &client.outbound)?);
        Ok(Self { keyring: Arc::new(keyring), back_off, client, outside })
    }
}

/// One request to another server.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: Method,
    /// Path and query, percent-encoded.
    pub path: String,
    /// JSON.
    pub body: Option<Bytes>,
    /// For the whole exchange, repeats included.
    pub within: Duration,
    /// Largest answer, in bytes (R8).
    pub most_bytes: usize,
    /// Whether it is made although the server has lately been away.
    pub ignores_back_off: bool,
    pub retries: Retries,
}

/// How often a request is made again when the server is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retries {
    /// Never.
    None,
    /// A few times, in seconds: somebody waits. Requests by POST are not repeated.
    #[default]
    Short,
    /// Often, in minutes, and also if the server answers that it is not well.
    Long,
}

impl Ask {
    /// A request with the bounds that fit most: 30 s, an answer of 10 MiB.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            body: None,
            within: Duration::from_secs(30),
            most_bytes: 10 * 1024 * 1024,
            ignores_back_off: false,
            retries: Retries::default(),
        }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    pub fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    /// The same with a body, which is JSON.
    #[must_use]
    pub fn json(mut self, body: Bytes) -> Self {
        self.body = Some(body);
        self
    }

    #[must_use]
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    #[must_use]
    pub fn most_bytes(mut self, most: usize) -> Self {
        self.most_bytes = most;
        self
    }

    /// The same, made although the server has lately been away.
    #[must_use]
    pub fn anyway(mut self) -> Self {
        self.ignores_back_off = true;
        self
    }

    #[must_use]
    pub fn retries(mut self, retries: Retries) -> Self {
        self.retries = retries;
        self
    }
}
