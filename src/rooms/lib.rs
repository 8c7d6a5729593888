//! Rooms: their owner, their state, and what users may see of them. Nothing here knows HTTP or
//! SQL text.
//!
//! A write goes `send` → `owner` (which holds the hot room, `live`) → `compose` (authorise) →
//! `seal` (hash, sign) → `lane` (one commit for all that waits).

pub mod acl;
pub mod bundle;
pub mod client_event;
pub mod create;
pub mod federation_event;
pub mod filter;
pub mod hosts;
pub mod membership;
pub mod parallel;
pub mod read;
pub mod third_party;
pub mod visibility;

mod answer;
mod arrival;
mod compose;
mod directory;
mod door;
mod effect;
mod everywhere;
mod heads;
mod import;
mod incoming;
mod inherit;
mod judge;
mod lane;
mod lenses;
mod line;
mod live;
mod on_the_way;
mod out_of_band;
mod outliers;
mod owner;
mod past;
mod pdu;
mod place;
mod places;
mod power;
pub mod profile;
mod push;
mod receive;
mod relation;
mod resolve;
mod resolve_v1;
mod rules;
mod seal;
mod send;
mod shape;
mod template;
#[cfg(test)]
mod tests;
mod upgrade;
mod whole;

use std::sync::Arc;

use chatd_config::Config;
use chatd_storage::Pool;
use chatd_streams::Owners;
use chatd_users::Users;

pub use answer::JoinAnswer;
pub use door::{Door, Outline};
pub use import::Import;
pub use incoming::{Incoming, read as take_apart};
pub use on_the_way::Way;
pub use out_of_band::{OutOfBand, Standing};
pub use outliers::Stored;
pub use owner::{RoomOwner, Sent};
pub use pdu::{federation_json, write_federation};
pub use receive::{Before, Received, Verdict};
pub use seal::{Draft, Route, Signer, event_id};
pub use template::{SignedInvite, Template};
pub use upgrade::Upgrade;
pub use whole::Wholes;

use crate::{
    hosts::Hosts,
    lane::{Lane, Limits},
};

/// All that is done with rooms.
pub struct Rooms {
    pool: Pool,
    users: Arc<Users>,
    config: Arc<Config>,
    /// Extends the rooms of this instance's shards.
    pub owner: RoomOwner,
    /// Other servers in rooms.
    pub hosts: Arc<Hosts>,
    /// Which of them have all of their state.
    pub wholes: Arc<Wholes>,
    /// What users see of rooms.
    pub reader: read::Reader,
}

impl Rooms {
    /// Starts the lane of this instance.
    pub fn new(users: &Arc<Users>, owners: Arc<Owners>, signer: Signer) -> Self {
        let deps = &users.deps;
        let lane = Lane::start(
            &deps.pool,
            &deps.streams.events,
            deps.streams.writer,
            &deps.clock,
            &deps.stop,
            Limits::of(&deps.config.chatd),
        );
        let most_rooms = deps.config.chatd.room_cache;
        let wholes = Arc::new(Wholes::new(&deps.pool));
        Self {
            pool: deps.pool.clone(),
            users: users.clone(),
            config: deps.config.clone(),
            hosts: Hosts::new(users),
            reader: read::Reader::new(users, &wholes),
            wholes,
            owner: RoomOwner::new(users, Arc::new(signer), owners, lane, most_rooms),
        }
    }
}
