//! Through a proxy: who is asked by it, what it is told, and what is judged here all the same.

use chatd_kit::ForwardProxy;
use futures::FutureExt;
use http::header;
use ruma_common::ServerName;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{
    kit::{Asking, Authority, Other, asking, asking_with, json as reply},
    names::Names,
};
use crate::{Ask, Failure, Retries};

const LOCAL: &str = "127.0.0.1";

/// Answers which host was asked for.
async fn matrix(authority: &Authority, hosts: &[&str]) -> Other {
    Other::start(authority, hosts, |request| {
        let host = request.uri().authority().map(ToString::to_string);
        let header = request.headers().get(header::HOST);
        let header = header.map(|host| host.to_str().unwrap().to_owned());
        let told = json!({"host": host.or(header)});
        async move { reply(200, &told.to_string()) }.boxed()
    })
    .await
}

async fn ask(asking: &Asking, server: &str) -> Result<String, Failure> {
    let server = ServerName::parse(server).unwrap();
    let ask = Ask::get("/").retries(Retries::None).anyway();
    let told: Value = asking.servers.client.ask_json(&server, ask).await?;
    Ok(told["host"].as_str().unwrap().to_owned())
}

fn away(failure: Failure) -> String {
    match failure {
        Failure::Away(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn names_are_left_to_the_proxy_and_certificates_are_checked() {
    let authority = Authority::new();
    let far = matrix(&authority, &["far.example", "delegated.example"]).await;
    let dns = Names::default().service("_matrix-fed._tcp.srv.example", 1, "far.example", 4).serve();
    let dns = dns.await;
    let document = Other::start(&authority, &["delegating.example"], |_| {
        async { reply(200, r#"{"m.server":"delegated.example:5"}"#) }.boxed()
    })
    .await;
    for certificate in [None, Some(authority.acceptor(&[LOCAL], &[b"h2", b"http/1.1"]))] {
        let proxy = ForwardProxy::start(certificate).await;
        for place in ["far.example:8448", "far.example:4", "delegated.example:5", "thief.example:1"]
        {
            proxy.leads(place, far.port());
        }
        proxy.leads("delegating.example:1234", document.port());
        // The blocklist is the default one: the proxy may stand at a private address.
        let keys = format!(
            "https_proxy: '{}'\nip_range_blocklist: [127.0.0.0/8]\n\
             chatd: {{dns_servers: ['{dns}']}}",
            proxy.url()
        );
        let asking = asking_with(&authority, &keys, 1234);
        assert_eq!(ask(&asking, "far.example").await.unwrap(), "far.example");
        assert_eq!(ask(&asking, "delegating.example").await.unwrap(), "delegated.example:5");
        let why = away(ask(&asking, "srv.example").await.unwrap_err());
        assert!(why.contains("certificate"), "{why}");
        away(ask(&asking, "thief.example:1").await.unwrap_err());
        assert_eq!(
            proxy.asked(),
            [
                "far.example:1234",
                "far.example:8448",
                "delegating.example:1234",
                "delegated.example:5",
                "srv.example:1234",
                "far.example:4",
                "thief.example:1"
            ]
        );
    }
}

#[tokio::test]
async fn addresses_are_judged_before_the_proxy_hears_of_them() {
    let authority = Authority::new();
    let far = matrix(&authority, &[LOCAL, "near.example"]).await;
    let proxy = ForwardProxy::start(None).await;
    let near = format!("near.example:{}", far.port());
    let dns = Names::default().address("near.example", LOCAL).serve().await;
    let keys = format!("https_proxy: '{}'\nchatd: {{dns_servers: ['{dns}']}}", proxy.url());
    let blocked = "ip_range_blocklist: [127.0.0.0/8, '::1']";
    let direct = "no_proxy_hosts: [near.example, 127.0.0.0/30]";

    let strict = asking(&authority, &format!("{keys}\n{blocked}"));
    for barred in [format!("{LOCAL}:{}", far.port()), "[::1]:2".to_owned()] {
        assert!(matches!(ask(&strict, &barred).await, Err(Failure::Forbidden(_))), "{barred}");
    }
    let strict = asking(&authority, &format!("{keys}\n{blocked}\n{direct}"));
    assert!(matches!(ask(&strict, &near).await, Err(Failure::Forbidden(_))));
    assert!(proxy.asked().is_empty());

    let local = format!("{LOCAL}:{}", far.port());
    let past = asking(&authority, &format!("{keys}\n{direct}"));
    assert_eq!(ask(&past, &near).await.unwrap(), near);
    assert_eq!(ask(&past, &local).await.unwrap(), local);
    assert!(proxy.asked().is_empty());
    let through = asking(&authority, &keys);
    assert_eq!(ask(&through, &local).await.unwrap(), local);
    assert_eq!(proxy.asked(), [local]);
}

#[tokio::test]
async fn a_proxy_that_will_not_or_cannot_is_a_server_that_is_away() {
    let authority = Authority::new();
    let proxy = ForwardProxy::start(None).await;
    let with = |url: &str| asking(&authority, &format!("https_proxy: '{url}'"));
    for (url, server, reason) in [
        (proxy.place(), "127.0.0.1:1", "407"),
        (proxy.url(), "127.0.0.1:1", "502"),
        (format!("https://{}", proxy.place()), "127.0.0.1:1", ""),
        ("127.0.0.1:1".to_owned(), "127.0.0.1:1", "refused"),
    ] {
        let why = away(ask(&with(&url), server).await.unwrap_err());
        assert!(why.contains("by the proxy 127.0.0.1") && why.contains(reason), "{why}");
        assert!(!why.contains("secret"), "{why}");
    }
    assert_eq!(proxy.strangers(), 1);
    for (said, reason) in [
        ("SSH-2.0-OpenSSH\r\n\r\n".to_owned(), "does not speak HTTP"),
        ("HTTP/1.1 200 OK\r\n".to_owned(), "hung up"),
        (format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(1 << 20)), "come to an end"),
    ] {
        let odd = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let url = odd.local_addr().unwrap().to_string();
        chatd_base::tasks::spawn("odd proxy", async move {
            while let Ok((mut stream, _)) = odd.accept().await {
                let _asked = stream.read(&mut [0; 4096]).await;
                let _gone = stream.write_all(said.as_bytes()).await;
            }
        });
        let why = away(ask(&with(&url), "127.0.0.1:1").await.unwrap_err());
        assert!(why.contains(reason), "{why}");
    }
}
