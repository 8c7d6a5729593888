//! Signing keys of other servers: from memory, from the tables, and from those servers or from
//! servers that know them. Whoever needs a key says until when it must be good.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chatd_base::{Cache, Result, tasks};
use chatd_config::Config;
use chatd_storage::server_keys;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
    stream,
};
use parking_lot::Mutex;
use ruma_common::{OwnedServerName, ServerName};
use tokio::sync::{Semaphore, oneshot};

use crate::{
    Client, Deps,
    key_document::{Document, ServerKeys},
    key_fetch,
    own_keys::OwnKeys,
};

/// Servers whose keys are kept in memory (R8).
const MOST_SERVERS: usize = 20_000;
/// A server that was asked is not asked again so soon, whatever came of it.
const ASK_AGAIN_MS: u64 = 30_000;
/// Servers that are asked at a time, and those that wait for it (R8).
const MOST_AT_A_TIME: usize = 64;
const MOST_UNDER_WAY: usize = 2_000;
/// Servers that one request waits for at a time.
const MOST_OF_ONE: usize = 32;
/// From so many servers on, those who know others' keys are asked first: many may be gone.
const MANY_SERVERS: usize = 8;

/// Knows the keys of other servers, and this server's own. Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) deps: Deps,
    pub(crate) client: Arc<Client>,
    pub(crate) own: OwnKeys,
    known: Cache<OwnedServerName, Arc<ServerKeys>>,
    /// When a server may be asked again (milliseconds).
    asked: Cache<OwnedServerName, u64>,
    under_way: Mutex<HashMap<OwnedServerName, Fetch>>,
    places: Semaphore,
}

/// Ends when the server has answered, or has not.
type Fetch = Shared<BoxFuture<'static, ()>>;

/// Keys that somebody needs: of a server, by their ids, with the time at which each must be good.
pub(crate) type Needs = BTreeMap<OwnedServerName, BTreeMap<String, u64>>;

/// What is known of each server.
pub(crate) type Found = HashMap<OwnedServerName, Arc<ServerKeys>>;

