//! Paths of requests to other servers.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands for itself in a segment of a path (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One argument of a path or a query.
pub(crate) fn escaped(argument: impl std::fmt::Display) -> String {
    utf8_percent_encode(&argument.to_string(), ESCAPED).to_string()
}

/// A path with escaped arguments: `uri!("/a/{}?b={}", x, y)`.
macro_rules! uri {
    ($pattern:literal $(, $argument:expr)* $(,)?) => {
        format!($pattern $(, $crate::uri::escaped($argument))*)
    };
}
pub(crate) use uri;
