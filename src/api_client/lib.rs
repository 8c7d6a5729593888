//! The endpoints of `/_matrix/client` and `/.well-known/matrix`. One file per subject, each with
//! one `router()`; a handler parses, calls the domain, and answers. No rules and no SQL here.

mod account;
mod account_data;
mod capabilities;
mod devices;
mod directory;
mod filters;
mod keys;
mod login;
mod membership;
mod messages;
mod presence;
mod profile;
mod public_rooms;
mod push_rules;
mod receipts;
mod register;
mod relations;
mod room_keys;
mod send;
mod splice;
mod state_read;
mod sync;
mod to_device;
mod typing;
mod ui_auth;
mod versions;
mod voip;
mod well_known;

use std::sync::Arc;

use chatd_base::Clock;
use chatd_config::Config;
use chatd_http::{Limits, Router};
use chatd_rooms::Rooms;
use chatd_rooms::read::Reader;
use chatd_sync::Sync;
use chatd_users::Users;

/// What the handlers work with.
pub struct App {
    pub config: Arc<Config>,
    pub clock: Clock,
    /// For rate limits that depend on more than who calls which endpoint.
    pub limits: Arc<Limits>,
    pub users: Arc<Users>,
    pub rooms: Arc<Rooms>,
    pub sync: Arc<Sync>,
    pub reader: Reader,
}

/// Every group of client endpoints; the assignment decides which of them are mounted.
pub fn routers(app: &Arc<App>) -> Vec<Router> {
    vec![
        account::router(app),
        account_data::router(app),
        capabilities::router(app),
        devices::router(app),
        directory::router(app),
        filters::router(app),
        keys::router(app),
        login::router(app),
        membership::router(app),
        messages::router(app),
        presence::router(app),
        profile::router(app),
        public_rooms::router(app),
        push_rules::router(app),
        receipts::router(app),
        register::router(app),
        relations::router(app),
        room_keys::router(app),
        send::router(app),
        state_read::router(app),
        to_device::router(app),
        typing::router(app),
        sync::router(app),
        versions::router(app),
        voip::router(app),
        well_known::router(app),
    ]
}
