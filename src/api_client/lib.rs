//! The endpoints of `/_matrix/client` and `/.well-known/matrix`. One file per subject, each with
//! one `router()`; a handler parses, calls the domain, and answers. No rules and no SQL here.

mod versions;

use std::sync::Arc;

use chatd_http::{Limits, Router};

/// What the handlers work with.
pub struct App {
    /// Rate limits that depend on more than who calls what.
    pub limits: Arc<Limits>,
}

/// Every group of client endpoints; the assignment decides which of them are mounted.
pub fn routers(app: &Arc<App>) -> Vec<Router> {
    vec![versions::router(app)]
}
