//! Short digests that stand for longer things in unique indexes.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// First half of SHA-256 over `parts`, each with its length, so that no two lists of parts have
/// the same input.
pub(crate) fn of(parts: &[&str]) -> Uuid {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize()[..16]);
    Uuid::from_bytes(half)
}
