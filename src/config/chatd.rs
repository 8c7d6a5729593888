//! `chatd:` — what Synapse has no key for: limits of caches and queues (R8), and switches for
//! tests and measurements. Every number can stay as it is.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use crate::units;

/// The section `chatd:`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Chatd {
    /// Where chatd keeps its own files (embedded database, generated keys). Default
    /// `./chatd-data`; `--data-dir` wins.
    pub data_dir: Option<PathBuf>,
    /// Answer each request with `x-chatd-cost: statements=…, round_trips=…`. For tests and
    /// measurements only.
    pub expose_request_cost: bool,
    /// Which requests see everything that any instance had acknowledged before they came, also
    /// where the proxy sends each request of a client to another instance. Default: `reads`.
    pub fresh: Fresh,
    /// Let listeners beyond private networks serve replication without a secret. Default: no.
    pub allow_open_replication: bool,
    /// Which workers `chatd proxy-config` puts where.
    pub proxy_pools: ProxyPools,
    /// Name servers to ask where other servers are. Default: those of the system.
    #[serde(deserialize_with = "name_servers")]
    pub dns_servers: Option<Vec<SocketAddr>>,
    /// Largest request body of the client API. Default 1 MiB.
    #[serde(deserialize_with = "units::size")]
    pub max_request_body: u64,
    /// Connections that one listener keeps open at most. Default 20 000.
    pub max_connections: usize,
    /// How long a client may take to send its request. Default 30 s.
    #[serde(deserialize_with = "units::duration")]
    pub request_read_timeout: Duration,
    /// How long a client may take nothing of an answer that is there for it. Default 60 s.
    #[serde(deserialize_with = "units::duration")]
    pub response_write_timeout: Duration,
    /// How long the end waits for requests under way after SIGTERM. Default 5 s.
    #[serde(deserialize_with = "units::duration")]
    pub shutdown_timeout: Duration,
    /// Buckets of each rate limit kept in memory. Default 100 000.
    pub rate_limit_cache: usize,
    /// Access tokens kept in memory. Default 50 000.
    pub token_cache: usize,
    /// Interned ids of each kind (users, rooms, event types and keys) kept in memory.
    /// Default 100 000.
    pub id_cache: usize,
    /// Rooms whose state a room owner keeps in memory. Default 5 000.
    pub room_cache: usize,
    /// Events that one commit of a room owner may hold. Default 256.
    pub lane_batch_events: usize,
    /// Bytes of JSON that one such commit may hold. Default 4 MiB.
    #[serde(deserialize_with = "units::size")]
    pub lane_batch_bytes: u64,
    /// Events that may wait for one lane before senders wait too. Default 10 000.
    pub lane_queue: usize,
    /// Rooms whose recent events a sync instance keeps in memory. Default 5 000.
    pub sync_room_cache: usize,
    /// Recent events kept for each such room. Default 50.
    pub sync_room_events: usize,
    /// Entities that the change index of each stream remembers. Default 200 000.
    pub change_index: usize,
    /// Rows of each stream kept in memory for syncs. Default 20 000.
    pub stream_rows: usize,
    /// Longest `timeout` that a sync waits. Default 5 minutes.
    #[serde(deserialize_with = "units::duration")]
    pub max_sync_timeout: Duration,
    /// Password hashes computed at the same time. Default: one less than the cores, at least 1.
    pub hash_threads: usize,
}

/// `proxy_pools`: workers by what a reverse proxy sends to them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the pool of its name")]
pub struct ProxyPools {
    #[serde(deserialize_with = "units::one_or_many")]
    pub sync: Vec<String>,
    #[serde(deserialize_with = "units::one_or_many")]
    pub initial_sync: Vec<String>,
    #[serde(deserialize_with = "units::one_or_many")]
    pub rooms: Vec<String>,
    #[serde(deserialize_with = "units::one_or_many")]
    pub federation: Vec<String>,
    #[serde(deserialize_with = "units::one_or_many")]
    pub media: Vec<String>,
    #[serde(deserialize_with = "units::one_or_many")]
    pub clients: Vec<String>,
}

impl ProxyPools {
    /// The names of all pools.
    pub(crate) const NAMES: [&str; 6] =
        ["sync", "initial_sync", "rooms", "federation", "media", "clients"];

    /// The pool of that name.
    pub(crate) fn of(&self, pool: &str) -> &[String] {
        match pool {
            "sync" => &self.sync,
            "initial_sync" => &self.initial_sync,
            "rooms" => &self.rooms,
            "federation" => &self.federation,
            "media" => &self.media,
            _ => &self.clients,
        }
    }
}

/// `chatd.fresh`. Of a single instance every answer is fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fresh {
    /// None: an answer may be some milliseconds old.
    Never,
    /// All but syncs, which are told of what they have not seen by the next one.
    #[default]
    Reads,
    /// All.
    Always,
}

impl Default for Chatd {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            data_dir: None,
            expose_request_cost: false,
            fresh: Fresh::default(),
            allow_open_replication: false,
            proxy_pools: ProxyPools::default(),
            dns_servers: None,
            max_request_body: 1 << 20,
            max_connections: 20_000,
            request_read_timeout: Duration::from_secs(30),
            response_write_timeout: Duration::from_secs(60),
            shutdown_timeout: Duration::from_secs(5),
            rate_limit_cache: 100_000,
            token_cache: 50_000,
            id_cache: 100_000,
            room_cache: 5_000,
            lane_batch_events: 256,
            lane_batch_bytes: 4 << 20,
            lane_queue: 10_000,
            sync_room_cache: 5_000,
            sync_room_events: 50,
            change_index: 200_000,
            stream_rows: 20_000,
            max_sync_timeout: Duration::from_secs(300),
            hash_threads: cores.saturating_sub(1).max(1),
        }
    }
}

/// Addresses, each with a port or without.
fn name_servers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<SocketAddr>>, D::Error> {
    const DNS: u16 = 53;
    let read = |text: &String| {
        let address = text.parse();
        let address = address.or_else(|_| text.parse::<IpAddr>().map(|ip| (ip, DNS).into()));
        let expected = "an IP address, with a port or without";
        address.map_err(|_| de::Error::invalid_value(de::Unexpected::Str(text), &expected))
    };
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(read).collect::<Result<_, _>>().map(Some)
}
