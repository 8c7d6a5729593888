//! The whole edge over a unix socket: what a client sees when it does things wrong.

mod carry;

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chatd_base::{
    Authenticate, AuthenticateServer, Clock, Refusal, Requester, Result, SignedRequest, Stop,
    UserNid, tasks,
};
use chatd_config::{Config, Overrides, RateLimits, RouterName};
use ruma_common::{OwnedServerName, owned_server_name, user_id};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::Notify,
};

use crate::{Auth, LimitClass, Limits, Metrics, Reply, Request, Routes, Server, Serving, raw};

struct OneUser;

impl Authenticate for OneUser {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        address: Option<std::net::IpAddr>,
        _: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<Requester>>> + Send + 'a>> {
        Box::pin(async move {
            if token != "good" {
                return Err(Refusal::unknown_token("unknown access token").into());
            }
            Ok(Arc::new(Requester {
                user_id: user_id!("@alice:example.org").to_owned(),
                user: UserNid(1),
                device_id: None,
                token: 1,
                is_admin: false,
                is_guest: false,
                address,
            }))
        })
    }
}

/// Believes what a header says.
struct OneServer;

impl AuthenticateServer for OneServer {
    fn authenticate<'a>(
        &'a self,
        request: SignedRequest<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<OwnedServerName>> + Send + 'a>> {
        Box::pin(async move {
            match request.authorization {
                [b"X-Matrix good"] => Ok(owned_server_name!("other.example")),
                _ => Err(Refusal::unauthorized("not signed").into()),
            }
        })
    }
}

/// What the handlers of these tests share.
#[derive(Default)]
struct State {
    slow_began: Notify,
    may_go_on: Notify,
    written: AtomicBool,
    /// The endless answer is not produced any more.
    cut_off: Arc<Notify>,
}

async fn whoami(_: Arc<State>, request: Request) -> Result<Reply> {
    let address = request.address().map(|ip| ip.to_string());
    Reply::json(&serde_json::json!({"user_id": request.who()?.user_id, "address": address}))
}

async fn fails(_: Arc<State>, _: Request) -> Result<Reply> {
    panic!("a handler that panics");
}

async fn takes(_: Arc<State>, request: Request) -> Result<Reply> {
    Reply::json(&request.json::<serde_json::Map<String, serde_json::Value>>()?)
}

async fn slow(state: Arc<State>, _: Request) -> Result<Reply> {
    state.slow_began.notify_one();
    state.may_go_on.notified().await;
    state.written.store(true, Ordering::SeqCst);
    Ok(Reply::empty())
}

async fn chunks(_: Arc<State>, _: Request) -> Result<Reply> {
    let parts = (0..1000).map(|_| Ok(bytes::Bytes::from_static(b"0123456789")));
    Ok(Reply::json_stream(futures::stream::iter(parts)))
}

/// Tells when it is dropped.
struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn endless(state: Arc<State>, _: Request) -> Result<Reply> {
    let told = Told(state.cut_off.clone());
    Ok(Reply::json_stream(futures::stream::repeat_with(move || {
        let _held = &told;
        Ok(bytes::Bytes::from(vec![b'0'; 10_000]))
    })))
}

struct Running {
    folder: tempfile::TempDir,
    state: Arc<State>,
    stop: Stop,
    serving: tokio::task::JoinHandle<()>,
}

async fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let yaml = format!(
        "server_name: example.org\nlisteners:\n  - path: {}/http.sock\n    type: http\n    \
         resources:\n      - names: [client]\n        compress: true\nchatd:\n  max_request_body: 1K\n  \
         expose_request_cost: true\n  response_write_timeout: 300ms\n",
        folder.path().display()
    );
    let config = Config::from_texts(&[("test.yaml", &yaml)], &Overrides::default()).unwrap();
    let rates = RateLimits {
        room_creation: chatd_config::Rate { per_second: 0.1, burst_count: 1.0 },
        ..RateLimits::default()
    };
    let limits = Arc::new(Limits::new(rates, 100, Clock::system()));
    let (state, stop) = (Arc::new(State::default()), Stop::new());
    let router = Routes::of(RouterName::ClientRooms)
        .get(raw("/_matrix/whoami"), Auth::Token, whoami)
        .get(raw("/_matrix/panic"), Auth::None, fails)
        .post(raw("/_matrix/panic"), Auth::None, fails)
        .post(raw("/_matrix/take"), Auth::None, takes)
        .post(raw("/_matrix/report"), Auth::Token, takes)
        .limit(LimitClass::RoomCreation)
        .put(raw("/_matrix/slow"), Auth::None, slow)
        .get(raw("/_matrix/chunks"), Auth::None, chunks)
        .get(raw("/_matrix/endless"), Auth::None, endless)
        .bind(&state);
    let server = Server::bind(&config).await.unwrap();
    let ended = stop.clone();
    let serving = tasks::spawn("test_server", async move {
        let serving = Serving {
            routers: vec![router],
            mounted: BTreeSet::from([RouterName::ClientRooms]),
            fleet: None,
            calls: Arc::default(),
            users: Arc::new(OneUser),
            servers: Arc::new(OneServer),
            limits,
            metrics: Metrics::detached(),
            detail: Arc::new(|| Reply::json(&serde_json::json!({"instance": "me"}))),
        };
        server.serve(serving, ended).await.unwrap();
    });
    Running { folder, state, stop, serving }
}

