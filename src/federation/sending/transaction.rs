//! One request with events and EDUs for one server (spec: transactions).

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use chatd_base::{EventNid, Position};
use chatd_servers::{Ask, Client, Failure, Retries};
use ruma_common::ServerName;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Events in one transaction.
pub(super) const MOST_PDUS: usize = 50;
/// EDUs in one transaction.
pub(super) const MOST_EDUS: usize = 100;
/// How long a server may take for one.
const WITHIN: Duration = Duration::from_secs(60);
/// Of an answer.
const MOST_ANSWER_BYTES: usize = 1 << 20;

/// What goes into one transaction.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pdus: Vec<Arc<str>>,
    edus: Vec<String>,
    /// What has to arrive, so that a repeat has the same id.
    content: Sha256,
    is_durable: bool,
}

impl Transaction {
    pub(super) fn is_empty(&self) -> bool {
        self.pdus.is_empty() && self.edus.is_empty()
    }

    /// How many EDUs fit in yet.
    pub(super) fn room_for_edus(&self) -> usize {
        MOST_EDUS.saturating_sub(self.edus.len())
    }

    /// How many events and EDUs there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.pdus.len(), self.edus.len())
    }

    pub(super) fn add_event(&mut self, nid: EventNid, body: Arc<str>) {
        self.must_arrive('p', nid.0);
        self.pdus.push(body);
    }

    /// Adds an EDU that must not be lost; `at` is its position, which no other of its kind has.
    pub(super) fn add_durable_edu(&mut self, kind: char, at: Position, edu: String) {
        self.must_arrive(kind, at.0);
        self.edus.push(edu);
    }

    /// Adds EDUs that may be lost.
    pub(super) fn add_edus(&mut self, edus: Vec<String>) {
        self.edus.extend(edus);
    }

    fn must_arrive(&mut self, kind: char, number: i64) {
        self.content.update(format!("{kind}{number},"));
        self.is_durable = true;
    }

    /// Its id: the same whenever the same is sent.
    fn id(&self, server: &ServerName) -> String {
        if !self.is_durable {
            return format!("{:032x}", rand::random::<u128>());
        }
        let mut hash = self.content.clone();
        hash.update(server.as_bytes());
        URL_SAFE_NO_PAD.encode(&hash.finalize()[..18])
    }

    fn body(&self, origin: &ServerName, now_ms: u64) -> Bytes {
        let mut body = format!(
            "{{\"origin\":{},\"origin_server_ts\":{now_ms},\"pdus\":[",
            Value::from(origin.as_str())
        );
        body.push_str(&self.pdus.join(","));
        body.push_str("],\"edus\":[");
        body.push_str(&self.edus.join(","));
        body.push_str("]}");
        body.into()
    }

    /// Sends it once.
    pub(super) async fn send(
        &self,
        client: &Client,
        origin: &ServerName,
        server: &ServerName,
        now_ms: u64,
    ) -> Result<(), Failure> {
        let path = format!("/_matrix/federation/v1/send/{}", self.id(server));
        let mut ask = Ask::put(path)
            .json(self.body(origin, now_ms))
            .within(WITHIN)
            .most_bytes(MOST_ANSWER_BYTES);
        ask.retries = Retries::None;
        let answer = client.ask(server, ask).await?;
        self.note_refusals(server, &answer);
        Ok(())
    }

    /// What the server says of single events is its own affair; it has them all.
    fn note_refusals(&self, server: &ServerName, answer: &[u8]) {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let Some(pdus) = answer.get("pdus").and_then(Value::as_object) else { return };
        for (event_id, outcome) in pdus {
            if let Some(error) = outcome.get("error") {
                tracing::info!(server.name = %server, event.id = event_id, %error,
                    "another server does not accept an event");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> &'static ServerName {
        "b.example".try_into().unwrap()
    }

    #[test]
    fn the_same_content_has_the_same_id() {
        let of = |nids: &[i64], edus: &[&str]| {
            let mut transaction = Transaction::default();
            nids.iter().for_each(|nid| transaction.add_event(EventNid(*nid), "{}".into()));
            transaction.add_edus(edus.iter().map(|edu| (*edu).to_owned()).collect());
            transaction.id(server())
        };
        assert_eq!(of(&[1, 2], &[]), of(&[1, 2], &["{}"]), "what may be lost does not count");
        assert_ne!(of(&[1, 2], &[]), of(&[12], &[]));
        assert_ne!(of(&[], &["{}"]), of(&[], &["{}"]));
    }

    #[test]
    fn the_body_is_json() {
        let mut transaction = Transaction::default();
        transaction.add_event(EventNid(1), "{\"a\":1}".into());
        transaction.add_event(EventNid(2), "{\"a\":2}".into());
        transaction.add_durable_edu('d', Position(3), "{\"edu_type\":\"x\"}".to_owned());
        let body: Value = serde_json::from_slice(&transaction.body(server(), 5)).unwrap();
        assert_eq!(body["pdus"][1]["a"], 2);
        assert_eq!(body["edus"][0]["edu_type"], "x");
        assert_eq!((&body["origin"], &body["origin_server_ts"]), (&"b.example".into(), &5.into()));
    }
}
