//! Messages to devices come once, whatever happens to those between.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chatd_kit::{
    Database, Fleet, Other, Request, Server, Settings, Spread, User, eventually, say, spawn,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::{BINARY, LIMIT, at, fleet, insist, users};
use crate::faults::{bus::BadBus, plan};

/// Of each sender to each receiver.
const MESSAGES: u64 = 500;
const SENDERS: u64 = 4;

/// One message to each of `to`.
fn to_all(from: &User, to: &[User], txn: &str, content: &Value) -> Request {
    let messages: BTreeMap<_, _> =
        to.iter().map(|user| (&user.id, json!({&user.device: content}))).collect();
    from.put(format!("/sendToDevice/m.test/{txn}"), &json!({"messages": messages}))
}

/// A device that takes what comes; some answers get lost.
struct Receiver {
    user: User,
    since: Option<String>,
    /// Numbers by senders, as they came.
    seen: BTreeMap<u64, Vec<u64>>,
    /// Messages that all receivers have.
    received: Arc<AtomicU64>,
}

impl Receiver {
    fn count(&self) -> u64 {
        self.seen.values().map(|numbers| numbers.len() as u64).sum()
    }

    async fn step(&mut self, is_lost: bool) {
        let request = || {
            let request = self.user.get("/sync").query("timeout", 500);
            match &self.since {
                Some(since) => request.query("since", since),
                None => request,
            }
        };
        let answer = insist(request).await;
        if is_lost {
            return;
        }
        for event in answer.ok()["to_device"]["events"].as_array().into_iter().flatten() {
            let number = |name: &str| event["content"][name].as_u64().unwrap();
            let seen = self.seen.entry(number("sender")).or_default();
            assert_eq!(number("number"), seen.len() as u64, "after {:?}: {answer}", self.since);
            seen.push(number("number"));
            self.received.fetch_add(1, Ordering::Relaxed);
        }
        self.since = Some(answer.string("next_batch"));
    }

    /// Until everything has come, and nothing comes any more.
    async fn run(mut self, seed: u64, is_over: Arc<AtomicBool>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        while !is_over.load(Ordering::Relaxed) {
            self.step(random.random_range(0..8) == 0).await;
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.count() < SENDERS * MESSAGES {
            assert!(Instant::now() < deadline, "{} has {}", self.user.id, self.count());
            self.step(false).await;
        }
        self.step(false).await;
        self
    }
}

/// Sends numbered messages, one after the other.
async fn send(from: User, to: Vec<User>, sender: u64) {
    for number in 0..MESSAGES {
        let (txn, content) =
            (format!("{sender}-{number}"), json!({"sender": sender, "number": number}));
        insist(|| to_all(&from, &to, &txn, &content)).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_comes_once_while_the_bus_is_bad_and_readers_are_killed() {
    let (_, mut random) = plan();
    let mut bus = BadBus::new();
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let mut fleet =
        Fleet::start(Path::new(BINARY), &bus.settings(), &database.config(), Spread::Generated)
            .await
            .unwrap();
    bus.start(&mut fleet, random.random());
    let [alice, receivers @ ..] =
        users(&fleet, ["alice", "bob", "carol", "dave", "erin", "frank"]).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for user in &receivers {
        let (user, received) = (user.clone(), received.clone());
        let receiver = Receiver { user, since: None, seen: BTreeMap::new(), received };
        readers.push(spawn(receiver.run(random.random(), is_over.clone())));
    }
    let senders: Vec<_> =
        (0..SENDERS).map(|sender| spawn(send(alice.clone(), receivers.to_vec(), sender))).collect();
    let mut killed = 0;
    while !senders.iter().all(chatd_kit::Started::is_finished) {
        let name = ["sync1", "sync2", "stream1"][random.random_range(0..3)];
        let goal = received.load(Ordering::Relaxed) + random.random_range(50..1_000);
        eventually("more messages have come", || async {
            let count = received.load(Ordering::Relaxed);
            let is_enough = count >= goal || senders.iter().all(chatd_kit::Started::is_finished);
            if is_enough { Ok(()) } else { Err(format!("{count}, not {goal}")) }
        })
        .await;
        fleet.instance(name).kill9().unwrap();
        fleet.launch().await.unwrap();
        killed += 1;
    }
    futures::future::join_all(senders).await;
    is_over.store(true, Ordering::Relaxed);
    let all: Vec<u64> = (0..MESSAGES).collect();
    for reader in readers {
        let reader = reader.await;
        for sender in 0..SENDERS {
            assert_eq!(reader.seen[&sender], all, "{} of {sender}", reader.user.id);
        }
    }
    let count = SENDERS * MESSAGES * receivers.len() as u64;
    say(format!("{count} messages came once while instances were killed {killed} times"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_is_lost_while_their_writer_is_away() {
    let (mut fleet, _database) = fleet(&Settings::new()).await;
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    let mut feed = bob.feed().await;
    fleet.instance("stream1").kill9().unwrap();
    let far = alice.at(&at(fleet.folder(), "sync2"));
    let send = |number: u64| {
        far.to_device("m.test", &number.to_string(), &bob, &json!({"number": number}))
    };
    let began = Instant::now();
    let answers = futures::future::join_all((0..20).map(|number| send(number).into_future())).await;
    for answer in &answers {
        // The client knows that it has to come again.
        answer.refused(503, "M_UNKNOWN");
    }
    say(format!("refused after {:?}", began.elapsed()));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    fleet.launch().await.unwrap();
    for number in 0..20 {
        insist(|| send(number)).await.ok();
    }
    let mut seen = Vec::new();
    feed.until("all of them", |synced| {
        seen.extend(synced.to_device().iter().map(|one| one["content"]["number"].as_u64()));
        (seen.len() >= 20).then_some(())
    })
    .await;
    assert!(feed.now().await.to_device().is_empty());
    assert_eq!(seen, (0..20).map(Some).collect::<Vec<_>>());
}

/// A server whose messages cannot be kept at the moment is to come again with them.
#[tokio::test]
async fn those_of_other_servers_wait_there_while_their_writer_is_away() {
    let mut server = Server::fleet(BINARY, Settings::federating(), Spread::Random).await;
    let other = Other::start().await;
    let (alice, peer) = (server.user("alice").await, server.peer());
    let mut feed = alice.feed().await;
    let message = json!({
        "edu_type": "m.direct_to_device",
        "content": {
            "sender": other.user("bob"), "type": "m.test", "message_id": "m1",
            "messages": { &alice.id: { "*": {"number": 1} } },
        },
    });
    let edus = [message];
    server.members().instance("stream1").kill9().unwrap();
    let answer = other.send_as(&peer, "only", &[], &edus).await;
    assert!(answer.status >= 500, "{answer}");
    server.members().launch().await.unwrap();
    let deadline = Instant::now() + LIMIT;
    while other.send_as(&peer, "only", &[], &edus).await.status >= 500 {
        assert!(Instant::now() < deadline, "the messages are never taken");
    }
    let mut seen = 0;
    feed.until("the message", |synced| {
        seen += synced.to_device().len();
        (seen > 0).then_some(())
    })
    .await;
    assert_eq!(seen + feed.now().await.to_device().len(), 1);
}
