//! Where a server is found that is only a name: by delegation, by services, by its address; and
//! what must not lead anywhere.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, header};
use ruma_common::ServerName;
use serde_json::{Value, json};

use super::{
    kit::{Asking, Authority, Other, Reply, asking_with, json as reply, pieces},
    names::Names,
};
use crate::{Ask, Failure, Retries};

const LOCAL: &str = "127.0.0.1";
const FED: &str = "_matrix-fed._tcp";
const OLD: &str = "_matrix._tcp";

/// Answers which host was asked for, and under which name.
async fn matrix(authority: &Authority, hosts: &[&str]) -> Other {
    Other::speaking(authority, hosts, &[b"http/1.1"], |request| {
        let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
        async move { reply(200, &json!({"host": host}).to_string()) }.boxed()
    })
    .await
}

/// Serves the document about delegation, and counts how often.
async fn document(
    authority: &Authority,
    hosts: &[&str],
    answer: impl Fn(&str) -> Reply + Clone + Send + Sync + 'static,
) -> (Other, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let other = Other::speaking(authority, hosts, &[b"http/1.1"], move |request| {
        counted.fetch_add(1, Ordering::Relaxed);
        let answer = answer(request.uri().path());
        async move { answer }.boxed()
    })
    .await;
    (other, count)
}

fn redirect(to: &str) -> Reply {
    let mut answer = reply(301, "");
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_str(to).unwrap());
    answer
}

async fn ask(asking: &Asking, server: &str) -> Result<String, Failure> {
    let server = ServerName::parse(server).unwrap();
    let ask = Ask::get("/").retries(Retries::None);
    let told: Value = asking.servers.client.ask_json(&server, ask).await?;
    Ok(told["host"].as_str().unwrap().to_owned())
}

/// Asks by these names; documents are served at `port`.
async fn asking(authority: &Authority, names: Names, port: u16) -> Asking {
    asking_but(authority, names, port, "").await
}

async fn asking_but(authority: &Authority, names: Names, port: u16, keys: &str) -> Asking {
    let dns = names.serve().await;
    asking_with(authority, &format!("chatd: {{dns_servers: ['{dns}']}}\n{keys}"), port)
}

