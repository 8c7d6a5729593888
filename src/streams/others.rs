//! How this instance has work done that belongs to another: a call, made again until somebody
//! answers it. A call is one that may be made twice: its effect is committed with a key, or is
//! the same the second time.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use chatd_base::{CallError, Patience, Refusal, Result, Stop};
use chatd_config::StreamName;

/// The fleet, as far as calls need to know it.
pub trait Colleagues: Send + Sync + 'static {
    /// Somebody who writes `stream`, and is alive if anybody is. `None`: this instance.
    fn writer_of(&self, stream: StreamName) -> Option<String>;

    /// Calls `instance` once.
    fn call<'a>(
        &'a self,
        instance: &'a str,
        name: &'a str,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>>;
}

/// The other instances. They are known once this one has joined the fleet.
pub struct Others {
    fleet: OnceLock<Arc<dyn Colleagues>>,
    stop: Stop,
}

impl Others {
    /// Calls are given up at `stop`.
    pub fn new(stop: &Stop) -> Arc<Self> {
        Arc::new(Self { fleet: OnceLock::new(), stop: stop.clone() })
    }

    /// Makes the fleet known. Called once, while the instance is wired.
    pub fn join(&self, fleet: Arc<dyn Colleagues>) {
        let _known_already = self.fleet.set(fleet);
    }

    /// Has a writer of `stream` answer the call.
    pub async fn ask_writer(&self, stream: StreamName, name: &str, body: Bytes) -> Result<Bytes> {
        let mut patience = Patience::default();
        loop {
            let whom = self.fleet.get().and_then(|fleet| fleet.writer_of(stream));
            let why = match self.ask_once(whom.as_deref(), name, body.clone(), patience).await {
                Ok(answer) => return Ok(answer),
                Err(CallError::Refused(refusal)) => return Err(refusal.into()),
                Err(CallError::Lost(why) | CallError::Unsent(why)) => why,
            };
            if !patience.wait(&self.stop).await {
                tracing::warn!(call = name, why, "another instance could not be asked");
                return Err(away().into());
            }
        }
    }

    /// Asks once, and waits no longer than `patience` has time left.
    pub async fn ask_once(
        &self,
        instance: Option<&str>,
        name: &str,
        body: Bytes,
        patience: Patience,
    ) -> Result<Bytes, CallError> {
        let (Some(fleet), Some(instance)) = (self.fleet.get(), instance) else {
            return Err(CallError::Unsent("the fleet is not known yet".to_owned()));
        };
        let asked = fleet.call(instance, name, body);
        let answer = match tokio::time::timeout(patience.left(), asked).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Lost(format!("{instance} does not answer"))),
        };
        if let Err(CallError::Lost(why) | CallError::Unsent(why)) = &answer {
            metrics::counter!("chatd_call_retries_total").increment(1);
            tracing::debug!(call = name, instance, why, "a call was lost");
        }
        answer
    }

    /// What ends the waiting between attempts.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }
}

/// Nobody who could do the work answers.
pub fn away() -> Refusal {
    Refusal::new(503, "M_UNKNOWN", "a part of the server does not answer at the moment; try again")
}
