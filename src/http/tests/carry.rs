//! Two instances on unix sockets: what a client of one gets of the other.

use std::{
    collections::BTreeSet,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use chatd_base::{CallError, Calls, Clock, Refusal, Result, Stop, request_id, tasks};
use chatd_config::{Config, InstanceAddress, Overrides, RateLimits, RouterName, Secret};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::{OneServer, OneUser};
use crate::{
    Auth, Caller, Fleet, Home, Limits, Metrics, NOT_OWNER, Placement, Reply, Request, Routes,
    Server, Serving, raw,
};

/// Everything belongs to `b` until it is asked for a second time, then to `a`.
struct Moves {
    to_a: AtomicBool,
    is_a: bool,
}

impl Placement for Moves {
    fn place<'a>(
        &'a self,
        _: RouterName,
        _: Home,
        _: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<String>>> + Send + 'a>> {
        let there = self.to_a.load(Ordering::SeqCst) != self.is_a;
        let other = if self.is_a { "b" } else { "a" };
        Box::pin(async move { Ok(there.then(|| other.to_owned())) })
    }

    fn level(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {})
    }

    fn address(&self, _: &str) -> Option<InstanceAddress> {
        None
    }

    fn doubt<'a>(&'a self, _: Option<&'a str>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        self.to_a.store(true, Ordering::SeqCst);
        Box::pin(async {})
    }
}

/// What one instance's handlers know.
struct Instance {
    name: &'static str,
    owns: bool,
    asked: AtomicU32,
    /// Of the requests that came.
    keys: Mutex<Vec<Option<u128>>>,
}

async fn tells(app: Arc<Instance>, request: Request) -> Result<Reply> {
    app.keys.lock().push(request.key());
    app.asked.fetch_add(1, Ordering::SeqCst);
    if !app.owns {
        return Err(Refusal::new(NOT_OWNER.0, NOT_OWNER.1, "not mine").into());
    }
    Reply::json(&serde_json::json!({
        "at": app.name,
        "user": request.who()?.user_id,
        "client": request.address(),
        "query": request.uri().query(),
        "body": String::from_utf8_lossy(request.body()),
    }))
}

async fn tells_server(_: Arc<Instance>, request: Request) -> Result<Reply> {
    Reply::json(&serde_json::json!({ "origin": request.origin()? }))
}

async fn start(
    folder: &Path,
    name: &'static str,
    secret: &str,
    owns: bool,
) -> (Arc<Instance>, Caller) {
    let yaml = format!(
        "server_name: example.org\nlisteners:\n  - path: {0}/{name}.sock\n    type: http\n    \
         x_forwarded: true\n    resources:\n      - names: [client]\n  - path: {0}/{name}.rpc\n    \
         type: http\n    resources:\n      - names: [replication]\n",
        folder.display()
    );
    let config = Config::from_texts(&[("test.yaml", &yaml)], &Overrides::default()).unwrap();
    let instances = ["a", "b"].map(|other| {
        let path = Some(folder.join(format!("{other}.rpc")));
        (other.to_owned(), InstanceAddress { path, ..InstanceAddress::default() })
    });
    let app = Arc::new(Instance { name, owns, asked: AtomicU32::new(0), keys: Mutex::default() });
    let moves = Moves { to_a: AtomicBool::new(false), is_a: name == "a" };
    let stop = Stop::new();
    let secret = Some(Secret::new(secret));
    let fleet = Fleet::new(Arc::new(moves), &instances.into(), secret, stop.clone()).unwrap();
    let caller = fleet.caller();
    let calls = Arc::new(Calls::default());
    let called = app.clone();
    calls.on("tell", move |body| answer(called.clone(), body));
    let serving = Serving {
        routers: vec![
            Routes::of(RouterName::ClientRooms)
                .put(raw("/_matrix/tell"), Auth::Token, tells)
                .home(Home::AnyRoomOwner)
                .post(raw("/_matrix/tell"), Auth::Token, tells)
                .home(Home::AnyRoomOwner)
                .post(raw("/_matrix/tell_once"), Auth::Token, tells)
                .home(Home::AnyRoomOwner)
                .once()
                .put(raw("/_matrix/tell_server"), Auth::Server, tells_server)
                .home(Home::AnyRoomOwner)
                .bind(&app),
        ],
        mounted: BTreeSet::from([RouterName::ClientRooms]),
        fleet: Some(fleet),
        calls,
        users: Arc::new(OneUser),
        servers: Arc::new(OneServer),
        limits: Arc::new(Limits::new(RateLimits::default(), 100, Clock::system())),
        metrics: Metrics::detached(),
        detail: Arc::new(|| Reply::json(&serde_json::json!({"instance": "me"}))),
    };
    let server = Server::bind(&config).await.unwrap();
    let ended = stop.clone();
    tasks::spawn("test_server", async move { server.serve(serving, ended).await.unwrap() });
    (app, caller)
}

