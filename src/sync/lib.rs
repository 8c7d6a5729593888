//! What changed for a user since a token: one engine, of which `/v3/sync` is a face.
//!
//! An answer is made at one vector of positions ([`token::SyncToken`]). What happened after the
//! client's token comes from memory ([`index`], fed by folds), or, where memory does not reach
//! back that far, from a constant number of queries. Each event, message and receipt is in
//! exactly one interval (R3).

mod account;
mod engine;
mod ephemeral;
pub mod filter;
mod fold;
mod furthest;
mod inbox;
mod index;
mod json;
mod lazy;
mod log;
mod miss;
mod people;
mod plan;
mod state;
mod summary;
#[cfg(test)]
mod tests;
mod timeline;
pub mod token;
mod unread;
mod v3;

pub use engine::Sync;
pub use plan::Asker;
