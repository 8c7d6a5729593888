//! All SQL of chatd, one file a topic, and nothing of Matrix's rules.
//!
//! A statement lives beside the one function that runs it, inside `statements!`; a test prepares
//! each one against a freshly migrated database. Reads go through [`Pool::query`] and its
//! relatives; writes are collected in a [`Batch`] and sent as one pipelined transaction.

mod batch;
mod copy;
mod error;
mod intern;
mod meter;
mod migrate;
mod pool;
mod statement;
mod tls;

pub mod account_data;
pub mod accounts;
pub mod cross_signing;
pub mod destinations;
pub mod devices;
pub mod directory;
pub mod effects;
pub mod events;
pub mod filters;
pub mod gaps;
pub mod graph;
pub mod history;
pub mod hosts;
pub mod import;
pub mod inbound;
pub mod instances;
pub mod keys;
pub mod lane;
pub mod leases;
pub mod memberships;
pub mod moments;
pub mod notices;
pub mod outliers;
pub mod partial;
pub mod positions;
pub mod presence;
pub mod profiles;
pub mod push_rules;
pub mod receipts;
pub mod relations;
pub mod remote_devices;
pub mod remote_edus;
pub mod resident;
pub mod room_keys;
pub mod room_state;
pub mod rooms;
pub mod sending;
pub mod sending_missed;
pub mod server_keys;
pub mod shards;
pub mod snapshots;
pub mod sync;
pub mod to_device;
pub mod tokens;
pub mod uia;
pub mod visibility;

pub use batch::{Batch, BatchRows};
pub use error::{Error, Result};
pub use intern::Interner;
pub use meter::{Meter, PoolState};
pub use migrate::migrate;
pub use pool::{ConnectSettings, Host, Pool};
pub use statement::{ALL_STATEMENTS, Statement};
pub use tokio_postgres::{Row, types::ToSql};

#[cfg(test)]
mod tests;
