//! The endpoints of `/_matrix/client` and `/.well-known/matrix`. One file per subject, each with
//! one `router()`; a handler parses, calls the domain, and answers. No rules and no SQL here.

mod account_data;
mod capabilities;
mod filters;
mod push_rules;
mod versions;
mod voip;
mod well_known;

use std::sync::Arc;

use chatd_base::Clock;
use chatd_config::Config;
use chatd_http::{Limits, Router};
use chatd_users::Users;

/// What the handlers work with.
pub struct App {
    pub config: Arc<Config>,
    pub clock: Clock,
    /// For rate limits that depend on more than who calls which endpoint.
    pub limits: Arc<Limits>,
    pub users: Arc<Users>,
}

/// Every group of client endpoints; the assignment decides which of them are mounted.
pub fn routers(app: &Arc<App>) -> Vec<Router> {
    vec![
        account_data::router(app),
        capabilities::router(app),
        filters::router(app),
        push_rules::router(app),
        versions::router(app),
        voip::router(app),
        well_known::router(app),
    ]
}
