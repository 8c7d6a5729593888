//! What every other member uses and nothing of Matrix's rules: ids, refusals, time, tasks,
//! limits and the counters that make a request's database work visible. No I/O.

pub mod cache;
pub mod calls;
pub mod clock;
pub mod cost;
pub mod error;
pub mod event_form;
pub mod ids;
pub mod json;
pub mod patience;
pub mod request_id;
pub mod requester;
pub mod sheet;
pub mod tasks;
pub mod token;

pub use cache::Cache;
pub use calls::{CallError, Calls};
pub use clock::Clock;
pub use error::{Error, Refusal, Result};
pub use ids::*;
pub use patience::Patience;
pub use requester::{Authenticate, AuthenticateServer, Requester, SignedRequest};
pub use sheet::{Figure, Sheet};
pub use tasks::Stop;
