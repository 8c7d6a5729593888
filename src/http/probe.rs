//! Asking the replication listeners of a fleet from outside of it, for people who watch it.

use std::{
    collections::BTreeMap,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chatd_base::Result;
use chatd_config::{InstanceAddress, RouterName};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use parking_lot::RwLock;

use crate::{
    Home, Placement,
    peers::{PeerError, Peers},
};

/// Largest answer that is taken in.
const MOST_BYTES: usize = 4 << 20;

/// Whoever asks the instances of a fleet.
pub struct Probe {
    peers: Peers,
    learned: Arc<Learned>,
}

impl Probe {
    /// Knows where these are. The error is a sentence for the admin.
    pub fn new(instances: &BTreeMap<String, InstanceAddress>) -> Result<Self, String> {
        let learned = Arc::new(Learned::default());
        Ok(Self { peers: Peers::new(instances, learned.clone(), None)?, learned })
    }

    /// Takes note of where an instance is that was not known at the start.
    pub fn learn(&self, instance: &str, address: InstanceAddress) {
        self.learned.0.write().insert(instance.to_owned(), address);
    }

    /// The body of `path` at `instance`. The error says why there is none.
    pub async fn get(
        &self,
        instance: &str,
        path: &'static str,
        within: Duration,
    ) -> Result<Bytes, String> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = http::Uri::from_static(path);
        let asked = async {
            let answer = self.peers.send(instance, request).await.map_err(|error| match error {
                PeerError::Unreached(why) | PeerError::Broken(why) => why,
            })?;
            if answer.status() != StatusCode::OK {
                return Err(format!("it answers {}", answer.status()));
            }
            let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
        };
        let late = |_| format!("it does not answer within {} s", within.as_secs());
        tokio::time::timeout(within, asked).await.map_err(late)?
    }
}

/// Places that were learned of; nothing is carried.
#[derive(Default)]
struct Learned(RwLock<BTreeMap<String, InstanceAddress>>);

impl Placement for Learned {
    fn place<'a>(
        &'a self,
        _: RouterName,
        _: Home,
        _: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<String>>> + Send + 'a>> {
        Box::pin(ready(Ok(None)))
    }

    fn level(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(ready(()))
    }

    fn address(&self, instance: &str) -> Option<InstanceAddress> {
        self.0.read().get(instance).cloned()
    }

    fn doubt<'a>(&'a self, _: Option<&'a str>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(ready(()))
    }
}
