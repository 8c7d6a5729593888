//! What belongs to users of this server: accounts, access tokens, devices and their keys,
//! profiles, account data, push rules, presence, typing, receipts and to-device messages.
//! Nothing here knows HTTP or SQL text.

use std::sync::Arc;

use chatd_base::{Clock, Stop};
use chatd_config::Config;
use chatd_storage::{Interner, Pool};
use chatd_streams::Streams;

/// What every service of this member is built from. Cheap to clone.
#[derive(Clone)]
pub struct Deps {
    pub pool: Pool,
    pub interner: Arc<Interner>,
    pub streams: Arc<Streams>,
    pub config: Arc<Config>,
    pub clock: Clock,
    pub stop: Stop,
}

/// All services of this member.
pub struct Users {
    pub deps: Deps,
}

impl Users {
    pub fn new(deps: Deps) -> Self {
        Self { deps }
    }
}
