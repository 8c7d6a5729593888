//! Nonces of the shared-secret registration: each is good once and for a minute.

use std::collections::HashMap;

use chatd_base::{Clock, token::random_letters};
use parking_lot::Mutex;

const LIFETIME_MS: u64 = 60_000;
/// Nonces that are remembered at most (R8); anybody may ask for one.
const MAX: usize = 10_000;

/// The nonces that were given out and not used yet.
pub struct Nonces {
    expires_ms: Mutex<HashMap<String, u64>>,
    clock: Clock,
}

impl Nonces {
    pub fn new(clock: Clock) -> Self {
        Self { expires_ms: Mutex::new(HashMap::new()), clock }
    }

    /// A new nonce; `None` when too many were asked for within a minute.
    pub fn give(&self) -> Option<String> {
        let now_ms = self.clock.now_ms();
        let mut expires_ms = self.expires_ms.lock();
        if expires_ms.len() >= MAX {
            expires_ms.retain(|_, expires| *expires > now_ms);
        }
        if expires_ms.len() >= MAX {
            return None;
        }
        let nonce = random_letters(64);
        expires_ms.insert(nonce.clone(), now_ms + LIFETIME_MS);
        Some(nonce)
    }

    /// Uses `nonce` up; returns whether it was good.
    pub fn take(&self, nonce: &str) -> bool {
        let expires_ms = self.expires_ms.lock().remove(nonce);
        expires_ms.is_some_and(|expires| expires > self.clock.now_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_and_for_a_minute() {
        let clock = Clock::fixed(1_000);
        let nonces = Nonces::new(clock.clone());
        let (first, second) = (nonces.give().unwrap(), nonces.give().unwrap());
        assert!(nonces.take(&first));
        assert!(!nonces.take(&first));
        clock.set_ms(1_000 + LIFETIME_MS);
        assert!(!nonces.take(&second));
        assert!(!nonces.take("never given"));
    }

    #[test]
    fn the_table_is_bounded_and_frees_itself() {
        let clock = Clock::fixed(0);
        let nonces = Nonces::new(clock.clone());
        assert_eq!((0..MAX + 5).filter(|_| nonces.give().is_some()).count(), MAX);
        clock.set_ms(LIFETIME_MS);
        assert!(nonces.give().is_some());
    }
}
