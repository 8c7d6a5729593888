//! Users who write all the time, repeat what was not acknowledged, and note what was.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chatd_kit::{Answer, Request, Started, User, http::Http, path, spawn};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::sync::Notify;

use super::device::Device;

/// Users who are in every room from the start to the end.
const MEMBERS: [&str; 3] = ["alice", "bob", "carol"];
const ROOMS: usize = 3;
/// Longest time that a request may fail in a row.
const LIMIT: Duration = Duration::from_secs(90);
/// Pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(15);

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Room and body → event id.
    pub sent: BTreeMap<(String, String), String>,
    /// Receiving user → numbers of messages.
    pub to_device: BTreeMap<String, BTreeSet<u64>>,
    /// User → last value.
    pub account_data: BTreeMap<String, u64>,
    /// User and room → last event that was marked as read.
    pub receipts: BTreeMap<(String, String), String>,
    /// Room → whether the user who comes and goes is in it.
    pub wanderer: BTreeMap<String, bool>,
    /// Room → last topic.
    pub topics: BTreeMap<String, String>,
    /// What must not have happened.
    pub complaints: Vec<String>,
}

/// What a server may answer under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// It may say that it cannot at the moment, and be away.
    MayBeAway,
    /// The same, and a proxy before it may say so.
    BehindProxy,
    /// Every request succeeds.
    Flawless,
}

/// A server under load, and what its users know.
#[derive(Debug)]
pub struct World {
    pub members: Vec<User>,
    pub wanderer: User,
    pub rooms: Vec<String>,
    pub ledger: Mutex<Ledger>,
    /// Told of each entry of the ledger.
    noted: Notify,
    /// What the server may answer while the load goes on.
    manners: Manners,
    seed: u64,
    random: Mutex<StdRng>,
    is_over: AtomicBool,
}

/// The running load.
pub struct Load {
    world: Arc<World>,
    writers: Vec<Started<()>>,
    devices: Vec<Started<Device>>,
}

impl World {
    /// Makes the users and their rooms.
    pub async fn make(url: &str, seed: u64, manners: Manners) -> Arc<Self> {
        let http = Http::new(url.to_owned());
        let mut members = Vec::new();
        for name in MEMBERS {
            members.push(User::register(&http, name).await);
        }
        let wanderer = User::register(&http, "wanderer").await;
        let mut rooms = Vec::new();
        for _ in 0..ROOMS {
            let room = members[0].public_room().await;
            for member in &members[1..] {
                member.join(&room).await.ok();
            }
            rooms.push(room);
        }
        let (ledger, noted, is_over) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        Arc::new(Self { members, wanderer, rooms, ledger, noted, manners, seed, random, is_over })
    }

    pub fn alice(&self) -> &User {
        &self.members[0]
    }

    /// Whether the writers are to end.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// How long a client waits that does not wait for its answer.
    fn impatience(&self) -> Option<Duration> {
        let mut random = self.random.lock().unwrap();
        let is_impatient = random.random_range(0..10) == 0;
        is_impatient.then(|| Duration::from_micros(random.random_range(100..8_000)))
    }

    /// Notes something; no lock is held afterwards.
    pub fn note(&self, change: impl FnOnce(&mut Ledger)) {
        change(&mut self.ledger.lock().unwrap());
        self.noted.notify_waiters();
    }

    /// Waits until `count` more messages have been acknowledged.
    pub async fn until_sent(&self, count: usize) {
        let sent = || self.ledger.lock().unwrap().sent.len();
        let goal = sent() + count;
        loop {
            let noted = self.noted.notified();
            if sent() >= goal {
                return;
            }
            tokio::time::timeout(LIMIT, noted).await.expect("nothing is acknowledged any more");
        }
    }

