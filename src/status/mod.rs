//! How this instance is: what `/health?detail` tells and `chatd top` shows, and the figures of the
//! metrics page that are worked out when it is read.

mod process;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use chatd_base::{Sheet, cache};
use chatd_config::{Assignment, StreamName};
use chatd_storage::{Pool, PoolState};
use chatd_streams::{LaneState, Owners, Roster, StreamState, Streams, bus::BusState};
use serde::{Deserialize, Serialize};

pub use process::Process;

/// What an instance tells of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Detail {
    pub instance: String,
    pub role: String,
    pub server_name: String,
    pub version: String,
    pub uptime_s: u64,
    /// Groups of endpoints that it answers itself.
    pub routers: BTreeSet<String>,
    /// Streams that it writes.
    pub writes: BTreeSet<String>,
    /// Tasks that it does or would do.
    pub tasks: BTreeSet<String>,
    pub database: Database,
    pub bus: BusDetail,
    pub shards: Shards,
    /// Who is alive in the fleet, as it sees that; empty where there is nobody else.
    pub fleet: Vec<Peer>,
    pub streams: Vec<StreamState>,
    pub lanes: Vec<LaneState>,
    pub process: Process,
}

/// Connections to PostgreSQL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Database {
    pub is_connected: bool,
    pub max: usize,
    pub size: usize,
    pub in_use: usize,
    pub waiting: usize,
}

/// The bus, in one word and in figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BusDetail {
    pub state: BusWord,
    /// Absent where there is nobody else.
    #[serde(flatten)]
    pub figures: Option<BusState>,
}

/// What the bus does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BusWord {
    /// There is nobody else.
    Local,
    /// Rows come by Redis.
    Connected,
    /// Redis is lost: positions are polled from PostgreSQL.
    Polling,
}

/// Rooms.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Shards {
    pub owned: usize,
    pub of: usize,
}

/// Another instance, or this one, as this one sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    pub role: String,
    /// Since its last beat, when that was looked at.
    pub silence_ms: u64,
    /// Where its replication listener is, if it has one; JSON as in `instance_map`.
    pub address: Option<String>,
}

/// Where the answers come from.
pub struct Status {
    mine: Assignment,
    server_name: String,
    started: Instant,
    pool: Pool,
    streams: Arc<Streams>,
    owners: Arc<Owners>,
    roster: Option<Arc<Roster>>,
}

impl Status {
    pub fn new(
        mine: &Assignment,
        server_name: &str,
        pool: &Pool,
        streams: &Arc<Streams>,
        owners: &Arc<Owners>,
        roster: Option<Arc<Roster>>,
    ) -> Self {
        Self {
            mine: mine.clone(),
            server_name: server_name.to_owned(),
            started: Instant::now(),
            pool: pool.clone(),
            streams: streams.clone(),
            owners: owners.clone(),
            roster,
        }
    }

    /// Everything at once. Asks nobody else, and waits for nothing.
    pub fn detail(&self) -> Detail {
        let streams = self.mine.writers.iter().filter(|one| **one != StreamName::Caches);
        Detail {
            instance: self.mine.instance.clone(),
            role: self.mine.role.clone(),
            server_name: self.server_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            routers: self.mine.routers.iter().map(ToString::to_string).collect(),
            writes: streams.map(ToString::to_string).collect(),
            tasks: self.mine.tasks.iter().map(ToString::to_string).collect(),
            database: Database::of(self.pool.state()),
            bus: BusDetail::of(self.streams.bus_state()),
            shards: self.shards(),
            fleet: self.fleet(),
            streams: self.streams.state(),
            lanes: self.streams.lanes(),
            process: Process::now(),
        }
    }

    fn shards(&self) -> Shards {
        let all = self.owners.shards();
        let owned = all.iter().filter(|shard| shard.owner == self.mine.instance).count();
        Shards { owned, of: all.len() }
    }

    fn fleet(&self) -> Vec<Peer> {
        let Some(roster) = &self.roster else { return Vec::new() };
        let alive = roster.alive();
        let peers = alive.iter().map(|one| Peer {
            name: one.name.clone(),
            role: one.role.clone(),
            silence_ms: whole_ms(one.silence),
            address: one.address.clone(),
        });
        peers.collect()
    }

    /// Puts what is worked out here on the metrics page.
    pub fn figures(&self, sheet: &mut Sheet) {
        self.pool.figures(sheet);
        self.streams.figures(sheet);
        sheet.count("chatd_shards_owned", &[], self.shards().owned as u64);
        cache::figures(sheet);
        Process::now().figures(sheet);
        sheet.add("synapse_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    }
}

impl Database {
    fn of(state: PoolState) -> Self {
        let PoolState { is_connected, max, size, in_use, waiting } = state;
        Self { is_connected, max, size, in_use, waiting }
    }
}

impl BusDetail {
    fn of(figures: Option<BusState>) -> Self {
        let state = match &figures {
            None => BusWord::Local,
            Some(bus) if bus.is_connected => BusWord::Connected,
            Some(_) => BusWord::Polling,
        };
        Self { state, figures }
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
