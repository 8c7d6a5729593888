//! Scenarios over HTTP against the real binary and a real PostgreSQL. One file a subject; the
//! helpers are in `tests/kit`.

mod account;
mod budgets;
mod cli;
pub mod clients;
mod device_lists;
mod edge;
mod encryption;
mod examples;
mod faults;
mod federation;
mod limits;
mod listeners;
mod live;
mod push;
mod redis;
mod registration;
mod room_rules;
mod rooms;
mod routes;
mod sessions;
mod sync_chain;
mod sync_view;
mod syncing;
mod timeline;
mod upgrades;
mod visibility;
mod voip;
mod watching;
mod worker_facts;
