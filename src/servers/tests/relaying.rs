//! Instances that may not speak with other servers, and those that do it for them.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use chatd_base::{CallError, Calls, Error};
use futures::FutureExt;
use ruma_common::ServerName;
use serde_json::{Value, json};
use url::Url;

use super::kit::{Asking, Authority, Other, asking, json as reply};
use crate::{Ask, Failure, Relay};

/// A fleet in which only `sender2` is there.
struct Fleet(Calls);

/// A fleet that loses the answers of `sender1`, and counts what others are asked.
#[derive(Default)]
struct Lossy(AtomicUsize);

impl Relay for Lossy {
    fn call<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Err(CallError::Lost("the connection was cut".to_owned())) })
    }
}

#[tokio::test]
async fn what_may_have_taken_keys_away_is_not_made_again() {
    let authority = Authority::new();
    let worker = asking(&authority, "outbound_federation_restricted_to: [sender1, sender2]");
    let fleet = Arc::new(Lossy::default());
    worker.servers.join(fleet.clone());
    let server = ServerName::parse("there.example").unwrap();
    for (ask, calls) in [(Ask::post("/claim"), 1), (Ask::get("/"), 2), (Ask::put("/"), 2)] {
        let before = fleet.0.load(Ordering::Relaxed);
        let answer = worker.servers.client.ask(&server, ask).await;
        assert!(matches!(answer, Err(Failure::Away(_))), "{answer:?}");
        assert_eq!(fleet.0.load(Ordering::Relaxed) - before, calls);
    }
}

impl Relay for Fleet {
    fn call<'a>(
        &'a self,
        instance: &'a str,
        name: &'a str,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>> {
        Box::pin(async move {
            if instance != "sender2" {
                return Err(CallError::Unsent("it is not there".to_owned()));
            }
            match self.0.answer(name, body).await {
                Ok(answer) => Ok(answer.into()),
                Err(Error::Refused(refusal)) => Err(CallError::Refused(*refusal)),
                Err(Error::Internal(error)) => Err(CallError::Lost(error.to_string())),
            }
        })
    }
}

fn restricted(authority: &Authority, sender: &Asking) -> Asking {
    let calls = Calls::default();
    sender.servers.answer_calls(&calls);
    let worker = asking(
        authority,
        "outbound_federation_restricted_to: [sender1, sender2]\nip_range_blocklist: [127.0.0.0/8]",
    );
    worker.servers.join(Arc::new(Fleet(calls)));
    worker
}

#[tokio::test]
async fn requests_and_refusals_come_through_another_instance() {
    let authority = Authority::new();
    let other = Other::start(&authority, &["127.0.0.1"], |request| {
        async move {
            match request.uri().path() {
                "/no" => reply(403, r#"{"errcode":"M_FORBIDDEN","error":"no"}"#),
                path => reply(200, &json!({"path": path}).to_string()),
            }
        }
        .boxed()
    })
    .await;
    let server = ServerName::parse(format!("127.0.0.1:{}", other.port())).unwrap();
    let sender = asking(&authority, "");
    let worker = restricted(&authority, &sender);
    let ask = Ask::put("/yes").json(Bytes::from_static(br#"{"a":"b"}"#));
    let answer: Value = worker.servers.client.ask_json(&server, ask).await.unwrap();
    assert_eq!(answer, json!({"path": "/yes"}));
    let refused = worker.servers.client.ask(&server, Ask::get("/no")).await;
    assert!(matches!(refused, Err(Failure::Refused { status: 403, .. })), "{refused:?}");
}

#[tokio::test]
async fn servers_that_are_no_homeservers_are_asked_through_another_instance() {
    let authority = Authority::new();
    let other = Other::start(&authority, &["127.0.0.1"], |request| {
        async move {
            let shown = request.headers().get("authorization").map(|token| token.to_str().unwrap());
            match (request.uri().path(), shown) {
                ("/no", _) => reply(403, r#"{"errcode":"M_FORBIDDEN","error":"no"}"#),
                (_, shown) => {
                    let method = request.method().as_str();
                    reply(200, &json!({"method": method, "shown": shown}).to_string())
                }
            }
        }
        .boxed()
    })
    .await;
    let url =
        |path: &str| Url::parse(&format!("https://127.0.0.1:{}{path}", other.port())).unwrap();
    let sender = asking(&authority, "");
    let worker = restricted(&authority, &sender);
    let outside = &worker.servers.outside;
    let answer: Value = outside.get(&url("/yes"), Some("t")).await.unwrap();
    assert_eq!(answer, json!({"method": "GET", "shown": "Bearer t"}));
    let answer: Value = outside.post(&url("/yes"), None, &json!({"a": "b"})).await.unwrap();
    assert_eq!(answer, json!({"method": "POST", "shown": null}));
    let refused = outside.get::<Value>(&url("/no"), None).await;
    assert!(matches!(refused, Err(Failure::Refused { status: 403, .. })), "{refused:?}");
    // Nobody learns where a server is that is not talked to.
    let barred = asking(&authority, "ip_range_blocklist: [127.0.0.0/8]");
    let refused =
        restricted(&authority, &barred).servers.outside.get::<Value>(&url("/"), None).await;
    let Err(Failure::Forbidden(why)) = refused else { panic!("{refused:?}") };
    assert_eq!(why, "127.0.0.1 is not talked to");
}

#[tokio::test]
async fn without_the_instances_that_may_nobody_is_asked() {
    let authority = Authority::new();
    let other =
        Other::start(&authority, &["127.0.0.1"], |_| async { reply(200, "{}") }.boxed()).await;
    let server = ServerName::parse(format!("127.0.0.1:{}", other.port())).unwrap();
    let alone = asking(&authority, "outbound_federation_restricted_to: [sender1]");
    let answer = alone.servers.client.ask(&server, Ask::get("/")).await;
    assert!(matches!(answer, Err(Failure::Away(_))), "{answer:?}");
    assert_eq!(other.connections(), 0);
    // In a circle, too.
    let first = restricted(&authority, &alone);
    assert!(first.servers.client.ask(&server, Ask::get("/")).await.is_err());
}
