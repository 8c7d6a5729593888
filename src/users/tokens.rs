//! Access tokens: from the string that a client sends to who it is. The cache makes that free of
//! queries; only [`Tokens::forget`] takes entries out of it before their time.

use std::{
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use chatd_base::{
    Authenticate, Cache, Clock, Error, Refusal, Requester, Result, UserNid,
    token::has_valid_checksum,
};
use chatd_storage::{
    Pool,
    tokens::{self, Digest},
};
use chatd_streams::{Feed, device_lists::DeviceLists};
use parking_lot::Mutex;
use ruma_common::{OwnedDeviceId, OwnedUserId};
use sha2::{Digest as _, Sha256};

use crate::seen::{LastSeen, Seen};

/// How exact "last seen" is.
const SEEN_GRANULARITY_MS: u64 = 60_000;
/// Characters of a user agent that are kept.
const MAX_USER_AGENT: usize = 256;

/// What stands for a token in the database and in caches.
pub fn digest(token: &str) -> Digest {
    Sha256::digest(token.as_bytes()).into()
}

/// Which tokens of a user have ended.
#[derive(Clone, Copy, Debug)]
pub enum Ended<'a> {
    /// Those of this device.
    Device(&'a str),
    /// All but this one.
    AllBut(i64),
    /// All of them, or what is known about the account has changed.
    All,
}

struct Entry {
    /// With the address of the last request.
    requester: Mutex<Arc<Requester>>,
    valid_until_ms: Option<u64>,
    locked: bool,
    noted_ms: AtomicU64,
}

/// The cache of access tokens.
pub struct Tokens {
    pool: Pool,
    clock: Clock,
    cache: Cache<Digest, Arc<Entry>>,
    /// Goes up before entries are taken out, so that one that was being read meanwhile is not
    /// put back.
    generation: AtomicU64,
    seen: Arc<LastSeen>,
}

impl Tokens {
    pub fn new(pool: &Pool, clock: &Clock, capacity: usize, seen: Arc<LastSeen>) -> Self {
        Self {
            pool: pool.clone(),
            clock: clock.clone(),
            cache: Cache::new("access_tokens", capacity),
            generation: AtomicU64::new(0),
            seen,
        }
    }

    /// Takes tokens out of the cache when their device has been removed, by whomever, and whether
    /// or not the one who asked for it was told.
    pub fn attach(self: &Arc<Self>, device_lists: &Feed<DeviceLists>) {
        let tokens = self.clone();
        device_lists.on_rows(move |frame| {
            for (_, row) in frame.rows.iter().filter(|(_, row)| row.is_gone) {
                let device = row.device_id.as_deref().unwrap_or_default();
                tokens.forget(row.user, Ended::Device(device));
            }
        });
    }

    /// Takes ended tokens out of the cache. Called after the commit that ended them, also when it
    /// is not known what became of it.
    pub fn forget(&self, user: UserNid, ended: Ended<'_>) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.cache.retain(|_, entry| {
            let requester = entry.requester.lock();
            let has_ended = match ended {
                Ended::Device(id) => {
                    requester.device_id.as_ref().is_some_and(|device| device.as_str() == id)
                }
                Ended::AllBut(token) => requester.token != token,
                Ended::All => true,
            };
            requester.user != user || !has_ended
        });
    }

    /// Takes all tokens out of the cache: some may have ended unheard.
    pub(crate) fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.cache.clear();
    }

    /// The requester behind `token`. No query if it has been seen lately.
    pub async fn requester(
        &self,
        token: &str,
        address: Option<IpAddr>,
        user_agent: Option<&str>,
    ) -> Result<Arc<Requester>> {
        if !has_valid_checksum(token) {
            return Err(unknown(false));
        }
        let digest = digest(token);
        let entry = match self.cache.get(&digest) {
            Some(entry) => entry,
            None => self.load(digest).await?,
        };
        let now_ms = self.clock.now_ms();
        if entry.valid_until_ms.is_some_and(|until| until < now_ms) {
            return Err(unknown(true));
        }
        if entry.locked {
            let refusal = Refusal::new(401, "M_USER_LOCKED", "this account has been locked");
            return Err(refusal.with("soft_logout", true).into());
        }
        let requester = entry.seen_from(address);
        self.note(&entry, &requester, user_agent, now_ms);
        Ok(requester)
    }

    async fn load(&self, digest: Digest) -> Result<Arc<Entry>> {
        let generation = self.generation.load(Ordering::SeqCst);
        let row = tokens::get(&self.pool, &digest).await?.ok_or_else(|| unknown(false))?;
        if row.first_use_counts {
            tokens::mark_used(&self.pool, row.id).await?;
        }
        let entry = Arc::new(Entry {
            valid_until_ms: row.valid_until_ts.map(|until| u64::try_from(until).unwrap_or(0)),
            locked: row.locked,
            noted_ms: AtomicU64::new(0),
            requester: Mutex::new(Arc::new(requester(row)?)),
        });
        self.cache.insert(digest, entry.clone());
        if self.generation.load(Ordering::SeqCst) != generation {
            self.cache.remove(&digest);
        }
        Ok(entry)
    }

    fn note(&self, entry: &Entry, requester: &Requester, user_agent: Option<&str>, now_ms: u64) {
        let Some(device_id) = &requester.device_id else { return };
        if now_ms.saturating_sub(entry.noted_ms.load(Ordering::Relaxed)) < SEEN_GRANULARITY_MS {
            return;
        }
        entry.noted_ms.store(now_ms, Ordering::Relaxed);
        let user_agent = user_agent.map(|text| text.chars().take(MAX_USER_AGENT).collect());
        let seen = Seen { at_ms: now_ms, address: requester.address, user_agent };
        self.seen.note(requester.user, device_id.as_str(), seen);
    }
}

impl Entry {
    /// The requester, as calling from `address`.
    fn seen_from(&self, address: Option<IpAddr>) -> Arc<Requester> {
        let mut requester = self.requester.lock();
        if requester.address != address {
            *requester = Arc::new(Requester { address, ..(**requester).clone() });
        }
        requester.clone()
    }
}

fn requester(row: tokens::AccessToken) -> Result<Requester> {
    Ok(Requester {
        user_id: OwnedUserId::try_from(row.user_id).map_err(Error::internal)?,
        user: row.user,
        device_id: row.device_id.map(OwnedDeviceId::from),
        token: row.id,
        is_admin: row.is_admin,
        is_guest: row.is_guest,
        address: None,
    })
}

/// `soft_logout`: the client may log in again and keep its data.
fn unknown(soft_logout: bool) -> Error {
    let message =
        if soft_logout { "the access token has expired" } else { "the access token is not known" };
    Refusal::unknown_token(message).with("soft_logout", soft_logout).into()
}

impl Authenticate for Tokens {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        address: Option<IpAddr>,
        user_agent: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<Requester>>> + Send + 'a>> {
        Box::pin(self.requester(token, address, user_agent))
    }
}
