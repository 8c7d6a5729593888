//! A device that syncs as the specification wants it: it comes back with the token of the last
//! answer that it has got, fills the gaps of limited timelines, and takes every to-device message
//! that an answer has.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chatd_kit::{Request, User, path};
use rand::{Rng, rngs::StdRng};
use serde_json::Value;

use super::load::World;

/// Small, so that timelines have gaps.
const FILTER: &str = r#"{"room":{"timeline":{"limit":6}}}"#;
/// Longest time until everything that was acknowledged has arrived.
const LIMIT: Duration = Duration::from_secs(30);

/// What a device has seen.
#[derive(Debug)]
pub struct Device {
    pub user: User,
    since: Option<String>,
    /// Ids of the events of each room, in the order in which they came.
    pub rooms: BTreeMap<String, Vec<String>>,
    /// Numbers of to-device messages, in the order in which they came.
    pub whispers: Vec<u64>,
    /// Last value in account data.
    pub number: Option<u64>,
}

impl Device {
    pub fn new(user: User) -> Self {
        let (rooms, whispers) = (BTreeMap::new(), Vec::new());
        Self { user, since: None, rooms, whispers, number: None }
    }

    /// Syncs until the writers end. Some answers get lost.
    pub async fn run(mut self, world: Arc<World>, mut random: StdRng) -> Self {
        while !world.is_over() {
            let is_lost = random.random_range(0..6) == 0;
            self.step(&world, 1_000, is_lost).await;
        }
        self
    }

    /// Syncs until everything has come that the server has acknowledged, and the last event of each
    /// room.
    pub async fn catch_up(&mut self, world: &World, ends: &BTreeMap<String, String>) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut missing = self.missing(world);
            let has = |(room, end): &(&String, &String)| {
                self.rooms.get(*room).is_some_and(|events| events.contains(end))
            };
            missing.extend(ends.iter().filter(|end| !has(end)).map(|(room, _)| room.clone()));
            if missing.is_empty() {
                return;
            }
            let text = format!("{} still misses {missing:?}", self.user.id);
            assert!(Instant::now() < deadline, "{text} after {LIMIT:?}");
            self.step(world, 100, false).await;
        }
    }

    /// What was acknowledged and has not come.
    fn missing(&self, world: &World) -> Vec<String> {
        let ledger = world.ledger.lock().unwrap();
        let events = ledger.sent.iter().filter(|((room, _), event)| {
            self.rooms.get(room).is_none_or(|events| !events.contains(event))
        });
        let mut missing: Vec<String> = events.map(|((_, body), _)| body.clone()).collect();
        let whispers = ledger.to_device.get(&self.user.id).into_iter().flatten();
        let whispers = whispers.filter(|number| !self.whispers.contains(number));
        missing.extend(whispers.map(|number| format!("whisper {number}")));
        let number = ledger.account_data.get(&self.user.id);
        if self.number.as_ref() < number {
            missing.push(format!("account data {number:?}"));
        }
        missing
    }

    /// One sync; nothing happens if it fails or its answer is lost.
    async fn step(&mut self, world: &World, timeout_ms: u64, is_lost: bool) {
        let mut request = self.user.get("/sync").query("filter", FILTER);
        request = request.query("timeout", timeout_ms);
        if let Some(since) = &self.since {
            request = request.query("since", since);
        }
        let Some(answer) = answered(world, request).await else {
            return tokio::time::sleep(Duration::from_millis(15)).await;
        };
        if is_lost {
            return;
        }
        let next = answer["next_batch"].as_str().unwrap().to_owned();
        if let Some(since) = &self.since {
            assert!(is_at_least(&next, since), "{next} is older than {since}");
        }
        for (room, part) in answer["rooms"]["join"].as_object().into_iter().flatten() {
            self.take_timeline(world, room, &part["timeline"]).await;
        }
        for event in answer["to_device"]["events"].as_array().into_iter().flatten() {
            self.whispers.push(event["content"]["number"].as_u64().unwrap());
        }
        for event in answer["account_data"]["events"].as_array().into_iter().flatten() {
            if event["type"] == "m.test" {
                self.number = event["content"]["number"].as_u64();
            }
        }
        self.since = Some(next);
    }

    async fn take_timeline(&mut self, world: &World, room: &str, timeline: &Value) {
        let mut events = ids(&timeline["events"]);
        let seen = self.rooms.entry(room.to_owned()).or_default();
        if timeline["limited"] == true {
            let mut from = timeline["prev_batch"].as_str().map(str::to_owned);
            while let Some(token) = from {
                let url = path("/rooms/{}/messages", &[room]);
                let page = || self.user.get(&url).query("dir", "b").query("from", &token);
                let page = world.until_answered(page).await;
                let earlier: Vec<String> = ids(&page.ok()["chunk"])
                    .into_iter()
                    .take_while(|event| seen.last() != Some(event))
                    .collect();
                let is_whole = earlier.len() == ids(&page.ok()["chunk"]).len();
                events.splice(0..0, earlier.into_iter().rev());
                from = page.ok()["end"].as_str().filter(|_| is_whole).map(str::to_owned);
            }
        }
        seen.extend(events);
    }
}

async fn answered(world: &World, request: Request) -> Option<Value> {
    let answer = request.unchecked().send().await.ok()?;
    match answer.status {
        200 => Some(answer.ok().clone()),
        503 => None,
        _ => {
            world.note(|ledger| ledger.complaints.push(answer.to_string()));
            None
        }
    }
}

fn ids(events: &Value) -> Vec<String> {
    let events = events.as_array().into_iter().flatten();
    events.map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

/// How far a token is in one stream: for all writers, and for those that are ahead of that.
struct Part {
    min: u64,
    ahead: BTreeMap<u64, u64>,
}

impl Part {
    /// `123`, `s123` or `m123~1.456~2.130`.
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.trim_start_matches(['s', 'm']).split('~');
        let min = parts.next()?.parse().ok()?;
        let writer = |part: &str| {
            let (writer, position) = part.split_once('.')?;
            Some((writer.parse().ok()?, position.parse().ok()?))
        };
        Some(Self { min, ahead: parts.map(writer).collect::<Option<_>>()? })
    }

    fn of(&self, writer: u64) -> u64 {
        self.ahead.get(&writer).copied().unwrap_or(self.min)
    }

    fn is_at_least(&self, earlier: &Self) -> bool {
        self.min >= earlier.min && earlier.ahead.iter().all(|(writer, at)| self.of(*writer) >= *at)
    }
}

/// Whether no part of a token is behind that of an earlier one.
pub fn is_at_least(token: &str, earlier: &str) -> bool {
    let parts = |token: &str| -> Vec<Part> {
        let read = |part| Part::read(part).unwrap_or_else(|| panic!("{token}"));
        token.split('_').map(read).collect()
    };
    let (token, earlier) = (parts(token), parts(earlier));
    let mut pairs = token.iter().zip(&earlier);
    token.len() == earlier.len() && pairs.all(|(new, old)| new.is_at_least(old))
}
