//! The endpoints of `/_matrix/client` and `/.well-known/matrix`. One file per subject, each with
//! one `routes()`; a handler parses, calls the domain, and answers. No rules and no SQL here.
//!
//! In a fleet, a request is answered at the home that its endpoint declares, and what it does beside
//! that goes where it belongs:
//!
//! | requests | home | further effects |
//! | --- | --- | --- |
//! | send, state, redact, membership, aliases, directory | owner of the room | typing ends where the writer of typing sees the event; a published room and a forgotten one are told by notices |
//! | join, knock, leave, invite | owner of the room | servers that are in the room, or that of the invited user, are asked (`chatd_federation::joining`) |
//! | upgrade | owner of the old room | the new room is made by that instance |
//! | invite of an address | owner of the room | an identity server is asked (`chatd_federation::joining`); what it signs later goes to the owner by a call |
//! | createRoom | an instance that owns rooms | the new room is one of its own; users of other servers, and people by their addresses, are invited by its owner, by a call if that is another instance |
//! | forget, filters, key backups, login, refresh, register, keys/claim, OpenID tokens | anywhere | tables only; what others hold of it in memory is told by notices |
//! | profile | anywhere | events for all rooms of the user go to their owners (`Rooms::send_all`) |
//! | devices, keys, logout, password, deactivation | a writer of device lists | deactivation leaves all rooms, by `Rooms::send_all` |
//! | account data, tags | the writer of account data | |
//! | push rules | the writer of push rules | |
//! | receipts, read markers | a writer of receipts | `m.fully_read` is written by the writer of account data (`users/fully_read.rs`) |
//! | messages to devices | the writer of to-device messages | |
//! | typing | the writer of typing | |
//! | presence | the writer of presence | |
//! | profiles, aliases, room lists, keys, spaces and older events of other servers | anywhere | other servers are asked (`chatd_federation::queries`) |
//! | messages, context, one event | anywhere | where local history ends, the owner of the room fetches more of it (`chatd_federation::history`) |
//! | sync | anywhere | tells the writer of presence in batches; takes confirmed messages from the inbox table |
//! | all that a person does | | tells the writer of presence in batches; when a device was last seen is written to its table by each instance, for all devices at once |

mod account;
mod account_data;
mod capabilities;
mod create_room;
mod devices;
mod directory;
mod filters;
mod hierarchy;
mod keys;
mod login;
mod membership;
mod messages;
mod openid;
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
mod upgrade;
mod versions;
mod voip;
mod well_known;

use std::sync::Arc;

use chatd_base::Clock;
use chatd_config::Config;
use chatd_federation::Federation;
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
    /// What has to do with other servers.
    pub federation: Arc<Federation>,
}

/// Every group of client endpoints, as they are declared.
pub fn routes() -> Vec<Routes<App>> {
    vec![
        account::routes(),
        account_data::routes(),
        capabilities::routes(),
        create_room::routes(),
        devices::routes(),
        directory::routes(),
        filters::routes(),
        hierarchy::routes(),
        keys::routes(),
        login::routes(),
        membership::routes(),
        messages::routes(),
        openid::routes(),
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
        upgrade::routes(),
        sync::routes(),
        versions::routes(),
        voip::routes(),
        well_known::routes(),
    ]
}

/// Starts to answer the calls of other instances.
pub fn answer_calls(app: &Arc<App>) {
    create_room::answer_calls(app);
}

/// The same with their handlers bound to `app`; the assignment decides which of them are mounted.
pub fn routers(app: &Arc<App>) -> Vec<Router> {
    routes().into_iter().map(|routes| routes.bind(app)).collect()
}