impl Keyring {
    pub(crate) fn new(deps: &Deps, client: &Arc<Client>) -> Result<Self> {
        let config: &Config = &deps.config;
        let own = OwnKeys::new(
            config.server_name.clone(),
            &deps.keys,
            deps.notary_keys.as_deref(),
            &config.keys,
        )?;
        let inner = Inner {
            deps: deps.clone(),
            client: client.clone(),
            own,
            known: Cache::new("server_keys", MOST_SERVERS),
            asked: Cache::new("server_keys_asked", MOST_SERVERS),
            under_way: Mutex::default(),
            places: Semaphore::new(MOST_AT_A_TIME),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This server's keys, as others ask for them: signed JSON.
    pub fn own_document(&self) -> Result<bytes::Bytes> {
        self.inner.own.document(self.inner.deps.clock.now_ms())
    }
}

impl Inner {
    /// What is known of the servers of `needs`, after all has been done to know what is needed.
    pub(crate) async fn gather(self: &Arc<Self>, needs: &Needs) -> Result<Found> {
        let mut found = Found::new();
        for server in needs.keys() {
            if let Some(keys) = self.in_memory(server) {
                found.insert(server.clone(), keys);
            }
        }
        let missing = missing(needs, &found);
        if !missing.is_empty() {
            self.read(&missing, &mut found).await?;
            self.ask(needs, &mut found).await;
        }
        Ok(found)
    }

    fn in_memory(&self, server: &ServerName) -> Option<Arc<ServerKeys>> {
        if *server == *self.deps.config.server_name {
            return Some(self.own.as_known().clone());
        }
        self.known.get(server)
    }

    /// Takes what the tables know of `servers` into memory. One statement.
    async fn read(&self, servers: &[OwnedServerName], found: &mut Found) -> Result<()> {
        let names: Vec<&str> = servers.iter().map(|server| server.as_str()).collect();
        let mut read = BTreeMap::<String, ServerKeys>::new();
        for row in server_keys::list(&self.deps.pool, &names).await? {
            read.entry(row.server.clone()).or_default().add_row(row);
        }
        for server in servers {
            if let Some(keys) = read.remove(server.as_str()) {
                let keys = Arc::new(keys);
                self.known.insert(server.clone(), keys.clone());
                found.insert(server.clone(), keys);
            }
        }
        Ok(())
    }

    /// Asks for what is still missing: the servers themselves, and those who know others' keys.
    async fn ask(self: &Arc<Self>, needs: &Needs, found: &mut Found) {
        let askable = self.askable(missing(needs, found));
        if askable.len() > MANY_SERVERS {
            self.ask_those_who_know(&askable, needs, found).await;
        }
        let missing_now = missing(needs, found);
        let direct: Vec<_> =
            askable.iter().filter(|server| missing_now.contains(server)).cloned().collect();
        self.fetch_all(&direct).await;
        // Of those that somebody else has asked just now, too.
        for server in missing(needs, found) {
            if let Some(keys) = self.known.get(&server) {
                found.insert(server, keys);
            }
        }
        if askable.len() <= MANY_SERVERS {
            self.ask_those_who_know(&askable, needs, found).await;
        }
    }

    /// Asks those of `servers` that have not been asked lately for their keys.
    pub(crate) async fn refresh(self: &Arc<Self>, servers: Vec<OwnedServerName>) {
        self.fetch_all(&self.askable(servers)).await;
    }

    async fn fetch_all(self: &Arc<Self>, servers: &[OwnedServerName]) {
        let fetches: Vec<Fetch> = servers.iter().filter_map(|server| self.fetch(server)).collect();
        stream::iter(fetches).for_each_concurrent(MOST_OF_ONE, |fetch| fetch).await;
    }

    /// Those of `servers` that have not been asked lately.
    fn askable(&self, servers: Vec<OwnedServerName>) -> Vec<OwnedServerName> {
        let now_ms = self.deps.clock.now_ms();
        let may = |server: &OwnedServerName| self.asked.get(server).is_none_or(|at| at <= now_ms);
        servers.into_iter().filter(may).collect()
    }

    async fn ask_those_who_know(
        &self,
        servers: &[OwnedServerName],
        needs: &Needs,
        found: &mut Found,
    ) {
        for trusted in &self.deps.config.keys.trusted_servers {
            let missing_now = missing(needs, found);
            let wanted: Needs = needs
                .iter()
                .filter(|(server, _)| servers.contains(server) && missing_now.contains(server))
                .map(|(server, keys)| (server.clone(), keys.clone()))
                .collect();
            if wanted.is_empty() || trusted.server_name == self.deps.config.server_name {
                continue;
            }
            let now_ms = self.deps.clock.now_ms();
            let documents = key_fetch::from_trusted(&self.client, trusted, &wanted, now_ms).await;
            self.keep(documents, now_ms).await;
            for server in wanted.keys() {
                if let Some(keys) = self.known.get(server) {
                    found.insert(server.clone(), keys);
                }
            }
        }
    }

    /// Asks a server for its keys; whoever asks meanwhile waits for the same answer. `None` if
    /// too many are asked already.
    fn fetch(self: &Arc<Self>, server: &ServerName) -> Option<Fetch> {
        let mut under_way = self.under_way.lock();
        if let Some(fetch) = under_way.get(server) {
            return Some(fetch.clone());
        }
        if under_way.len() >= MOST_UNDER_WAY {
            return None;
        }
        let (done, ended) = oneshot::channel::<()>();
        let fetch = ended.map(|_| ()).boxed().shared();
        under_way.insert(server.to_owned(), fetch.clone());
        let (ring, server) = (self.clone(), server.to_owned());
        tasks::spawn("server_keys", async move {
            ring.fetch_now(&server).await;
            ring.under_way.lock().remove(&server);
            drop(done);
        });
        Some(fetch)
    }

    async fn fetch_now(&self, server: &ServerName) {
        let Ok(_place) = self.places.acquire().await else { return };
        let fetched = key_fetch::from_itself(&self.client, server, &self.deps.clock).await;
        let now_ms = self.deps.clock.now_ms();
        self.asked.insert(server.to_owned(), now_ms.saturating_add(ASK_AGAIN_MS));
        match fetched {
            Ok(document) => self.keep(vec![document], now_ms).await,
            Err(why) => {
                tracing::info!(server = %server, why, "the keys of a server are not to be had")
            }
        }
    }

    /// Keeps what documents tell, in memory and in the tables.
    async fn keep(&self, documents: Vec<Document>, now_ms: u64) {
        if documents.is_empty() {
            return;
        }
        for document in &documents {
            let known = self.known.get(&document.server);
            let mut keys = known.map(|known| ServerKeys::clone(&known)).unwrap_or_default();
            keys.add_document(document, now_ms);
            self.known.insert(document.server.clone(), Arc::new(keys));
        }
        let stored: Vec<_> = documents.iter().map(|document| document.to_stored(now_ms)).collect();
        let fetched_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        if let Err(error) = server_keys::upsert(&self.deps.pool, &stored, fetched_ms).await {
            tracing::warn!(%error, "keys of other servers could not be stored");
        }
    }

    /// Has the keys of a server fetched anew, without waiting for it, if the one of that id will
    /// not be good for much longer.
    pub(crate) fn renew(
        self: &Arc<Self>,
        server: &OwnedServerName,
        keys: &ServerKeys,
        key_id: &str,
    ) {
        let now_ms = self.deps.clock.now_ms();
        let is_due = keys.is_half_over(key_id, now_ms);
        if is_due && self.asked.get(server).is_none_or(|at| at <= now_ms) {
            // It goes on by itself.
            let _ = self.fetch(server);
        }
    }
}

/// The servers of which asking may tell what is needed and not known.
fn missing(needs: &Needs, found: &Found) -> Vec<OwnedServerName> {
    let lacks =
        |(server, keys): &(&OwnedServerName, &BTreeMap<String, u64>)| match found.get(*server) {
            Some(known) => {
                keys.is_empty() && known.is_empty()
                    || keys.iter().any(|(key_id, at_ms)| known.may_change(key_id, *at_ms))
            }
            None => true,
        };
    needs.iter().filter(lacks).map(|(server, _)| server.clone()).collect()
}
