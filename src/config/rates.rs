//! `rc_*`: how often somebody may do something, with Synapse's defaults.

use serde::{Deserialize, Serialize};

/// A token bucket: `burst_count` at once, then `per_second`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Tokens that come back each second.
    pub per_second: f64,
    /// Size of the bucket.
    pub burst_count: f64,
}

impl Rate {
    const fn new(per_second: f64, burst_count: f64) -> Self {
        Self { per_second, burst_count }
    }
}

/// All limits. This is also the lowest layer under the files, so that a file may give one half
/// of a limit and keep the default of the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RateLimits {
    /// `rc_message`: events of a user.
    #[serde(rename = "rc_message")]
    pub message: Rate,
    /// `rc_registration`: accounts from one address.
    #[serde(rename = "rc_registration")]
    pub registration: Rate,
    /// `rc_registration_token_validity`: questions about a registration token, from one address.
    #[serde(rename = "rc_registration_token_validity")]
    pub registration_token_validity: Rate,
    /// `rc_login`.
    #[serde(rename = "rc_login")]
    pub login: LoginRates,
    /// `rc_admin_redaction`: redactions by admins; `rc_message` if absent.
    #[serde(rename = "rc_admin_redaction")]
    pub admin_redaction: Option<Rate>,
    /// `rc_joins`: joins of a user.
    #[serde(rename = "rc_joins")]
    pub joins: JoinRates,
    /// `rc_joins_per_room`: joins into one room, by anybody.
    #[serde(rename = "rc_joins_per_room")]
    pub joins_per_room: Rate,
    /// `rc_invites`.
    #[serde(rename = "rc_invites")]
    pub invites: InviteRates,
    /// `rc_third_party_invite`: invites of addresses, by one user.
    #[serde(rename = "rc_third_party_invite")]
    pub third_party_invite: Rate,
    /// `rc_presence.per_user`: presence updates of a user.
    #[serde(rename = "rc_presence")]
    pub presence: PresenceRates,
    /// `rc_room_creation`: rooms made by a user.
    #[serde(rename = "rc_room_creation")]
    pub room_creation: Rate,
    /// `rc_federation`: requests of one other server.
    #[serde(rename = "rc_federation")]
    pub federation: FederationRate,
}

/// `rc_federation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederationRate {
    /// Milliseconds in which requests are counted.
    #[serde(rename = "window_size")]
    pub window_ms: u64,
    /// Requests in the window before further ones are slowed down.
    pub sleep_limit: usize,
    /// Milliseconds by which they are.
    #[serde(rename = "sleep_delay")]
    pub sleep_delay_ms: u64,
    /// Requests that wait before further ones are refused.
    pub reject_limit: usize,
    /// Requests that are answered at a time.
    pub concurrent: usize,
}

/// `rc_login`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoginRates {
    /// Attempts from one address.
    pub address: Rate,
    /// Attempts for one account.
    pub account: Rate,
    /// Failed attempts for one account.
    pub failed_attempts: Rate,
}

/// `rc_joins`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRates {
    /// Rooms that this server is in already.
    pub local: Rate,
    /// Rooms that it is not in.
    pub remote: Rate,
}

/// `rc_invites`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteRates {
    /// Into one room.
    pub per_room: Rate,
    /// To one user.
    pub per_user: Rate,
    /// By one user.
    pub per_issuer: Rate,
}

/// `rc_presence`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PresenceRates {
    /// Updates of one user.
    pub per_user: Rate,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            message: Rate::new(0.2, 10.0),
            registration: Rate::new(0.17, 3.0),
            registration_token_validity: Rate::new(0.1, 5.0),
            login: LoginRates {
                address: Rate::new(0.003, 5.0),
                account: Rate::new(0.003, 5.0),
                failed_attempts: Rate::new(0.17, 3.0),
            },
            admin_redaction: None,
            joins: JoinRates { local: Rate::new(0.1, 10.0), remote: Rate::new(0.01, 10.0) },
            joins_per_room: Rate::new(1.0, 10.0),
            invites: InviteRates {
                per_room: Rate::new(0.3, 10.0),
                per_user: Rate::new(0.003, 5.0),
                per_issuer: Rate::new(0.3, 10.0),
            },
            third_party_invite: Rate::new(0.2, 10.0),
            presence: PresenceRates { per_user: Rate::new(0.1, 1.0) },
            room_creation: Rate::new(0.016, 10.0),
            federation: FederationRate {
                window_ms: 1_000,
                sleep_limit: 10,
                sleep_delay_ms: 500,
                reject_limit: 50,
                concurrent: 3,
            },
        }
    }
}
