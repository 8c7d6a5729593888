//! Accounts: who may register, how passwords are checked, how long tokens live.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de};

use crate::units::{self, Secret};

/// Who may create an account.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// `enable_registration`: whether `/register` is open to everybody.
    #[serde(rename = "enable_registration")]
    pub enabled: bool,
    /// `enable_registration_without_verification`: open registration needs no token, captcha or
    /// e-mail address. Without it, open registration must have another hurdle.
    #[serde(rename = "enable_registration_without_verification")]
    pub without_verification: bool,
    /// `registration_requires_token`: an admin's registration token is a stage.
    #[serde(rename = "registration_requires_token")]
    pub requires_token: bool,
    /// `registration_shared_secret[_path]`: lets `chatd register-user` create accounts.
    #[serde(rename = "registration_shared_secret")]
    pub shared_secret: Option<Secret>,
    #[serde(rename = "registration_shared_secret_path")]
    pub(crate) shared_secret_path: Option<PathBuf>,
    /// `allow_guest_access`: whether `/register?kind=guest` works.
    #[serde(rename = "allow_guest_access")]
    pub allow_guests: bool,
    /// `inhibit_user_in_use_error`: do not tell that a name is taken before the flow is done.
    pub inhibit_user_in_use_error: bool,
    /// `allow_underscore_prefixed_registration`: whether local parts may start with `_`.
    pub allow_underscore_prefixed_registration: bool,
}

/// `password_config` and `bcrypt_rounds`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Passwords {
    /// `password_config`.
    #[serde(rename = "password_config")]
    pub login: PasswordLogin,
    /// `bcrypt_rounds`: cost of the hash, 4 to 31. Default 12.
    pub bcrypt_rounds: u32,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { login: PasswordLogin::default(), bcrypt_rounds: 12 }
    }
}

/// `password_config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct PasswordLogin {
    /// What passwords may be used for. Default: everything.
    pub enabled: PasswordUse,
    /// Whether chatd's own password hashes are looked at. Default true.
    pub localdb_enabled: bool,
    /// Appended to each password before hashing. Never change it once there are users.
    pub pepper: Option<Secret>,
    pub(crate) pepper_path: Option<PathBuf>,
    /// What a new password must look like.
    pub policy: PasswordPolicy,
}

impl Default for PasswordLogin {
    fn default() -> Self {
        Self {
            enabled: PasswordUse::Yes,
            localdb_enabled: true,
            pepper: None,
            pepper_path: None,
            policy: PasswordPolicy::default(),
        }
    }
}

impl PasswordLogin {
    /// Whether `m.login.password` is offered by `/login`.
    pub fn may_log_in(&self) -> bool {
        self.enabled == PasswordUse::Yes && self.localdb_enabled
    }

    /// Whether a password is a stage of user-interactive authentication.
    pub fn may_reauthenticate(&self) -> bool {
        self.enabled != PasswordUse::No && self.localdb_enabled
    }
}

/// `password_config.enabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordUse {
    /// Login and re-authentication.
    Yes,
    /// `only_for_reauth`: user-interactive authentication only.
    OnlyForReauth,
    /// Neither.
    No,
}

impl<'de> Deserialize<'de> for PasswordUse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match units::bool_or_text(deserializer)?.as_str() {
            "true" => Ok(Self::Yes),
            "false" => Ok(Self::No),
            "only_for_reauth" => Ok(Self::OnlyForReauth),
            other => Err(de::Error::invalid_value(
                de::Unexpected::Str(other),
                &"true, false or only_for_reauth",
            )),
        }
    }
}

/// `password_config.policy`: all off by default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PasswordPolicy {
    /// Whether any of the rest is asked for.
    pub enabled: bool,
    /// Smallest number of characters.
    pub minimum_length: usize,
    /// At least one digit.
    pub require_digit: bool,
    /// At least one character that is neither letter nor digit.
    pub require_symbol: bool,
    /// At least one lower-case letter.
    pub require_lowercase: bool,
    /// At least one upper-case letter.
    pub require_uppercase: bool,
}

/// How long logins last.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Sessions {
    /// `session_lifetime`: a login ends after this, whatever happens. Default: never.
    #[serde(deserialize_with = "units::duration_or_infinity")]
    pub session_lifetime: Option<Duration>,
    /// `refreshable_access_token_lifetime`, for clients that can refresh. Default 5 minutes.
    #[serde(deserialize_with = "units::duration_or_infinity")]
    pub refreshable_access_token_lifetime: Option<Duration>,
    /// `refresh_token_lifetime`: how long an unused refresh token works. Default: for ever.
    #[serde(deserialize_with = "units::duration_or_infinity")]
    pub refresh_token_lifetime: Option<Duration>,
    /// `nonrefreshable_access_token_lifetime`, for all other clients. Default: for ever.
    #[serde(deserialize_with = "units::duration_or_infinity")]
    pub nonrefreshable_access_token_lifetime: Option<Duration>,
    /// `ui_auth.session_timeout`: how long a finished user-interactive authentication stands for
    /// the next one. Default 0: each operation asks again.
    pub ui_auth: UiAuth,
    /// `login_via_existing_session`: one-time tokens that log another device in.
    pub login_via_existing_session: LoginViaExistingSession,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            session_lifetime: None,
            refreshable_access_token_lifetime: Some(Duration::from_secs(300)),
            refresh_token_lifetime: None,
            nonrefreshable_access_token_lifetime: None,
            ui_auth: UiAuth::default(),
            login_via_existing_session: LoginViaExistingSession::default(),
        }
    }
}

/// `ui_auth`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct UiAuth {
    /// `session_timeout`.
    #[serde(deserialize_with = "units::duration")]
    pub session_timeout: Duration,
}

/// `login_via_existing_session`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct LoginViaExistingSession {
    /// Whether `/login/get_token` works. Default false.
    pub enabled: bool,
    /// Whether it asks for user-interactive authentication. Default true.
    pub require_ui_auth: bool,
    /// How long such a token works. Default 5 minutes.
    #[serde(deserialize_with = "units::duration")]
    pub token_timeout: Duration,
}

impl Default for LoginViaExistingSession {
    fn default() -> Self {
        let token_timeout = Duration::from_secs(300);
        Self { enabled: false, require_ui_auth: true, token_timeout }
    }
}
