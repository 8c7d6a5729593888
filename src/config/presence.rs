//! `presence`, and what profiles tell to whom.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::units;

/// `presence`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// Whether presence is tracked. Default: yes.
    pub enabled: PresenceMode,
    /// Whether an initial sync shows users who are offline.
    pub include_offline_users_on_sync: bool,
    /// How exact `last_active_ago` is. Default 1 minute.
    #[serde(deserialize_with = "units::duration")]
    pub last_active_granularity: Duration,
    /// How long a user is online after the last sync. Default 30 seconds.
    #[serde(deserialize_with = "units::duration")]
    pub sync_online_timeout: Duration,
    /// How long until an inactive user is unavailable. Default 5 minutes.
    #[serde(deserialize_with = "units::duration")]
    pub idle_timeout: Duration,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            enabled: PresenceMode::Enabled,
            include_offline_users_on_sync: false,
            last_active_granularity: Duration::from_secs(60),
            sync_online_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(300),
        }
    }
}

/// `presence.enabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceMode {
    /// Tracked and told.
    Enabled,
    /// `untracked`: clients may set and read it, but nothing is worked out from their activity.
    Untracked,
    /// Everybody is offline, and setting it does nothing.
    Disabled,
}

impl<'de> Deserialize<'de> for PresenceMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match units::bool_or_text(deserializer)?.as_str() {
            "true" => Ok(Self::Enabled),
            "false" => Ok(Self::Disabled),
            "untracked" => Ok(Self::Untracked),
            other => Err(de::Error::invalid_value(
                de::Unexpected::Str(other),
                &"true, false or untracked",
            )),
        }
    }
}

/// What profiles tell to whom, and who may change them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Profiles {
    /// `require_auth_for_profile_requests`.
    #[serde(rename = "require_auth_for_profile_requests")]
    pub require_auth: bool,
    /// `limit_profile_requests_to_users_who_share_rooms`.
    #[serde(rename = "limit_profile_requests_to_users_who_share_rooms")]
    pub only_shared_rooms: bool,
    /// `include_profile_data_on_invite`. Default true.
    pub include_profile_data_on_invite: bool,
    /// `enable_set_displayname`. Default true.
    #[serde(rename = "enable_set_displayname")]
    pub may_set_displayname: bool,
    /// `enable_set_avatar_url`. Default true.
    #[serde(rename = "enable_set_avatar_url")]
    pub may_set_avatar_url: bool,
    /// `allow_profile_lookup_over_federation`. Default true.
    #[serde(rename = "allow_profile_lookup_over_federation")]
    pub allow_lookup_over_federation: bool,
    /// `allow_device_name_lookup_over_federation`: whether other servers are told what devices
    /// are called.
    #[serde(rename = "allow_device_name_lookup_over_federation")]
    pub allow_device_names_over_federation: bool,
}

impl Default for Profiles {
    fn default() -> Self {
        Self {
            require_auth: false,
            only_shared_rooms: false,
            include_profile_data_on_invite: true,
            may_set_displayname: true,
            may_set_avatar_url: true,
            allow_lookup_over_federation: true,
            allow_device_names_over_federation: false,
        }
    }
}
