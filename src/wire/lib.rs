//! Connections that this server makes: whom TLS believes to be at the other end, and streams in the
//! form in which hyper's client takes them. No addresses and no requests.

mod link;
mod trust;

pub use link::Link;
pub use trust::{Trust, add_authorities, client, system_authorities};
