//! The endpoints of `/_matrix/client` and `/.well-known/matrix`. One file per subject, each with
//! one `routes()`; a handler parses, calls the domain, and answers. No rules and no SQL here.

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
use chatd_http::{Limits, Router, Routes};
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

/// Every group of client endpoints, as they are declared.
pub fn routes() -> Vec<Routes<App>> {
    vec![
        account::routes(),
        account_data::routes(),
        capabilities::routes(),
        devices::routes(),
        directory::routes(),
        filters::routes(),
        keys::routes(),
        login::routes(),
        membership::routes(),
        messages::routes(),
        presence::routes(),
        profile::routes(),
        public_rooms::routes(),
        push_rules::routes(),
        receipts::routes(),
        register::routes(),
        relations::routes(),
        room_keys::routes(),
        send::routes(),
        state_read::routes(),
        to_device::routes(),
        typing::routes(),
        sync::routes(),
        versions::routes(),
        voip::routes(),
        well_known::routes(),
    ]
}

/// The same with their handlers bound to `app`; the assignment decides which of them are mounted.
pub fn routers(app: &Arc<App>) -> Vec<Router> {
    routes().into_iter().map(|routes| routes.bind(app)).collect()
}
