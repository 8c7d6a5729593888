//! Rate limits: buckets that leak at a steady rate, one for each class and caller.

use std::sync::Arc;

use chatd_base::{Cache, Clock, Refusal, Result};
use chatd_config::{Rate, RateLimits};
use parking_lot::Mutex;

use crate::{origins::Origins, tally::Tally};

// Not in the configuration.
const HIERARCHY: Rate = Rate { per_second: 5.0, burst_count: 10.0 };
const OPENID: Rate = Rate { per_second: 1.0, burst_count: 30.0 };
const BINDING: Rate = Rate { per_second: 1.0, burst_count: 30.0 };

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $($path:ident).+ ;)*) => {
        /// What is limited; each class has its own rate in the configuration.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum LimitClass {
            $($(#[$doc])* $name,)*
            /// Redactions by administrators; as [`LimitClass::Message`] unless configured.
            AdminRedaction,
            /// Pages of the trees of spaces, by user.
            Hierarchy,
            /// Tokens by which a user shows who they are.
            OpenId,
            /// What identity servers tell of who has come, by address.
            Binding,
        }

        impl LimitClass {
            const ALL: &[Self] = &[
                $(Self::$name,)*
                Self::AdminRedaction,
                Self::Hierarchy,
                Self::OpenId,
                Self::Binding,
            ];

            pub(crate) fn key(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($($path).+),)*
                    Self::AdminRedaction => "admin_redaction",
                    Self::Hierarchy => "hierarchy",
                    Self::OpenId => "openid",
                    Self::Binding => "binding",
                }
            }

            fn rate(self, rates: &RateLimits) -> Rate {
                match self {
                    $(Self::$name => rates.$($path).+,)*
                    Self::AdminRedaction => rates.admin_redaction.unwrap_or(rates.message),
                    Self::Hierarchy => HIERARCHY,
                    Self::OpenId => OPENID,
                    Self::Binding => BINDING,
                }
            }
        }
    };
}

classes! {
    /// Events that a user sends.
    Message = message;
    /// New accounts, by address.
    Registration = registration;
    /// Questions about registration tokens, by address.
    RegistrationTokenValidity = registration_token_validity;
    /// Logins by address.
    LoginAddress = login.address;
    /// Logins by account.
    LoginAccount = login.account;
    /// Failed logins by account.
    LoginFailedAttempts = login.failed_attempts;
    /// Joins of rooms that this server is in, by user.
    JoinsLocal = joins.local;
    /// Joins of rooms that it is not in, by user.
    JoinsRemote = joins.remote;
    /// Joins by room.
    JoinsPerRoom = joins_per_room;
    /// Invites by room.
    InvitesPerRoom = invites.per_room;
    /// Invites by invited user.
    InvitesPerUser = invites.per_user;
    /// Invites by inviting user.
    InvitesPerIssuer = invites.per_issuer;
    /// Invites of addresses, by inviting user.
    ThirdPartyInvite = third_party_invite;
    /// Presence that a user sets.
    PresencePerUser = presence.per_user;
    /// Rooms that a user creates.
    RoomCreation = room_creation;
}

impl LimitClass {
    /// The class of a key, if there is one.
    pub(crate) fn of_key(key: &str) -> Option<Self> {
        Self::ALL.iter().find(|class| class.key() == key).copied()
    }
}

struct Bucket {
    /// Actions in the bucket at `since_ms`.
    level: f64,
    since_ms: u64,
}

/// The buckets of every class.
pub struct Limits {
    rates: RateLimits,
    buckets: Cache<(LimitClass, Box<str>), Arc<Mutex<Bucket>>>,
    clock: Clock,
    /// Of other servers.
    pub(crate) origins: Origins,
    pub(crate) tally: Tally,
}

impl Limits {
    /// Limits as configured. At most `max_buckets` callers are remembered (R8); who has not
    /// called for longest is forgotten first.
    pub fn new(rates: RateLimits, max_buckets: usize, clock: Clock) -> Self {
        let origins = Origins::new(rates.federation, max_buckets, clock.clone());
        let (buckets, tally) = (Cache::new("rate_limits", max_buckets), Tally::default());
        Self { rates, buckets, clock, origins, tally }
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
        let rate = class.rate(&self.rates);
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
            self.tally.note(class, key);
        }
        Ok(())
    }

    /// Counts actions that others have allowed.
    pub(crate) fn count(&self, class: LimitClass, key: &str, actions: u32) {
        let now_ms = self.clock.now_ms();
        let bucket = self.bucket(class, key, now_ms);
        let mut bucket = bucket.lock();
        bucket.leak(class.rate(&self.rates), now_ms);
        bucket.level += f64::from(actions);
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
        let rates =
            RateLimits { message: Rate { per_second, burst_count }, ..RateLimits::default() };
        Limits::new(rates, 1_000, clock.clone())
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
    fn looking_does_not_count() {
        let clock = Clock::fixed(0);
        let limits = limits(&clock, 0.1, 1.0);
        for _ in 0..100 {
            limits.would_allow(LimitClass::Message, "@a:x").unwrap();
        }
        limits.check(LimitClass::Message, "@a:x").unwrap();
        assert_eq!(retry_after(limits.would_allow(LimitClass::Message, "@a:x")), 10_000);
    }

    /// Two instances that hear each other share a limit.
    #[tokio::test]
    async fn what_one_instance_allows_counts_at_the_others() {
        let clock = Clock::fixed(0);
        let [here, there] = [(); 2].map(|()| limits(&clock, 0.1, 3.0));
        let stop = chatd_base::Stop::new();
        let (told, mut heard) = tokio::sync::mpsc::channel::<Vec<u8>>(8);
        let tell = move |said| told.try_send(said).unwrap();
        let hears = async {
            tokio::task::yield_now().await;
            for _ in 0..2 {
                here.check(LimitClass::Message, "@a:x").unwrap();
            }
            here.check(LimitClass::RoomCreation, "@a:x").unwrap();
            there.hear(&heard.recv().await.unwrap());
            stop.trigger();
        };
        tokio::join!(here.share(tell, stop.clone()), hears);
        there.hear(b"[[\"of another release\",\"@a:x\",5]]");
        there.hear(b"nonsense");
        there.check(LimitClass::Message, "@a:x").unwrap();
        assert_eq!(retry_after(there.check(LimitClass::Message, "@a:x")), 10_000);
        there.check(LimitClass::Message, "@b:x").unwrap();
    }

    #[test]
    fn a_rate_of_zero_never_divides() {
        let clock = Clock::fixed(0);
        let limits = limits(&clock, 0.0, 0.0);
        assert_eq!(retry_after(limits.check(LimitClass::Message, "@a:x")), 3_600_000);
    }
}
