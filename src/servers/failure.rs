//! Why another server has given no answer that counts.

use serde::{Deserialize, Serialize};

/// Most characters of a text of somebody else that are passed on (R8).
const MOST_PASSED_ON: usize = 200;

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

    /// What somebody outside is told of it: nothing of the way there, on which there may be
    /// instances and proxies of this server. The whole of it is for the log.
    pub fn told(&self) -> String {
        match self {
            Self::Away(_) => "it cannot be reached, or does not answer in time".to_owned(),
            other => passed_on(&other.to_string()),
        }
    }
}

/// A text of somebody else as others get to see it: not long, and on one line.
pub(crate) fn passed_on(text: &str) -> String {
    text.chars().take(MOST_PASSED_ON).map(|c| if c.is_control() { ' ' } else { c }).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_are_told_is_short_and_says_nothing_of_the_way() {
        let away = Failure::Away("x.example: by the proxy 10.0.0.1: refused".to_owned());
        assert!(!away.told().contains("10.0.0.1"), "{}", away.told());
        assert_eq!(Failure::Odd("no\r\nJSON\0".to_owned()).told(), "no  JSON ");
        let long = Failure::Forbidden(format!("{} is not talked to", "ä".repeat(100_000)));
        assert_eq!(long.told(), "ä".repeat(MOST_PASSED_ON));
    }
}
