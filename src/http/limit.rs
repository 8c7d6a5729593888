//! Rate limits: buckets that leak at a steady rate, one for each class and caller.

use std::sync::Arc;

use chatd_base::{Clock, Refusal, Result};
use parking_lot::Mutex;
use quick_cache::sync::Cache;

/// Most callers whose buckets are remembered; who has not called for longest is forgotten (R8).
const MAX_BUCKETS: usize = 100_000;

/// How many actions a second are allowed, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    pub burst_count: f64,
}

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $key:literal;)*) => {
        /// What is limited; each has its own rate in the configuration.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum LimitClass { $($(#[$doc])* $name,)* }

        impl LimitClass {
            /// Every class.
            pub const ALL: &[LimitClass] = &[$(Self::$name,)*];

            /// The configuration key, dots between levels.
            pub fn key(self) -> &'static str {
                match self { $(Self::$name => $key,)* }
            }
        }
    };
}

classes! {
    /// Events that a user sends.
    Message = "rc_message";
    /// New accounts, by address.
    Registration = "rc_registration";
    /// Checks of registration tokens, by address.
    RegistrationTokenValidity = "rc_registration_token_validity";
    /// Logins by address.
    LoginAddress = "rc_login.address";
    /// Logins by account.
    LoginAccount = "rc_login.account";
    /// Failed logins by account.
    LoginFailedAttempts = "rc_login.failed_attempts";
    /// Redactions by administrators.
    AdminRedaction = "rc_admin_redaction";
    /// Joins of rooms that this server is in, by user.
    JoinsLocal = "rc_joins.local";
    /// Joins of rooms that it is not in, by user.
    JoinsRemote = "rc_joins.remote";
    /// Joins by room.
    JoinsPerRoom = "rc_joins_per_room";
    /// Invites by room.
    InvitesPerRoom = "rc_invites.per_room";
    /// Invites by invited user.
    InvitesPerUser = "rc_invites.per_user";
    /// Invites by inviting user.
    InvitesPerIssuer = "rc_invites.per_issuer";
    /// Presence that a user sets.
    PresencePerUser = "rc_presence.per_user";
    /// Rooms that a user creates.
    RoomCreation = "rc_room_creation";
    /// Reports by user.
    Reports = "rc_reports";
}

struct Bucket {
    /// Actions in the bucket at `since_ms`.
    level: f64,
    since_ms: u64,
}

/// The buckets of every class.
pub struct Limits {
    rates: Vec<Option<Rate>>,
    buckets: Cache<(LimitClass, Box<str>), Arc<Mutex<Bucket>>>,
    clock: Clock,
}

impl Limits {
    /// `rate_of` is the configuration; a class without a rate is not limited.
    pub fn new(clock: Clock, rate_of: impl Fn(LimitClass) -> Option<Rate>) -> Self {
        let rates = LimitClass::ALL.iter().map(|class| rate_of(*class)).collect();
        Self { rates, buckets: Cache::new(MAX_BUCKETS), clock }
    }

    /// Counts one action of `key`; refuses with 429 and the time to wait if that is too many.
    /// An action that is refused is not counted.
    pub fn check(&self, class: LimitClass, key: &str) -> Result<()> {
        self.act(class, key, true)
    }

    /// Refuses as [`Limits::check`] would, without counting: for limits of failures.
    pub fn would_allow(&self, class: LimitClass, key: &str) -> Result<()> {
        self.act(class, key, false)
    }

    fn act(&self, class: LimitClass, key: &str, count: bool) -> Result<()> {
        let Some(rate) = self.rates.get(class as usize).copied().flatten() else { return Ok(()) };
        let now_ms = self.clock.now_ms();
        let bucket = self.bucket(class, key, now_ms);
        let mut bucket = bucket.lock();
        bucket.leak(rate, now_ms);
        if bucket.level + 1.0 > rate.burst_count {
            metrics::counter!("chatd_http_rate_limited_total", "class" => class.key()).increment(1);
            return Err(Refusal::limit_exceeded(bucket.wait_ms(rate)).into());
        }
        if count {
            bucket.level += 1.0;
        }
        Ok(())
    }

    fn bucket(&self, class: LimitClass, key: &str, now_ms: u64) -> Arc<Mutex<Bucket>> {
        let fresh = || {
            Ok::<_, std::convert::Infallible>(Arc::new(Mutex::new(Bucket {
                level: 0.0,
                since_ms: now_ms,
            })))
        };
        match self.buckets.get_or_insert_with(&(class, Box::from(key)), fresh) {
            Ok(bucket) => bucket,
            Err(never) => match never {},
        }
    }
}

impl Bucket {
    fn leak(&mut self, rate: Rate, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.since_ms);
        self.since_ms = now_ms;
        self.level = (self.level - millis(passed_ms) / 1000.0 * rate.per_second).max(0.0);
    }

    /// Milliseconds until one more action fits, rounded up; an hour where it never will.
    fn wait_ms(&self, rate: Rate) -> u64 {
        const LONGEST_MS: f64 = 3_600_000.0;
        let wait = (self.level + 1.0 - rate.burst_count) / rate.per_second * 1000.0;
        if wait.is_finite() { wait.clamp(1.0, LONGEST_MS).ceil() as u64 } else { 3_600_000 }
    }
}

/// Durations here are far below 2^52 ms, which an `f64` holds exactly.
fn millis(ms: u64) -> f64 {
    ms as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(clock: &Clock, per_second: f64, burst_count: f64) -> Limits {
        Limits::new(clock.clone(), move |class| {
            (class == LimitClass::Message).then_some(Rate { per_second, burst_count })
        })
    }

    fn retry_after(result: Result<()>) -> u64 {
        match result {
            Err(chatd_base::Error::Refused(refusal)) => {
                refusal.extra["retry_after_ms"].as_u64().unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_burst_is_allowed_then_a_steady_rate() {
        let clock = Clock::fixed(1_000_000);
        let limits = limits(&clock, 2.0, 3.0);
        for _ in 0..3 {
            limits.check(LimitClass::Message, "@a:x").unwrap();
        }
        assert_eq!(retry_after(limits.check(LimitClass::Message, "@a:x")), 500);
        limits.check(LimitClass::Message, "@b:x").unwrap();
        clock.set_ms(1_000_500);
        limits.check(LimitClass::Message, "@a:x").unwrap();
        assert_eq!(retry_after(limits.check(LimitClass::Message, "@a:x")), 500);
    }

    #[test]
    fn a_class_without_a_rate_is_free_and_looking_does_not_count() {
        let clock = Clock::fixed(0);
        let limits = limits(&clock, 0.1, 1.0);
        for _ in 0..100 {
            limits.check(LimitClass::Registration, "1.2.3.4").unwrap();
            limits.would_allow(LimitClass::Message, "@a:x").unwrap();
        }
        limits.check(LimitClass::Message, "@a:x").unwrap();
        assert_eq!(retry_after(limits.would_allow(LimitClass::Message, "@a:x")), 10_000);
    }

    #[test]
    fn a_rate_of_zero_never_divides() {
        let clock = Clock::fixed(0);
        let limits = limits(&clock, 0.0, 0.0);
        assert_eq!(retry_after(limits.check(LimitClass::Message, "@a:x")), 3_600_000);
    }
}
