//! The HTTP edge: listeners, the table of endpoints, what a handler is given and what it answers,
//! rate limits, and the one place where errors become JSON. Nothing of Matrix's domain is here,
//! and nothing above this member sees hyper.
//!
//! A request goes through the files in this order: `listener` (accept, sizes and times, real
//! client address), `edge` (one request from start to end), `table` (path to endpoint), `auth`
//! (access token to requester), `limit`, `body`, `origins` (how often one server may ask), the
//! handler, `reply`.

mod auth;
mod body;
mod builtin;
mod call;
mod carry;
mod carry_meter;
mod client;
mod edge;
mod home;
mod limit;
mod listener;
mod meter;
mod metrics;
mod origins;
mod paths;
mod peers;
mod probe;
mod reply;
mod request;
mod router;
mod server;
mod stall;
mod table;
mod tally;
#[cfg(test)]
mod tests;
mod tls;

pub use builtin::Detail;
pub use call::Caller;
pub use carry::{Fleet, NOT_OWNER};
pub use home::{Home, Placement};
pub use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
pub use limit::{LimitClass, Limits};
pub use metrics::Metrics;
pub use paths::{Paths, federation_v1, federation_v2, media_v3, raw, unstable, v1, v3};
pub use probe::Probe;
pub use reply::Reply;
pub use request::Request;
pub use router::{Auth, Declared, Router, Routes};
pub use server::{Server, Serving};
