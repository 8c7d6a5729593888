//! Another homeserver, in the test itself: it does what the test says, good or bad.
//!
//! [`Other::start`] makes one that listens with TLS, checks the signature of every request, and
//! remembers it. Without further words it behaves: it publishes its key, takes transactions, and
//! answers for the rooms that it is in ([`Other::create_room`], [`Other::join`]) from its memory.
//! [`Other::on`] puts a script in front of that; a script that returns `None` leaves the request to
//! the next one. [`Other::identify`] makes it an identity server too. [`Room::draft`] makes events, also such as nobody should believe.
//!
//! It does not resolve state and allows everything: what is right is for the server under test.

mod answers;
mod asking;
mod identity;
mod key;
mod listener;
mod memory;
mod pdu;
mod reply;
mod room;
mod seen;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ruma_signatures::PublicKeyMap;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use asking::{Peer, authorization};
pub use identity::{ACCESS_TOKEN, Vouching};
pub use key::{Key, Published, canonical, is_signed, keys_of, now_ms};
pub use memory::State;
pub use pdu::{Pdu, rules_of};
pub use reply::Reply;
pub use room::{Draft, Room, VERSIONS};
pub use seen::Seen;

use crate::ports::Port;

/// Longest time to wait for a request.
const PATIENCE: Duration = Duration::from_secs(60);
/// A key may be relied upon for this long.
const KEY_LIFE_MS: u64 = 24 * 60 * 60 * 1_000;

/// What decides in front of all else how a request is answered.
type Script = Arc<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>;

/// Another homeserver; cheap to clone.
#[derive(Clone)]
pub struct Other {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Other {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Other").field(&self.name()).finish()
    }
}

struct Inner {
    port: Port,
    key: Mutex<Key>,
    published: Mutex<Published>,
    scripts: Mutex<Vec<(String, String, Script)>>,
    rooms: Mutex<HashMap<String, Room>>,
    /// Keys of other servers, by their names.
    keys: Mutex<HashMap<String, Arc<PublicKeyMap>>>,
    /// All requests; whoever waits for one watches.
    seen: watch::Sender<Vec<Seen>>,
    problems: Mutex<Vec<String>>,
    /// Whether it is there.
    is_up: watch::Sender<bool>,
    transactions: AtomicU64,
    /// Whether those who join are told of the room.
    tells: watch::Sender<bool>,
    /// Whether members are left out of what those are told who ask for that.
    omits: AtomicBool,
}

impl Other {
    /// Starts one; it is there when this returns.
    pub async fn start() -> Self {
        let key = Key::generate(&format!("k_{:04x}", rand::random::<u16>()));
        let published = Published {
            current: vec![key.clone()],
            old: Vec::new(),
            valid_until_ms: now_ms() + KEY_LIFE_MS,
        };
        let other = Self {
            inner: Arc::new(Inner {
                port: Port::claim().expect("a port for another server"),
                key: Mutex::new(key),
                published: Mutex::new(published),
                scripts: Mutex::default(),
                rooms: Mutex::default(),
                keys: Mutex::default(),
                seen: watch::Sender::new(Vec::new()),
                problems: Mutex::default(),
                is_up: watch::Sender::new(false),
                transactions: AtomicU64::default(),
                tells: watch::Sender::new(true),
                omits: AtomicBool::default(),
            }),
        };
        other.come_back().await;
        other
    }

    /// Its `server_name`.
    pub fn name(&self) -> String {
        self.inner.port.server_name()
    }

    /// It as another one of these asks it.
    pub fn peer(&self) -> Peer {
        Peer::new(&self.name(), &format!("http://{}", self.name()))
    }

    /// `@name:…` of this server.
    pub fn user(&self, name: &str) -> String {
        format!("@{name}:{}", self.name())
    }

    /// The key that it signs with.
    pub fn key(&self) -> Key {
        lock(&self.inner.key).clone()
    }

    /// Signs requests, and new rooms, with another key from now on; it publishes that one, and
    /// says that the earlier one counts until now.
    pub fn rotate(&self) {
        let new = Key::generate(&format!("k_{:04x}", rand::random::<u16>()));
        let old = std::mem::replace(&mut *lock(&self.inner.key), new.clone());
        self.publish(|published| {
            published.current = vec![new];
            published.old.push((old, now_ms()));
        });
    }

    /// Changes what it says of its keys; answers that others have are not taken back.
    pub fn publish(&self, change: impl FnOnce(&mut Published)) {
        change(&mut lock(&self.inner.published));
    }

