//! Passwords: what a new one must look like, hashing, and checking. Hashing is slow on purpose,
//! so it runs on threads of its own, a few at a time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use chatd_base::{Error, Refusal, Result};
use chatd_config::{Config, PasswordPolicy};
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization;

/// Longest password in bytes; bcrypt looks at the first 72 anyway.
const MAX_LENGTH: usize = 512;
/// Requests that may wait for a hash before others are told to come back (R8).
const MAX_WAITING: usize = 256;

/// Hashes and checks passwords.
pub struct Passwords {
    rounds: u32,
    pepper: String,
    policy: PasswordPolicy,
    threads: Semaphore,
    waiting: AtomicUsize,
    /// Well-formed, of the configured cost, and the hash of nothing: an unknown user costs as
    /// much time as a known one.
    dummy: Arc<str>,
}

impl Passwords {
    pub fn new(config: &Config) -> Self {
        let rounds = config.passwords.bcrypt_rounds;
        let pepper = config.passwords.login.pepper.as_ref();
        Self {
            rounds,
            pepper: pepper.map(|pepper| pepper.expose().to_owned()).unwrap_or_default(),
            policy: config.passwords.login.policy.clone(),
            threads: Semaphore::new(config.chatd.hash_threads.max(1)),
            waiting: AtomicUsize::new(0),
            dummy: format!("$2b${rounds:02}${}", "a".repeat(21) + "u" + &"a".repeat(31)).into(),
        }
    }

    /// Refuses a new password that the policy does not allow.
    pub fn check_policy(&self, password: &str) -> Result<()> {
        if password.len() > MAX_LENGTH {
            return Err(Refusal::invalid_param("the password is too long").into());
        }
        check(&self.policy, password)
            .map_err(|(errcode, message)| Refusal::new(400, errcode, message).into())
    }

    /// The hash to store for a new password.
    pub async fn hash(&self, password: &str) -> Result<String> {
        let (password, pepper) = (password.to_owned(), self.pepper.clone());
        let rounds = self.rounds;
        self.run(move || hash(&password, &pepper, rounds)).await?
    }

    /// Whether `password` is the one behind `hash`. Takes as long if there is no hash.
    pub async fn verify(&self, password: &str, hash: Option<&str>) -> Result<bool> {
        if password.len() > MAX_LENGTH {
            return Ok(false);
        }
        let text = prepared(password, &self.pepper);
        let against: Arc<str> = hash.map_or_else(|| self.dummy.clone(), Arc::from);
        let matches = self.run(move || bcrypt::verify(text, &against)).await?;
        // A hash that cannot be parsed belongs to a password that nobody can have.
        Ok(hash.is_some() && matches.unwrap_or(false))
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let _place = Place::take(&self.waiting)?;
        let _thread = self.threads.acquire().await.map_err(Error::internal)?;
        tokio::task::spawn_blocking(work).await.map_err(Error::internal)
    }
}

/// The hash that the database keeps for a password; takes long. The same as Synapse's, so that
/// accounts can move.
pub fn hash(password: &str, pepper: &str, rounds: u32) -> Result<String> {
    bcrypt::hash(prepared(password, pepper), rounds).map_err(Error::internal)
}

/// Normalised, so that the same characters typed on another machine are the same password. bcrypt
/// looks at the first 72 bytes, pepper included.
fn prepared(password: &str, pepper: &str) -> Vec<u8> {
    password.nfkc().chain(pepper.chars()).collect::<String>().into_bytes()
}

