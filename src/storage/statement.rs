//! Named SQL, so that every statement is prepared once per connection and checked by a test.
//!
//! PostgreSQL plans a statement for any values once, unless plans for the values at hand look cheaper.
//! They do where a value switches off a part of it (`$4 IS NULL OR …`); planning such a statement
//! each time costs more than running it. So what is asked often has a statement of its own, which
//! asks for nothing else.

use crate::meter::Meter;

/// One SQL statement and its name in logs.
#[derive(Debug)]
pub struct Statement {
    pub name: &'static str,
    pub sql: &'static str,
    /// Its uses as a transaction of its own.
    pub meter: Meter,
}

/// Declares statements of a topic: `statements! { NAME = "SELECT …"; }`. Each file also gets
/// `pub(crate) static STATEMENTS`, the list that [`ALL_STATEMENTS`] and its test use.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)*) => {
        $($(#[$doc])* pub(crate) static $name: $crate::Statement = $crate::Statement {
            name: stringify!($name),
            sql: $sql,
            meter: $crate::meter::Meter::new(),
        };)*
        pub(crate) static STATEMENTS: &[&$crate::Statement] = &[$(&$name),*];
    };
}
pub(crate) use statements;

/// Statements of every topic. A new file with `statements!` adds its list here.
pub static ALL_STATEMENTS: &[&[&Statement]] = &[
    crate::account_data::STATEMENTS,
    crate::accounts::STATEMENTS,
    crate::copy::STATEMENTS,
    crate::cross_signing::STATEMENTS,
    crate::destinations::STATEMENTS,
    crate::devices::STATEMENTS,
    crate::directory::STATEMENTS,
    crate::effects::STATEMENTS,
    crate::events::STATEMENTS,
    crate::filters::STATEMENTS,
    crate::gaps::STATEMENTS,
    crate::graph::STATEMENTS,
    crate::history::STATEMENTS,
    crate::hosts::STATEMENTS,
    crate::import::STATEMENTS,
    crate::instances::STATEMENTS,
    crate::intern::STATEMENTS,
    crate::inbound::STATEMENTS,
    crate::keys::STATEMENTS,
    crate::lane::STATEMENTS,
    crate::leases::STATEMENTS,
    crate::memberships::STATEMENTS,
    crate::moments::STATEMENTS,
    crate::notices::STATEMENTS,
    crate::outliers::STATEMENTS,
    crate::partial::STATEMENTS,
    crate::positions::STATEMENTS,
    crate::presence::STATEMENTS,
    crate::profiles::STATEMENTS,
    crate::push_rules::STATEMENTS,
    crate::receipts::STATEMENTS,
    crate::resident::STATEMENTS,
    crate::room_keys::STATEMENTS,
    crate::relations::STATEMENTS,
    crate::remote_devices::STATEMENTS,
    crate::remote_edus::STATEMENTS,
    crate::room_state::STATEMENTS,
    crate::rooms::STATEMENTS,
    crate::sending::STATEMENTS,
    crate::sending_missed::STATEMENTS,
    crate::server_keys::STATEMENTS,
    crate::shards::STATEMENTS,
    crate::snapshots::STATEMENTS,
    crate::sync::STATEMENTS,
    crate::to_device::STATEMENTS,
    crate::tokens::STATEMENTS,
    crate::uia::STATEMENTS,
    crate::visibility::STATEMENTS,
];
