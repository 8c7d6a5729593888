//! What single keys become.

use std::{path::PathBuf, time::Duration};

use super::load;
use crate::*;

#[test]
fn a_small_file_gets_defaults() {
    let config = load("server_name: example.org\nrc_message:\n  per_second: 5\n").unwrap();
    assert_eq!(config.server_name, "example.org");
    assert_eq!(config.rates.message, Rate { per_second: 5.0, burst_count: 10.0 });
    assert_eq!(config.rooms.default_version.as_str(), "12");
    assert!(matches!(config.database, Database::Embedded { .. }));
    assert_eq!(config.signing_key_path, PathBuf::from("chatd-data/example.org.signing.key"));
    assert_eq!(config.sessions.refreshable_access_token_lifetime, Some(Duration::from_secs(300)));
}
