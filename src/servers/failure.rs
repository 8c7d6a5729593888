//! Why another server has given no answer that counts.

use serde::{Deserialize, Serialize};

/// Why another server has given no answer that counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Failure {
    /// It refuses: the status, `errcode` and `error` of its answer, and the whole of it.
    Refused { status: u16, errcode: String, error: String, body: serde_json::Value },
    /// It cannot be reached, or does not answer in time.
    Away(String),
    /// It has been away, and is left alone until then (milliseconds since the epoch).
    BackingOff { until_ms: u64 },
    /// This server does not talk to it: the configuration, or the address, forbids it.
    Forbidden(String),
    /// It answers what it should not: no JSON, too much, a redirection.
    Odd(String),
}

impl Failure {
    /// Whether it says that the server is not well, rather than that it does not want to.
    pub fn is_of_the_server(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Away(_) => true,
            Self::BackingOff { .. } | Self::Forbidden(_) | Self::Odd(_) => false,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { status, errcode, error, .. } => {
                write!(f, "{status} {errcode}: {error}")
            }
            Self::Away(why) | Self::Forbidden(why) | Self::Odd(why) => f.write_str(why),
            Self::BackingOff { until_ms } => {
                write!(f, "it has been away and is left alone until {until_ms}")
            }
        }
    }
}

impl std::error::Error for Failure {}
