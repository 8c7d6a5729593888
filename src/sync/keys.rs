//! How many one-time keys a device has left, so that it uploads more in time.

use std::collections::BTreeMap;

use chatd_base::{Result, UserNid};
use chatd_storage::keys;
use chatd_users::Users;

/// What a device is told about its keys.
#[derive(Clone, Debug, Default)]
pub struct KeyCounts {
    pub one_time: BTreeMap<String, i64>,
    /// Algorithms with a fallback key that nobody has used.
    pub unused_fallback: Vec<String>,
}

/// The counts of one device.
pub async fn read(users: &Users, user: UserNid, device: &str) -> Result<KeyCounts> {
    let mut counts = KeyCounts::default();
    for (algorithm, count) in keys::count(&users.deps.pool, user, device).await? {
        match count {
            Some(count) => drop(counts.one_time.insert(algorithm, count)),
            None => counts.unused_fallback.push(algorithm),
        }
    }
    // Clients that have none yet look for this one.
    counts.one_time.entry("signed_curve25519".to_owned()).or_insert(0);
    Ok(counts)
}
