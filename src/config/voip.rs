//! `turn_*`: what `/voip/turnServer` answers.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::units::{self, Secret};

/// `turn_*`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Voip {
    /// `turn_uris`: empty means that calls get no TURN server.
    #[serde(rename = "turn_uris")]
    pub uris: Vec<String>,
    /// `turn_shared_secret[_path]`: credentials are made from it for each user.
    #[serde(rename = "turn_shared_secret")]
    pub shared_secret: Option<Secret>,
    #[serde(rename = "turn_shared_secret_path")]
    pub(crate) shared_secret_path: Option<PathBuf>,
    /// `turn_username`: fixed credentials, if there is no shared secret.
    #[serde(rename = "turn_username")]
    pub username: Option<String>,
    /// `turn_password`.
    #[serde(rename = "turn_password")]
    pub password: Option<Secret>,
    /// `turn_user_lifetime`. Default 1 hour.
    #[serde(rename = "turn_user_lifetime", deserialize_with = "units::duration")]
    pub user_lifetime: Duration,
    /// `turn_allow_guests`. Default true.
    #[serde(rename = "turn_allow_guests")]
    pub allow_guests: bool,
}

impl Default for Voip {
    fn default() -> Self {
        Self {
            uris: Vec::new(),
            shared_secret: None,
            shared_secret_path: None,
            username: None,
            password: None,
            user_lifetime: Duration::from_secs(3600),
            allow_guests: true,
        }
    }
}
