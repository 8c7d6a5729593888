//! What servers do with each other: take in events, join rooms elsewhere, let others join, send
//! what happens here. Nothing here knows HTTP listeners or SQL text.

pub mod inbound;
pub mod queries;
pub mod sending;

use std::sync::Arc;

use chatd_config::Config;
use chatd_rooms::{Rooms, read::Reader};
use chatd_servers::Servers;
use chatd_users::Users;

use crate::{inbound::Inbound, queries::Queries, sending::Sending};

/// What every service of this member is built from. Cheap to clone.
#[derive(Clone)]
pub struct Deps {
    pub config: Arc<Config>,
    pub users: Arc<Users>,
    pub rooms: Arc<Rooms>,
    pub reader: Reader,
    pub servers: Servers,
}

/// All services of this member.
pub struct Federation {
    /// Takes in what other servers send.
    pub inbound: Inbound,
    pub deps: Deps,
    /// Asks other servers on behalf of clients.
    pub queries: Queries,
    /// What goes to other servers.
    pub sending: Arc<Sending>,
}

impl Federation {
    pub fn new(deps: Deps) -> Self {
        let (inbound, queries) = (Inbound::new(&deps), Queries::new(&deps));
        Self { inbound, queries, sending: Sending::new(&deps), deps }
    }
}