/// A place in the queue, given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            return Err(Refusal::limit_exceeded(2000).into());
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn check(policy: &PasswordPolicy, password: &str) -> Result<(), (&'static str, String)> {
    if !policy.enabled {
        return Ok(());
    }
    let least = policy.minimum_length;
    let lacks = |class: fn(char) -> bool| !password.chars().any(class);
    let refused = |errcode, what: &str| Err((errcode, format!("the password must contain {what}")));
    if password.chars().count() < least {
        return refused("M_PASSWORD_TOO_SHORT", &format!("at least {least} characters"));
    }
    if policy.require_digit && lacks(char::is_numeric) {
        return refused("M_PASSWORD_NO_DIGIT", "a digit");
    }
    if policy.require_symbol && lacks(|c| !c.is_alphanumeric()) {
        return refused("M_PASSWORD_NO_SYMBOL", "a symbol");
    }
    if policy.require_uppercase && lacks(char::is_uppercase) {
        return refused("M_PASSWORD_NO_UPPERCASE", "an upper-case letter");
    }
    if policy.require_lowercase && lacks(char::is_lowercase) {
        return refused("M_PASSWORD_NO_LOWERCASE", "a lower-case letter");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_what_is_missing() {
        let policy = PasswordPolicy {
            enabled: true,
            minimum_length: 5,
            require_digit: true,
            require_symbol: true,
            require_lowercase: true,
            require_uppercase: true,
        };
        let table = [
            ("aB1!", Some("M_PASSWORD_TOO_SHORT")),
            ("aBcd!", Some("M_PASSWORD_NO_DIGIT")),
            ("aBcd1", Some("M_PASSWORD_NO_SYMBOL")),
            ("abcd1!", Some("M_PASSWORD_NO_UPPERCASE")),
            ("ABCD1!", Some("M_PASSWORD_NO_LOWERCASE")),
            ("aBcd1!", None),
        ];
        for (password, expected) in table {
            let found = check(&policy, password).err().map(|(errcode, _)| errcode);
            assert_eq!(found, expected, "{password}");
        }
        let off = PasswordPolicy { enabled: false, ..policy };
        assert!(check(&off, "").is_ok());
    }

    fn passwords(rounds: u32) -> Passwords {
        let text =
            format!("server_name: x\nbcrypt_rounds: {rounds}\npassword_config: {{pepper: s}}");
        let over = chatd_config::Overrides::default();
        Passwords::new(&Config::from_texts(&[("a.yaml", &text)], &over).unwrap())
    }

    #[tokio::test]
    async fn a_hash_fits_its_password_in_every_spelling_and_no_other() {
        let passwords = passwords(4);
        let hash = passwords.hash("pa\u{df}w\u{f6}rd").await.unwrap();
        assert!(hash.starts_with("$2b$04$"));
        assert!(passwords.verify("pa\u{df}wo\u{308}rd", Some(&hash)).await.unwrap());
        assert!(!passwords.verify("password", Some(&hash)).await.unwrap());
        assert!(!passwords.verify("", None).await.unwrap());
        assert!(!passwords.verify("x", Some("not a hash")).await.unwrap());
    }

    /// Made by Synapse's `hash_password` with this pepper.
    #[test]
    fn hashes_of_synapse_fit() {
        let long = "x".repeat(80);
        let table = [
            ("correct horse", "$2b$04$F1wO4BIt4bqOnm./T5Y19u69a84wDoa4pHCYrNo.GCF.heVrGmlJ."),
            (
                "pass\u{df}w\u{f6}rd \u{fb01}",
                "$2b$04$PpGJB7z32HmEBoIbQZsv0Oam4lu8I8xQ.zMZQ/YN25zDeSWJ0tyv2",
            ),
            (
                "pass\u{df}wo\u{308}rd fi",
                "$2b$04$PpGJB7z32HmEBoIbQZsv0Oam4lu8I8xQ.zMZQ/YN25zDeSWJ0tyv2",
            ),
            (&long, "$2b$04$mCDgbkSpLRpGjGZmH9inQ..aHp0hzHripaFhXJJuJG3AHybzyWcm6"),
        ];
        for (password, hash) in table {
            let fits = |text: &str, pepper| bcrypt::verify(prepared(text, pepper), hash).unwrap();
            assert!(fits(password, "salt & p\u{e9}pper"), "{password}");
            assert!(!fits(&format!("y{password}"), "salt & p\u{e9}pper"), "{password}");
        }
        let own = hash("correct horse", "salt", 4).unwrap();
        assert!(bcrypt::verify(prepared("correct horse", "salt"), &own).unwrap());
        assert!(!bcrypt::verify(prepared("correct horse", "pepper"), &own).unwrap());
    }

    #[test]
    fn the_dummy_hash_is_one_that_bcrypt_computes() {
        assert!(!bcrypt::verify("x", &passwords(4).dummy).unwrap());
    }
}
