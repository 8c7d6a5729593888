//! What instances ask of each other beside the requests of clients: calls, by name, that are
//! answered where their work belongs. Whoever does the work says here how; `http` carries the
//! calls and knows nothing of what they are about.

use std::{collections::HashMap, future::Future, pin::Pin};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::{Refusal, Result};

/// The answer to a call, while it is made.
pub type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>>> + Send>>;

type Handler = Box<dyn Fn(Bytes) -> Answer + Send + Sync>;

/// What this instance does for the others.
#[derive(Default)]
pub struct Calls {
    handlers: RwLock<HashMap<String, Handler>>,
}

impl Calls {
    /// Answers calls of that name from now on. Called while the instance is wired.
    pub fn on<F>(
        &self,
        name: impl Into<String>,
        handler: impl Fn(Bytes) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<Vec<u8>>> + Send + 'static,
    {
        let handler: Handler = Box::new(move |body| Box::pin(handler(body)));
        self.handlers.write().insert(name.into(), handler);
    }

    /// Answers a call. Refuses ([`Refusal::not_owner`]) those whose work belongs elsewhere.
    pub async fn answer(&self, name: &str, body: Bytes) -> Result<Vec<u8>> {
        let answer = self.handlers.read().get(name).map(|handler| handler(body));
        match answer {
            Some(answer) => answer.await,
            None => Err(Refusal::not_owner(String::new()).into()),
        }
    }
}

/// Why a call has no answer that counts.
#[derive(Debug)]
pub enum CallError {
    /// It has had no effect: nobody has got it, or the other instance says that it does not do
    /// this.
    Unsent(String),
    /// It may have had its effect or not. May be asked again with the same key.
    Lost(String),
    /// The other instance refuses, or has failed.
    Refused(Refusal),
}
