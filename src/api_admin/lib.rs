//! The endpoints of `/_synapse/admin`.

mod mac;
mod nonces;
mod register;

use std::sync::Arc;

use chatd_base::Clock;
use chatd_config::Config;
use chatd_http::{Router, Routes};
use chatd_users::Users;

use nonces::Nonces;

/// What the handlers work with.
pub struct App {
    config: Arc<Config>,
    users: Arc<Users>,
    nonces: Nonces,
}

impl App {
    pub fn new(config: Arc<Config>, users: Arc<Users>, clock: Clock) -> Self {
        Self { config, users, nonces: Nonces::new(clock) }
    }
}

/// Every group of admin endpoints, as they are declared.
pub fn routes() -> Vec<Routes<App>> {
    vec![register::routes()]
}

/// The same with their handlers bound to `app`.
pub fn routers(app: &Arc<App>) -> Vec<Router> {
    routes().into_iter().map(|routes| routes.bind(app)).collect()
}
