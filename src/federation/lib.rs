//! What servers do with each other: take in events, join rooms elsewhere, let others join, send
//! what happens here. Nothing here knows HTTP listeners or SQL text.

pub mod answers;
pub mod history;
pub mod inbound;
pub mod joining;
pub mod queries;
pub mod resident;
pub mod sending;

mod complexity;
mod event;
mod turns;
mod uri;

use std::sync::Arc;

use chatd_config::Config;
use chatd_rooms::{Rooms, read::Reader};
use chatd_servers::Servers;
use chatd_users::Users;

use crate::{
    answers::Answers, history::History, inbound::Inbound, joining::Joining, queries::Queries,
    resident::Resident, sending::Sending,
};
pub use chatd_rooms::read::{ListingQuery, Toward};
pub use chatd_streams::events::Membership;
pub use complexity::Complexity;
pub(crate) use uri::uri;

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
    /// Reads further back in rooms than this server has been in them.
    pub history: History,
    /// Answers other servers about rooms and users.
    pub answers: Answers,
    pub deps: Deps,
    /// Asks other servers on behalf of clients.
    pub queries: Queries,
    /// Brings users into rooms of other servers.
    pub joining: Arc<Joining>,
    /// Answers servers that want to come into rooms here.
    pub resident: Resident,
    /// What goes to other servers.
    pub sending: Arc<Sending>,
}

impl Federation {
    pub fn new(deps: Deps) -> Self {
        let inbound = Inbound::new(&deps);
        let history = History::new(&deps, &inbound);
        let joining = Joining::new(&deps, &inbound, &history);
        let resident = Resident::new(&deps);
        let queries = Queries::new(&deps, &joining);
        let (answers, sending) = (Answers::new(&deps), Sending::new(&deps));
        Self { inbound, history, queries, joining, resident, answers, sending, deps }
    }
}
