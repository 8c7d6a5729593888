//! Named SQL, so that every statement is prepared once per connection and checked by a test.

/// One SQL statement and its name in logs.
#[derive(Debug)]
pub struct Statement {
    pub name: &'static str,
    pub sql: &'static str,
}

/// Declares statements of a topic: `statements! { NAME = "SELECT …"; }`. Each file also gets
/// `pub(crate) const STATEMENTS`, the list that [`ALL_STATEMENTS`] and its test use.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)*) => {
        $($(#[$doc])* pub(crate) const $name: $crate::Statement =
            $crate::Statement { name: stringify!($name), sql: $sql };)*
        pub(crate) const STATEMENTS: &[&$crate::Statement] = &[$(&$name),*];
    };
}
pub(crate) use statements;

/// Statements of every topic. A new file with `statements!` adds its list here.
pub const ALL_STATEMENTS: &[&[&Statement]] = &[
    crate::account_data::STATEMENTS,
    crate::accounts::STATEMENTS,
    crate::cross_signing::STATEMENTS,
    crate::devices::STATEMENTS,
    crate::directory::STATEMENTS,
    crate::events::STATEMENTS,
    crate::filters::STATEMENTS,
    crate::graph::STATEMENTS,
    crate::instances::STATEMENTS,
    crate::intern::STATEMENTS,
    crate::keys::STATEMENTS,
    crate::lane::STATEMENTS,
    crate::memberships::STATEMENTS,
    crate::notices::STATEMENTS,
    crate::positions::STATEMENTS,
    crate::presence::STATEMENTS,
    crate::profiles::STATEMENTS,
    crate::push_rules::STATEMENTS,
    crate::receipts::STATEMENTS,
    crate::room_keys::STATEMENTS,
    crate::relations::STATEMENTS,
    crate::room_state::STATEMENTS,
    crate::rooms::STATEMENTS,
    crate::shards::STATEMENTS,
    crate::snapshots::STATEMENTS,
    crate::sync::STATEMENTS,
    crate::to_device::STATEMENTS,
    crate::tokens::STATEMENTS,
    crate::uia::STATEMENTS,
    crate::visibility::STATEMENTS,
];