/// What is answered to a call.
async fn answer(app: Arc<Instance>, body: Bytes) -> Result<Vec<u8>> {
    app.asked.fetch_add(1, Ordering::SeqCst);
    let id = request_id::current();
    match &*body {
        b"\"refuse\"" => Err(Refusal::forbidden("never").with("why", "so").into()),
        _ => Ok(format!("{{\"id\":{id:?},\"body\":{}}}", String::from_utf8_lossy(&body)).into()),
    }
}

async fn ask(socket: &Path, head: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let text = format!("{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const TELL: &str = "PUT /_matrix/tell?x=%2F HTTP/1.1\r\nX-Forwarded-For: 203.0.113.7\r\nAuthorization: Bearer good";

#[tokio::test]
async fn a_request_is_answered_where_it_belongs() {
    let folder = tempfile::tempdir().unwrap();
    let (a, _) = start(folder.path(), "a", "secret", true).await;
    let (b, _) = start(folder.path(), "b", "secret", true).await;
    let answer = ask(&folder.path().join("a.sock"), TELL).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for part in ["\"at\":\"b\"", "@alice", "203.0.113.7", "x=%2F", "\"body\":\"{}\""] {
        assert!(answer.contains(part), "{part} is not in {answer}");
    }
    assert_eq!((a.asked.load(Ordering::SeqCst), b.asked.load(Ordering::SeqCst)), (0, 1));
}

#[tokio::test]
async fn the_server_that_has_signed_a_request_goes_along_with_it() {
    let folder = tempfile::tempdir().unwrap();
    start(folder.path(), "a", "secret", true).await;
    start(folder.path(), "b", "secret", true).await;
    let request = "PUT /_matrix/tell_server HTTP/1.1\r\nX-Chatd-Origin: me.example";
    let signed = format!("{request}\r\nAuthorization: X-Matrix good");
    let answer = ask(&folder.path().join("a.sock"), &signed).await;
    assert!(answer.contains("\"origin\":\"other.example\""), "{answer}");
    for unsigned in [request.to_owned(), format!("{request}\r\nAuthorization: X-Matrix bad")] {
        let answer = ask(&folder.path().join("a.sock"), &unsigned).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(answer.contains("M_UNAUTHORIZED"), "{answer}");
    }
}

#[tokio::test]
async fn a_request_follows_a_shard_that_has_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (a, _) = start(folder.path(), "a", "secret", true).await;
    let (b, _) = start(folder.path(), "b", "secret", false).await;
    let answer = ask(&folder.path().join("a.sock"), TELL).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"at\":\"a\""), "{answer}");
    assert_eq!((a.asked.load(Ordering::SeqCst), b.asked.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn an_instance_that_is_away_is_passed_by() {
    let folder = tempfile::tempdir().unwrap();
    let (a, _) = start(folder.path(), "a", "secret", true).await;
    let answer = ask(&folder.path().join("a.sock"), TELL).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(a.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn strangers_cannot_carry() {
    let folder = tempfile::tempdir().unwrap();
    let (b, _) = start(folder.path(), "b", "secret", true).await;
    let rpc = folder.path().join("b.rpc");
    for head in [
        "PUT /_synapse/replication/carry/_matrix/tell HTTP/1.1",
        "PUT /_synapse/replication/carry/_matrix/tell HTTP/1.1\r\nAuthorization: Bearer secre",
        "PUT /_synapse/replication/carry/_matrix/tell HTTP/1.1\r\nAuthorization: Bearer good",
    ] {
        let answer = ask(&rpc, head).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    // On a listener for clients there is no such thing.
    let head =
        "PUT /_synapse/replication/carry/_matrix/tell HTTP/1.1\r\nAuthorization: Bearer secret";
    let answer = ask(&folder.path().join("b.sock"), head).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert_eq!(b.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_instance_answers_calls() {
    let folder = tempfile::tempdir().unwrap();
    let (_, a) = start(folder.path(), "a", "secret", true).await;
    let (b, _) = start(folder.path(), "b", "secret", true).await;
    let call = request_id::scope("PUT-7".into(), a.call("b", "tell", Bytes::from_static(b"[1]")));
    assert_eq!(call.await.unwrap(), "{\"id\":Some(\"PUT-7\"),\"body\":[1]}");
    match a.call("b", "tell", Bytes::from_static(b"\"refuse\"")).await {
        Err(CallError::Refused(refusal)) => {
            assert_eq!(refusal, Refusal::forbidden("never").with("why", "so"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(b.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn calls_that_nobody_answers_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (_, a) = start(folder.path(), "a", "secret", true).await;
    let (_, _) = start(folder.path(), "b", "secret", true).await;
    for (instance, name) in [("b", "sing"), ("away", "tell"), ("nobody", "tell")] {
        let answer = a.call(instance, name, Bytes::from_static(b"1")).await;
        assert!(matches!(answer, Err(CallError::Unsent(_))), "{instance} {name}: {answer:?}");
    }
}

#[tokio::test]
async fn strangers_cannot_call() {
    let folder = tempfile::tempdir().unwrap();
    let (b, _) = start(folder.path(), "b", "secret", true).await;
    let path = "POST /_synapse/replication/call/tell HTTP/1.1";
    for token in ["", "\r\nAuthorization: Bearer secre", "\r\nAuthorization: Bearer good"] {
        let answer = ask(&folder.path().join("b.rpc"), &format!("{path}{token}")).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    let head = format!("{path}\r\nAuthorization: Bearer secret");
    let answer = ask(&folder.path().join("b.sock"), &head).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert_eq!(b.asked.load(Ordering::SeqCst), 0);
}

/// Comes between `b` and the others, and breaks the first connection when `b` has worked.
fn cut(folder: &Path, b: &Arc<Instance>) {
    let (door, real) = (folder.join("b.rpc"), folder.join("b.real"));
    std::fs::rename(&door, &real).unwrap();
    let listener = UnixListener::bind(door).unwrap();
    let b = b.clone();
    tasks::spawn("test_cut", async move {
        let mut was_cut = false;
        while let Ok((near, _)) = listener.accept().await {
            let (mut near_in, mut near_out) = near.into_split();
            let (mut far_in, mut far_out) = UnixStream::connect(&real).await.unwrap().into_split();
            let there = tokio::io::copy(&mut near_in, &mut far_out);
            let back = async {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = far_in.read(&mut buffer).await {
                    if !was_cut && b.asked.load(Ordering::SeqCst) > 0 {
                        was_cut = true;
                        return;
                    }
                    near_out.write_all(&buffer[..read]).await.unwrap();
                }
            };
            tokio::select! {
                _ = there => {}
                () = back => {}
            }
        }
    });
}

const TELL_POST: &str = "POST /_matrix/tell HTTP/1.1\r\nAuthorization: Bearer good";

#[tokio::test]
async fn a_request_whose_answer_is_lost_is_made_again_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let (a, _) = start(folder.path(), "a", "secret", true).await;
    let (b, _) = start(folder.path(), "b", "secret", true).await;
    cut(folder.path(), &b);
    let answer = ask(&folder.path().join("a.sock"), TELL_POST).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"at\":\"a\""), "{answer}");
    let (at_a, at_b) = (a.keys.lock().clone(), b.keys.lock().clone());
    assert_eq!(at_a, at_b);
    assert!(at_a.len() == 1 && at_a[0].is_some(), "{at_a:?}");
}

#[tokio::test]
async fn what_cannot_be_told_twice_is_asked_once() {
    let folder = tempfile::tempdir().unwrap();
    let (a, _) = start(folder.path(), "a", "secret", true).await;
    let (b, _) = start(folder.path(), "b", "secret", true).await;
    cut(folder.path(), &b);
    let head = TELL_POST.replace("/tell ", "/tell_once ");
    let answer = ask(&folder.path().join("a.sock"), &head).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!((a.keys.lock().len(), b.keys.lock().len()), (0, 1));
}

#[tokio::test]
async fn clients_have_no_keys() {
    let folder = tempfile::tempdir().unwrap();
    let (b, _) = start(folder.path(), "b", "secret", true).await;
    let head = format!("{TELL_POST}\r\nX-Chatd-Key: 7");
    let answer = ask(&folder.path().join("b.sock"), &head).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_ne!(*b.keys.lock(), [Some(7)]);
}