impl Running {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("http.sock")).await.unwrap()
    }

    /// Sends `head` (request line and headers) with `body`; returns the whole answer.
    async fn ask(&self, head: &str, body: &str) -> String {
        let mut stream = self.connect().await;
        let length = body.len();
        let text = format!(
            "{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // An answer before the end of the body may reset the connection after the answer.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test]
async fn errors_have_a_code_and_every_answer_has_cors_headers() {
    let server = start().await;
    let big = format!("{{\"a\":\"{}\"}}", "x".repeat(2000));
    let table = [
        ("GET /_matrix/nothing HTTP/1.1", "", "404", "M_UNRECOGNIZED"),
        ("PATCH /_matrix/whoami HTTP/1.1", "", "405", "M_UNRECOGNIZED"),
        ("GET /_matrix/whoami HTTP/1.1", "", "401", "M_MISSING_TOKEN"),
        ("GET /_matrix/whoami?access_token=bad HTTP/1.1", "", "401", "M_UNKNOWN_TOKEN"),
        ("GET /_matrix/whoami?access_token=good HTTP/1.1", "", "200", "@alice:example.org"),
        ("GET /_matrix/panic HTTP/1.1", "", "500", "M_UNKNOWN"),
        ("POST /_matrix/panic HTTP/1.1", "", "500", "M_UNKNOWN"),
        ("POST /_matrix/take HTTP/1.1", "{", "400", "M_NOT_JSON"),
        ("POST /_matrix/take HTTP/1.1", &big, "413", "M_TOO_LARGE"),
        ("POST /_matrix/take HTTP/1.1", "{\"a\":1}", "200", "x-chatd-cost: statements=0; round"),
        ("GET /health HTTP/1.1", "", "200", "OK"),
        ("GET / HTTP/1.1", "", "200", "chatd is running"),
        ("OPTIONS /_matrix/nothing HTTP/1.1", "", "200", "authorization"),
        ("GET /_synapse/metrics HTTP/1.1", "", "404", "M_UNRECOGNIZED"),
    ];
    for (head, body, status, contains) in table {
        let answer = server.ask(head, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
        let lower = answer.to_lowercase();
        assert!(lower.contains(&contains.to_lowercase()), "{head}: {answer}");
        assert!(lower.contains("access-control-allow-origin: *"), "{head}: {answer}");
    }
}

#[tokio::test]
async fn a_rate_limit_is_kept_for_each_user() {
    let server = start().await;
    let head = "POST /_matrix/report HTTP/1.1\r\nAuthorization: Bearer good";
    assert!(server.ask(head, "{}").await.starts_with("HTTP/1.1 200"));
    let answer = server.ask(head, "{}").await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(answer.contains("retry-after: 10") && answer.contains("retry_after_ms"), "{answer}");
}

#[tokio::test]
async fn a_unix_socket_trusts_its_proxy() {
    let server = start().await;
    let head = "GET /_matrix/whoami HTTP/1.1\r\nAuthorization: Bearer good\r\n\
                X-Forwarded-For: 203.0.113.9, 10.0.0.1";
    assert!(server.ask(head, "").await.contains("203.0.113.9"));
}

#[tokio::test]
async fn a_streamed_answer_is_compressed_where_the_client_wants_it() {
    let server = start().await;
    let plain = server.ask("GET /_matrix/chunks HTTP/1.1", "").await;
    let small = server.ask("GET /_matrix/chunks HTTP/1.1\r\nAccept-Encoding: gzip", "").await;
    assert!(small.contains("content-encoding: gzip"));
    assert!(plain.len() > 10_000 && small.len() < 2_000, "{} {}", plain.len(), small.len());
}

#[tokio::test]
async fn a_write_ends_though_its_client_is_gone_and_the_end_waits_for_it() {
    let server = start().await;
    let mut stream = server.connect().await;
    stream.write_all(b"PUT /_matrix/slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    server.state.slow_began.notified().await;
    drop(stream);
    server.stop.trigger();
    server.state.may_go_on.notify_one();
    tokio::time::timeout(Duration::from_secs(4), server.serving).await.unwrap().unwrap();
    assert!(server.state.written.load(Ordering::SeqCst));
}

/// The client keeps the connection open, and takes nothing from it.
#[tokio::test]
async fn an_answer_that_nobody_reads_is_cut_off() {
    let server = start().await;
    for gzip in ["", "Accept-Encoding: gzip\r\n"] {
        let mut stream = server.connect().await;
        let head = format!("GET /_matrix/endless HTTP/1.1\r\nHost: x\r\n{gzip}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let limit = Duration::from_secs(20);
        let cut_off = server.state.cut_off.notified();
        tokio::time::timeout(limit, cut_off).await.expect("it is still produced");
        // What is on the way, and no end of the answer.
        let mut got = Vec::new();
        let reading = tokio::time::timeout(limit, stream.read_to_end(&mut got));
        let _ = reading.await.expect("the connection is open");
        assert!(!got.ends_with(b"0\r\n\r\n") && got.len() < 4_000_000, "{}", got.len());
    }
}
