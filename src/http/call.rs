//! Calls between instances ([`chatd_base::Calls`]): over the same connections as carried
//! requests, with the same secret. Both ways are JSON; what it is about is not known here. The
//! client that a call is made for is known only by the id of its request, which goes along for the
//! log.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use chatd_base::{CallError, Calls, Refusal, Result, request_id};
use chatd_config::RouterName;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Map, Value};

use crate::{
    Auth, NOT_OWNER, Reply, Request, Router, Routes,
    carry::REQUEST,
    carry_meter::Links,
    peers::{PeerError, Peers},
    raw,
};

/// Under it a replication listener takes calls.
const PREFIX: &str = "/_synapse/replication/call";
/// Largest call and largest answer, in bytes (R8).
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Makes calls. Cheap to clone.
#[derive(Clone)]
pub struct Caller {
    peers: Peers,
    links: Arc<Links>,
}

impl Caller {
    pub(crate) fn new(peers: &Peers, links: &Arc<Links>) -> Self {
        Self { peers: peers.clone(), links: links.clone() }
    }

    /// Calls `instance` once.
    pub async fn call(&self, instance: &str, name: &str, body: Bytes) -> Result<Bytes, CallError> {
        let (sent_at, link) = (Instant::now(), self.links.to(instance));
        let answer = self.attempt(instance, name, body).await;
        match &answer {
            Err(CallError::Lost(_) | CallError::Unsent(_)) => link.failed(),
            Ok(_) | Err(CallError::Refused(_)) => link.called(sent_at),
        }
        answer
    }

    async fn attempt(&self, instance: &str, name: &str, body: Bytes) -> Result<Bytes, CallError> {
        let lost = |why: &dyn std::fmt::Display| CallError::Lost(format!("{instance}: {why}"));
        let unsent = |why: &dyn std::fmt::Display| CallError::Unsent(format!("{instance}: {why}"));
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("{PREFIX}/{name}").parse().map_err(|error| unsent(&error))?;
        let id = request_id::current().unwrap_or_default();
        if let Ok(id) = HeaderValue::from_str(&id) {
            request.headers_mut().insert(REQUEST, id);
        }
        let answer = match self.peers.send(instance, request).await {
            Ok(answer) => answer,
            Err(PeerError::Unreached(why)) => return Err(unsent(&why)),
            Err(PeerError::Broken(why)) => return Err(lost(&why)),
        };
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|error| lost(&error))?.to_bytes();
        match status {
            StatusCode::OK => Ok(body),
            _ if status.as_u16() == NOT_OWNER.0 => Err(unsent(&"it does not do this")),
            _ => {
                let body: Map<String, Value> = serde_json::from_slice(&body).unwrap_or_default();
                Err(CallError::Refused(Refusal::from_json(status.as_u16(), body)))
            }
        }
    }
}

/// What answers the calls of others, on a replication listener.
pub(crate) fn router(calls: &Arc<Calls>) -> Router {
    async fn answer(calls: Arc<Calls>, request: Request) -> Result<Reply> {
        let answer = calls.answer(request.arg("name"), request.body().clone()).await?;
        Ok(Reply::raw_json(answer))
    }
    Routes::of(RouterName::Replication)
        .post(raw("/_synapse/replication/call/{name}"), Auth::Peer, answer)
        .body_limit(MOST_BYTES)
        .bind(calls)
}
