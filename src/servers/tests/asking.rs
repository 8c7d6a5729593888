//! Requests to servers whose place is known: what they carry, and what becomes of answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use ruma_common::{OwnedServerName, ServerName};
use serde_json::{Value, json};

use super::kit::{Authority, Other, asking, json as reply, pieces};
use crate::{Ask, Failure, Retries};

const LOCAL: &str = "127.0.0.1";

fn name(host: &str, other: &Other) -> OwnedServerName {
    ServerName::parse(format!("{host}:{}", other.port())).unwrap()
}

#[tokio::test]
async fn a_request_is_signed_and_its_answer_is_read_over_both_versions_of_http() {
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let authority = Authority::new();
        let other = Other::speaking(&authority, &[LOCAL], &[protocol], |request| {
            async move {
                let (head, body) = request.into_parts();
                let header = |name| head.headers.get(name).and_then(|text| text.to_str().ok());
                let told = json!({
                    "host": header("host"),
                    "authorization": header("authorization"),
                    "path": head.uri.path_and_query().map(ToString::to_string),
                    "body": String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()),
                });
                reply(200, &told.to_string())
            }
            .boxed()
        })
        .await;
        let asking = asking(&authority, "");
        let server = name(LOCAL, &other);
        let ask = Ask::put("/_matrix/x%2Fy?z=1").json(Bytes::from_static(b"{\"a\":1}"));
        let told: Value = asking.servers.client.ask_json(&server, ask).await.unwrap();
        assert_eq!(told["host"], server.as_str());
        assert_eq!(told["path"], "/_matrix/x%2Fy?z=1");
        assert_eq!(told["body"], "{\"a\":1}");
        let header = told["authorization"].as_str().unwrap();
        let start = format!("X-Matrix origin=\"here.example\",destination=\"{server}\",key=\"");
        assert!(header.starts_with(&start), "{header}");
    }
}

#[tokio::test]
async fn refusals_and_oddities_are_told_apart() {
    let authority = Authority::new();
    let other = Other::start(&authority, &[LOCAL], |request| {
        async move {
            match request.uri().path() {
                "/no" => reply(403, r#"{"errcode":"M_FORBIDDEN","error":"no","more":1}"#),
                "/broken" => reply(502, "<html>"),
                "/elsewhere" => reply(302, ""),
                "/text" => reply(200, "text"),
                _ => reply(404, "{}"),
            }
        }
        .boxed()
    })
    .await;
    let asking = asking(&authority, "");
    let client = &asking.servers.client;
    let server = name(LOCAL, &other);
    let ask = |path: &str| client.ask_json::<Value>(&server, Ask::get(path));
    match ask("/no").await.unwrap_err() {
        Failure::Refused { status: 403, errcode, error, body } => {
            assert_eq!((errcode.as_str(), error.as_str()), ("M_FORBIDDEN", "no"));
            assert_eq!(body["more"], 1);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(ask("/broken").await, Err(Failure::Refused { status: 502, .. })));
    assert!(matches!(ask("/elsewhere").await, Err(Failure::Odd(_))));
    assert!(matches!(ask("/text").await, Err(Failure::Odd(_))));
}

#[tokio::test]
async fn answers_that_are_too_large_or_never_end_are_given_up() {
    let authority = Authority::new();
    let other = Other::start(&authority, &[LOCAL], |request| {
        async move {
            let piece = Bytes::from_static(&[b' '; 1024]);
            match request.uri().path() {
                "/flood" => pieces(200, futures::stream::repeat(piece)),
                "/large" => pieces(200, futures::stream::iter(vec![piece; 100])),
                "/half" => pieces(200, futures::stream::pending()),
                "/refusal" => pieces(500, futures::stream::repeat(piece)),
                _ => std::future::pending().await,
            }
        }
        .boxed()
    })
    .await;
    let asking = asking(&authority, "");
    let client = &asking.servers.client;
    let server = name(LOCAL, &other);
    let ask = |path: &str| {
        let ask = Ask::get(path).most_bytes(50 << 10).within(Duration::from_secs(2));
        client.ask(&server, ask.retries(Retries::None))
    };
    assert!(matches!(ask("/flood").await, Err(Failure::Odd(_))));
    assert!(matches!(ask("/large").await, Err(Failure::Odd(_))));
    assert!(matches!(ask("/half").await, Err(Failure::Away(_))));
    assert!(matches!(ask("/never").await, Err(Failure::Away(_))));
    assert!(matches!(ask("/refusal").await, Err(Failure::Refused { status: 500, .. })));
}

#[tokio::test]
async fn whoever_is_not_certified_is_not_asked() {
    let authority = Authority::new();
    let ok = |_| async { reply(200, "{}") }.boxed();
    let impostor = Other::start(&Authority::new(), &[LOCAL], ok).await;
    let misnamed = Other::start(&authority, &["localhost"], ok).await;
    let ask = async |other: &Other, keys: &str| {
        let asking = asking(&authority, keys);
        let ask = Ask::get("/").retries(Retries::None);
        asking.servers.client.ask(&name(LOCAL, other), ask).await
    };
    for other in [&impostor, &misnamed] {
        assert!(matches!(ask(other, "").await, Err(Failure::Away(_))));
        for keys in [
            "federation_verify_certificates: false",
            "federation_certificate_verification_whitelist: ['127.*']",
        ] {
            ask(other, keys).await.unwrap();
        }
    }
}

#[tokio::test]
async fn blocked_addresses_and_unlisted_servers_are_never_connected_to() {
    let authority = Authority::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let other = Other::start(&authority, &[LOCAL, "localhost"], move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { reply(200, "{}") }.boxed()
    })
    .await;
    for (host, keys) in [
        (LOCAL, "ip_range_blocklist: [127.0.0.0/8, '::1']"),
        ("localhost", "ip_range_blocklist: [127.0.0.0/8, '::1']"),
        ("[::ffff:127.0.0.1]", "ip_range_blocklist: [127.0.0.0/8]"),
        (LOCAL, "federation_domain_whitelist: [a.example]"),
    ] {
        let asking = asking(&authority, keys);
        let answer = asking.servers.client.ask(&name(host, &other), Ask::get("/")).await;
        assert!(matches!(answer, Err(Failure::Forbidden(_))), "{host} {keys}: {answer:?}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let asking = asking(&authority, "");
    asking.servers.client.ask(&name("localhost", &other), Ask::get("/")).await.unwrap();
}

#[tokio::test]
async fn connections_are_used_again() {
    let authority = Authority::new();
    let other = Other::speaking(&authority, &[LOCAL], &[b"http/1.1"], |_| {
        async { reply(200, "{}") }.boxed()
    })
    .await;
    let asking = asking(&authority, "");
    let server = name(LOCAL, &other);
    for _ in 0..3 {
        asking.servers.client.ask(&server, Ask::get("/")).await.unwrap();
    }
    assert_eq!(other.connections(), 1);
}
