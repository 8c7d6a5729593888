//! The endpoints of `/_matrix/federation` and `/_matrix/key`. One file per subject, each with one
//! `routes()`; a handler parses, calls the domain, and answers. No rules and no SQL here.

mod keys;
mod membership;
mod openid;
mod queries;
mod rooms;
mod send;
mod third_party;
mod version;

use std::sync::Arc;

use chatd_federation::Federation;
use chatd_http::{Router, Routes};

/// What the handlers work with.
pub struct App {
    pub federation: Arc<Federation>,
}

/// Every group of federation endpoints, as they are declared.
pub fn routes() -> Vec<Routes<App>> {
    vec![
        keys::routes(),
        membership::routes(),
        openid::routes(),
        queries::routes(),
        rooms::routes(),
        send::routes(),
        third_party::routes(),
        version::routes(),
    ]
}

/// The same with their handlers bound to `app`; the assignment decides which of them are mounted.
pub fn routers(app: &Arc<App>) -> Vec<Router> {
    routes().into_iter().map(|routes| routes.bind(app)).collect()
}
