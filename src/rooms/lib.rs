//! Rooms: their owner, their state, and what users may see of them. Nothing here knows HTTP or
//! SQL text.

pub mod bundle;
pub mod client_event;
pub mod filter;
pub mod read;
pub mod visibility;
