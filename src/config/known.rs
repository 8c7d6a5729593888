//! Every key that Synapse knows, by name: so that an unsupported one is told apart from a typo.

use crate::{source::Layer, suggest};

/// Top-level keys that have an effect.
pub(crate) const SUPPORTED: &[&str] = &[
    "server_name",
    "public_baseurl",
    "serve_server_wellknown",
    "extra_well_known_client_content",
    "listeners",
    "chatd",
    "database",
];

pub(crate) fn is_known(key: &str) -> bool {
    SUPPORTED.contains(&key)
}

pub(crate) fn nearest(key: &str) -> Option<&'static str> {
    suggest::nearest(key, SUPPORTED.iter().copied())
}

pub(crate) fn report(_layers: &[Layer], _warnings: &mut Vec<String>) {}
