//! The configuration: Synapse's YAML files and `CHATD_` variables become one typed [`Config`];
//! `roles/*.toml` become [`Roles`]; [`assignment()`] decides what this instance does.
//!
//! Nothing here opens a socket or a database. Files are read while loading and never later.

mod accounts;
mod assignment;
mod chatd;
mod check;
mod config;
mod contradictions;
mod database;
mod error;
mod federation;
mod fleet;
mod generate;
mod keys;
mod known;
mod listeners;
mod load;
mod logging;
mod names;
mod outgoing;
mod presence;
mod proxy;
mod rates;
mod roles;
mod rooms;
mod secrets;
mod signing_key;
mod source;
mod suggest;
#[cfg(test)]
mod tests;
pub mod units;
mod voip;
mod workers;

pub use accounts::{
    LoginViaExistingSession, PasswordLogin, PasswordPolicy, PasswordUse, Passwords, Registration,
    Sessions, UiAuth,
};
pub use assignment::{Assignment, assignment};
pub use chatd::{Chatd, Fresh, ProxyPools};
pub use config::{Config, Overrides, Tls};
pub use database::{Database, DatabaseTls, PoolSize, PostgresDatabase};
pub use error::ConfigError;
pub use federation::{AddressRules, Federation, FederationLimits, RemoteRooms, TlsVersion};
pub use fleet::{Finding, Fleet, FleetFile, Member, Severity};
pub use generate::NewConfig;
pub use keys::{Keys, OldKey, PublicKey, TrustedServer};
pub use listeners::{Bind, Listener, ListenerKind, ResourceName, Resources};
pub use logging::{LogConfig, LogFormat, LogLevel, LogOutput, LogSink, Rotation};
pub use names::{RouterName, StreamName, TaskName};
pub use outgoing::{ForwardProxy, Outgoing};
pub use presence::{Presence, PresenceMode, Profiles};
pub use proxy::{
    Certificate, Network, ProxyKind, ProxyListen, ProxyOptions, ProxyRoute, proxy_config,
};
pub use rates::{
    FederationRate, InviteRates, JoinRates, LoginRates, PresenceRates, Rate, RateLimits,
};
pub use roles::{Role, Roles};
pub use rooms::{EncryptedByDefault, PowerLevelOverrides, RoomRule, Rooms, RuleAction};
pub use signing_key::{SigningKey, SigningKeys};
pub use units::Secret;
pub use voip::Voip;
pub use workers::{InstanceAddress, MAIN, Redis, StreamWriters, Workers};