    /// Repeats a request until the server answers something else than that it cannot now.
    pub async fn until_answered(&self, make: impl Fn() -> Request) -> Answer {
        let deadline = Instant::now() + LIMIT;
        // What it was told, and how often.
        let mut failures: BTreeMap<String, u32> = BTreeMap::new();
        loop {
            if let Some(patience) = self.impatience() {
                // A client that goes away in the middle of its request, and then repeats it.
                let _ = tokio::time::timeout(patience, make().unchecked().send()).await;
            }
            let started = Instant::now();
            let outcome = make().unchecked().send().await;
            let failure = match &outcome {
                Ok(answer) => answer.to_string(),
                Err(error) => format!("{error:?}"),
            };
            match outcome {
                Ok(answer) if answer.status < 500 => return answer,
                // Of the proxy: an instance that it had chosen is gone.
                Ok(answer)
                    if matches!(answer.status, 502 | 504)
                        && self.manners == Manners::BehindProxy => {}
                Ok(answer) if answer.status == 503 && self.manners != Manners::Flawless => {
                    if started.elapsed() > Duration::from_secs(25) {
                        let text = format!("slow: {:?} {answer}", started.elapsed());
                        self.note(|ledger| ledger.complaints.push(text));
                    }
                }
                Ok(answer) => self.note(|ledger| ledger.complaints.push(answer.to_string())),
                Err(error) if self.manners == Manners::Flawless => {
                    self.note(|ledger| ledger.complaints.push(format!("{error:?}")));
                }
                // Nobody listens, or the connection broke.
                Err(_) => {}
            }
            *failures.entry(failure).or_default() += 1;
            assert!(Instant::now() < deadline, "a request has failed for {LIMIT:?}: {failures:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Starts users who write and devices that sync.
    pub fn start(self: &Arc<Self>) -> Load {
        let mut writers = Vec::new();
        let mut devices = Vec::new();
        for (number, user) in self.members.iter().enumerate() {
            for room in &self.rooms {
                writers.push(spawn(self.clone().talk(user.clone(), room.clone())));
            }
            let next = self.members[(number + 1) % self.members.len()].clone();
            writers.push(spawn(self.clone().whisper(user.clone(), next)));
            writers.push(spawn(self.clone().keep_notes(user.clone())));
            let random = StdRng::seed_from_u64(self.seed.wrapping_add(number as u64));
            devices.push(spawn(Device::new(user.clone()).run(self.clone(), random)));
        }
        writers.push(spawn(self.clone().wander()));
        writers.push(spawn(self.clone().set_topics()));
        Load { world: self.clone(), writers, devices }
    }

    /// Sends texts; sometimes the same twice, at once or later.
    async fn talk(self: Arc<Self>, user: User, room: String) {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut earlier: Vec<(String, String)> = Vec::new();
        for number in 0.. {
            if self.is_over() {
                break;
            }
            let body = format!("{} {number}", user.name);
            let text = json!({"msgtype": "m.text", "body": body});
            let send = |txn: &str| user.send_event(&room, "m.room.message", txn, &text);
            let txn = format!("{room}{number}");
            let answer = match random.random_range(0..8) {
                0 => {
                    let both =
                        (self.until_answered(|| send(&txn)), self.until_answered(|| send(&txn)));
                    let (one, other) = tokio::join!(both.0, both.1);
                    assert_eq!(one.string("event_id"), other.string("event_id"), "{txn}");
                    one
                }
                _ => self.until_answered(|| send(&txn)).await,
            };
            let event = answer.string("event_id");
            self.note(|ledger| {
                ledger.sent.insert((room.clone(), body.clone()), event.clone());
            });
            earlier.push((txn, event.clone()));
            if random.random_range(0..8) == 0 {
                let (txn, event) = &earlier[random.random_range(0..earlier.len())];
                let again = self.until_answered(|| send(txn)).await;
                assert_eq!(again.string("event_id"), *event, "a repeat of {txn}");
            }
            if random.random_range(0..3) == 0 {
                self.until_answered(|| user.read(&room, &event)).await.ok();
                let key = (user.id.clone(), room.clone());
                self.note(|ledger| {
                    ledger.receipts.insert(key, event);
                });
            }
        }
    }

    /// Sends numbered messages to a device.
    async fn whisper(self: Arc<Self>, from: User, to: User) {
        for number in 0_u64.. {
            if self.is_over() {
                break;
            }
            let (txn, content) = (format!("whisper{number}"), json!({"number": number}));
            let answer =
                self.until_answered(|| from.to_device("m.test", &txn, &to, &content)).await;
            answer.ok();
            self.note(|ledger| {
                ledger.to_device.entry(to.id.clone()).or_default().insert(number);
            });
        }
    }

    /// Counts in account data.
    async fn keep_notes(self: Arc<Self>, user: User) {
        for number in 0_u64.. {
            if self.is_over() {
                break;
            }
            let content = json!({"number": number});
            self.until_answered(|| user.set_account_data("m.test", &content)).await.ok();
            self.note(|ledger| {
                ledger.account_data.insert(user.id.clone(), number);
            });
        }
    }

    /// Comes into rooms, says something, and goes.
    async fn wander(self: Arc<Self>) {
        let user = &self.wanderer;
        for number in 0.. {
            for room in &self.rooms {
                if self.is_over() {
                    return;
                }
                self.until_answered(|| user.join(room)).await.ok();
                self.note(|ledger| {
                    ledger.wanderer.insert(room.clone(), true);
                });
                let body = format!("wanderer {number}");
                let text = json!({"msgtype": "m.text", "body": body});
                let txn = format!("{room}{number}");
                let send = || user.send_event(room, "m.room.message", &txn, &text);
                let event = self.until_answered(send).await.string("event_id");
                self.note(|ledger| {
                    ledger.sent.insert((room.clone(), body), event);
                });
                if number % 3 == 0 {
                    continue;
                }
                self.until_answered(|| user.leave(room)).await.ok();
                self.note(|ledger| {
                    ledger.wanderer.insert(room.clone(), false);
                });
            }
        }
    }

    /// Changes state.
    async fn set_topics(self: Arc<Self>) {
        let user = self.alice();
        for number in 0.. {
            if self.is_over() {
                break;
            }
            let room = &self.rooms[number % self.rooms.len()];
            let topic = format!("topic {number}");
            let url = path("/rooms/{}/state/m.room.topic/", &[room]);
            let content = json!({"topic": topic});
            self.until_answered(|| user.put(url.clone(), &content)).await.ok();
            self.note(|ledger| {
                ledger.topics.insert(room.clone(), topic);
            });
        }
    }
}

impl Load {
    /// Lets everybody finish what they are at, and the devices receive the rest.
    pub async fn finish(self) -> Vec<Device> {
        self.world.is_over.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await;
        }
        let mut ends = BTreeMap::new();
        for room in &self.world.rooms {
            let newest = || self.world.alice().messages(room, "b").query("limit", 1);
            let newest = self.world.until_answered(newest).await;
            let id = newest.ok()["chunk"][0]["event_id"].as_str().expect("an event").to_owned();
            ends.insert(room.clone(), id);
        }
        let mut devices = Vec::new();
        for device in self.devices {
            let mut device = device.await;
            device.catch_up(&self.world, &ends).await;
            devices.push(device);
        }
        devices
    }
}