/// A port at which nobody is.
async fn nobody() -> u16 {
    tokio::net::TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn services_tell_where_a_server_is_and_its_certificate_is_for_its_name() {
    let authority = Authority::new();
    let good = matrix(&authority, &["a.example", "old.example"]).await;
    let target = matrix(&authority, &["target.example"]).await;
    let names = Names::default()
        .address("target.example", LOCAL)
        .service(&format!("{FED}.a.example"), 20, "target.example", good.port())
        .service(&format!("{FED}.a.example"), 10, "target.example", nobody().await)
        .service(&format!("{OLD}.a.example"), 0, "target.example", nobody().await)
        .service(&format!("{OLD}.old.example"), 0, "target.example", good.port())
        .service(&format!("{FED}.bad.example"), 0, "target.example", target.port());
    let asking = asking(&authority, names, nobody().await).await;
    assert_eq!(ask(&asking, "a.example").await.unwrap(), "a.example");
    assert_eq!(ask(&asking, "old.example").await.unwrap(), "old.example");
    // The service's host shows its own certificate, which is not the server's.
    assert!(matches!(ask(&asking, "bad.example").await, Err(Failure::Away(_))));
    assert!(matches!(ask(&asking, "none.example").await, Err(Failure::Away(_))));
}

#[tokio::test]
async fn a_name_with_a_port_is_where_it_says() {
    let authority = Authority::new();
    let other = matrix(&authority, &["a.example"]).await;
    let (documents, count) = document(&authority, &["a.example"], |_| reply(200, "{}")).await;
    let names = Names::default().address("a.example", LOCAL).service(
        &format!("{FED}.a.example"),
        0,
        "a.example",
        nobody().await,
    );
    let asking = asking(&authority, names, documents.port()).await;
    let server = format!("a.example:{}", other.port());
    assert_eq!(ask(&asking, &server).await.unwrap(), server);
    assert_eq!(count.load(Ordering::Relaxed), 0, "nobody asks to whom it delegates");
}

#[tokio::test]
async fn servers_delegate_to_hosts_in_every_form() {
    let authority = Authority::new();
    let target = matrix(&authority, &["target.example", "named.example", LOCAL]).await;
    let port = target.port();
    let (documents, count) = document(
        &authority,
        &["a.example", "b.example", "c.example", "d.example", "e.example"],
        move |path| match path {
            "/further" => reply(200, &format!(r#"{{"m.server": "target.example:{port}"}}"#)),
            _ => redirect("/further"),
        },
    )
    .await;
    let (plain, _) =
        document(&authority, &["p.example"], |_| reply(200, r#"{"m.server": "named.example"}"#))
            .await;
    let names = Names::default()
        .address("a.example", LOCAL)
        .address("p.example", LOCAL)
        .address("target.example", LOCAL)
        .service(&format!("{FED}.named.example"), 0, "target.example", port);
    let one = asking(&authority, names.clone(), documents.port()).await;
    let (first, second) = tokio::join!(ask(&one, "a.example"), ask(&one, "a.example"));
    assert_eq!(first.unwrap(), format!("target.example:{port}"));
    assert_eq!(second.unwrap(), format!("target.example:{port}"));
    assert_eq!(count.load(Ordering::Relaxed), 2, "the document and where it has moved, once");
    let other = asking(&authority, names, plain.port()).await;
    assert_eq!(ask(&other, "p.example").await.unwrap(), "named.example");
}

#[tokio::test]
async fn documents_that_mean_nothing_delegate_to_nobody() {
    let authority = Authority::new();
    let own = matrix(&authority, &["a.example"]).await;
    let names = Names::default().address("a.example", LOCAL).service(
        &format!("{FED}.a.example"),
        0,
        "a.example",
        own.port(),
    );
    let flood = || pieces(200, futures::stream::repeat(Bytes::from_static(&[b' '; 4_096])));
    type Case = (&'static str, fn(&str) -> Reply);
    let cases: [Case; 6] = [
        ("no JSON", |_| reply(200, "<html>")),
        ("no name", |_| reply(200, r#"{"m.server": "a b"}"#)),
        ("not there", |_| reply(404, "{}")),
        ("a circle", |path| redirect(if path == "/x" { "/y" } else { "/x" })),
        ("a spiral", |path| redirect(&format!("{path}x"))),
        ("without TLS", |_| redirect("http://127.0.0.1/")),
    ];
    for (what, answer) in cases {
        let (documents, count) = document(&authority, &["a.example"], answer).await;
        let asking = asking(&authority, names.clone(), documents.port()).await;
        assert_eq!(ask(&asking, "a.example").await.unwrap(), "a.example", "{what}");
        ask(&asking, "a.example").await.unwrap();
        assert!(count.load(Ordering::Relaxed) <= 11, "{what}");
    }
    let (documents, count) = document(&authority, &["a.example"], move |_| flood()).await;
    let asking = asking(&authority, names, documents.port()).await;
    assert_eq!(ask(&asking, "a.example").await.unwrap(), "a.example");
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn no_name_service_or_document_leads_to_a_blocked_address() {
    let authority = Authority::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let inside = Other::start(&authority, &["in.example", "a.example", "s.example"], move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { reply(200, "{}") }.boxed()
    })
    .await;
    let port = inside.port();
    let (documents, _) =
        document(&authority, &["d.example", "r.example"], move |path| match path {
            "/.well-known/matrix/server" => redirect(&format!("https://127.0.0.9:{port}/x")),
            _ => reply(404, ""),
        })
        .await;
    let (delegating, _) = document(&authority, &["d.example"], move |_| {
        reply(200, &format!(r#"{{"m.server": "127.0.0.9:{port}"}}"#))
    })
    .await;
    let names = Names::default()
        .address("a.example", "127.0.0.9")
        .address("in.example", "127.0.0.9")
        .address("d.example", LOCAL)
        .address("r.example", LOCAL)
        .service(&format!("{FED}.s.example"), 0, "in.example", port);
    let blocked = "ip_range_blocklist: [127.0.0.9, '::1']";
    let one = asking_but(&authority, names.clone(), documents.port(), blocked).await;
    for server in [&format!("a.example:{port}"), "s.example"] {
        let answer = ask(&one, server).await;
        assert!(matches!(answer, Err(Failure::Forbidden(_))), "{server}: {answer:?}");
    }
    assert!(ask(&one, "r.example").await.is_err());
    let other = asking_but(&authority, names, delegating.port(), blocked).await;
    assert!(matches!(ask(&other, "d.example").await, Err(Failure::Forbidden(_))));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}