    /// Answers requests with `method` (any if empty) to paths that begin with `prefix` as `script`
    /// says; the latest script is asked first.
    pub fn on(
        &self,
        method: &str,
        prefix: &str,
        script: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static,
    ) {
        let script = (method.to_owned(), prefix.to_owned(), Arc::new(script) as Script);
        lock(&self.inner.scripts).push(script);
    }

    /// The same with one reply for all.
    pub fn always(&self, method: &str, prefix: &str, reply: Reply) {
        self.on(method, prefix, move |_| Some(reply.clone()));
    }

    /// Lets those who join wait for the room until [`Self::tell`]: they are in it meanwhile.
    pub fn hold_back(&self) {
        self.inner.tells.send_replace(false);
    }

    /// Tells those who wait, and who come later.
    pub fn tell(&self) {
        self.inner.tells.send_replace(true);
    }

    /// Leaves out members for those who join and ask for that.
    pub fn omit_members(&self) {
        self.inner.omits.store(true, Ordering::Release);
    }

    /// Takes all scripts away.
    pub fn behave(&self) {
        lock(&self.inner.scripts).clear();
    }

    fn scripted(&self, seen: &Seen) -> Option<Reply> {
        let scripts = lock(&self.inner.scripts).clone();
        scripts.iter().rev().find_map(|(method, prefix, script)| {
            let fits = (method.is_empty() || *method == seen.method)
                && seen.path().starts_with(prefix.as_str());
            if fits { script(seen) } else { None }
        })
    }

    /// A public room of its own, made by `creator`, which is one of its users.
    pub fn create_room(&self, version: &str, creator: &str) -> Room {
        self.create_room_with(version, creator, &json!({}))
    }

    /// The same with further content of the create event.
    pub fn create_room_with(&self, version: &str, creator: &str, create: &Value) -> Room {
        let room = Room::create(&self.name(), &self.key(), version, creator, create);
        lock(&self.inner.rooms).insert(room.id(), room.clone());
        room
    }

    /// A room that it is in.
    pub fn room(&self, id: &str) -> Option<Room> {
        lock(&self.inner.rooms).get(id).cloned()
    }

    /// All requests so far with `method` (any if empty) to paths that begin with `prefix`.
    pub fn seen(&self, method: &str, prefix: &str) -> Vec<Seen> {
        let all = self.inner.seen.borrow();
        all.iter().filter(|seen| is_one(seen, method, prefix)).cloned().collect()
    }

    /// Waits for such a request in which `find` finds what it looks for, also among earlier ones.
    pub async fn until<T>(
        &self,
        what: &str,
        method: &str,
        prefix: &str,
        find: impl Fn(&Seen) -> Option<T>,
    ) -> T {
        let mut all = self.inner.seen.subscribe();
        let search = async {
            loop {
                let found = all
                    .borrow_and_update()
                    .iter()
                    .filter(|seen| is_one(seen, method, prefix))
                    .find_map(&find);
                if let Some(found) = found {
                    return found;
                }
                all.changed().await.expect("this server holds the sender");
            }
        };
        match tokio::time::timeout(PATIENCE, search).await {
            Ok(found) => found,
            Err(_) => {
                let seen = self.seen("", "");
                let lines: Vec<_> =
                    seen.iter().map(|s| format!("{} {}", s.method, s.uri)).collect();
                panic!(
                    "{} waited {PATIENCE:?} for {what}; seen: {lines:#?}; problems: {:#?}",
                    self.name(),
                    self.problems()
                )
            }
        }
    }

    /// Waits for an event in a transaction that `is_it` recognises.
    pub async fn until_pdu(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.until_part(what, "pdus", is_it).await
    }

    /// Waits for an EDU in a transaction that `is_it` recognises.
    pub async fn until_edu(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.until_part(what, "edus", is_it).await
    }

    async fn until_part(&self, what: &str, part: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.until(what, "PUT", "/_matrix/federation/v1/send/", |seen| {
            let parts = seen.body[part].as_array()?;
            parts.iter().find(|part| is_it(part)).cloned()
        })
        .await
    }

    /// What was wrong with requests and events that came: bad signatures, unknown keys.
    pub fn problems(&self) -> Vec<String> {
        lock(&self.inner.problems).clone()
    }

    fn note_problem(&self, problem: String) {
        lock(&self.inner.problems).push(problem);
    }

    fn note_seen(&self, seen: Seen) {
        self.inner.seen.send_modify(|all| all.push(seen));
    }

    fn next_transaction(&self) -> String {
        format!("{}-{}", now_ms(), self.inner.transactions.fetch_add(1, Ordering::Relaxed))
    }
}

fn is_one(seen: &Seen, method: &str, prefix: &str) -> bool {
    (method.is_empty() || seen.method == method) && seen.path().starts_with(prefix)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}
