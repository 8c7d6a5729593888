//! Syncs, and feeds: a chain of syncs that waits for a condition instead of sleeping.

use std::{future::IntoFuture, ops::Deref, pin::Pin, time::Duration};

use serde_json::Value;

use crate::{
    Started,
    http::{Answer, Request},
    user::User,
};

/// Longest time that a feed waits for its condition.
const FEED_LIMIT: Duration = Duration::from_secs(30);

/// A `/sync` request, with `timeout=0` unless told otherwise.
#[derive(Debug)]
#[must_use = "a sync is sent when awaited"]
pub struct SyncRequest {
    request: Request,
}

impl SyncRequest {
    pub(crate) fn new(user: User) -> Self {
        Self { request: user.get("/sync") }
    }

    /// From this token on.
    pub fn since(self, token: &str) -> Self {
        self.with("since", token)
    }

    /// With an inline filter.
    pub fn filter(self, filter: &Value) -> Self {
        self.with("filter", filter)
    }

    /// Waits this long for something new.
    pub fn timeout_ms(self, timeout: u64) -> Self {
        self.with("timeout", timeout)
    }

    /// With any query argument.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.request = self.request.query(name, value);
        self
    }

    /// Without the check against the specification.
    pub fn unchecked(mut self) -> Self {
        self.request = self.request.unchecked();
        self
    }

    /// The request itself, for scenarios of refusals.
    pub fn request(self) -> Request {
        self.request
    }

    /// Sends it now; await the handle for the answer.
    pub fn start(self) -> Started<Synced> {
        crate::spawn(self.into_future())
    }
}

impl IntoFuture for SyncRequest {
    type Output = Synced;
    type IntoFuture = Pin<Box<dyn Future<Output = Synced> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let answer = self.request.await;
            answer.ok();
            Synced(answer)
        })
    }
}

/// A successful sync.
#[derive(Clone, Debug)]
pub struct Synced(Answer);

impl Deref for Synced {
    type Target = Answer;

    fn deref(&self) -> &Answer {
        &self.0
    }
}

impl Synced {
    /// Where to go on.
    pub fn next_batch(&self) -> String {
        self.string("next_batch")
    }

    /// A room under `join`, `invite`, `leave` or `knock`; null if it is not there.
    pub fn section(&self, section: &str, room: &str) -> &Value {
        &self.ok()["rooms"][section][room]
    }

    /// A joined room; null if it is not there.
    pub fn room(&self, room: &str) -> &Value {
        self.section("join", room)
    }

    /// The timeline of a joined room.
    pub fn timeline(&self, room: &str) -> Vec<Value> {
        events(&self.room(room)["timeline"])
    }

    /// The ids of the timeline of a joined room.
    pub fn timeline_ids(&self, room: &str) -> Vec<String> {
        ids(&self.timeline(room))
    }

    /// The state section of a joined room.
    pub fn state(&self, room: &str) -> Vec<Value> {
        events(&self.room(room)["state"])
    }

    /// Ephemeral events of a joined room.
    pub fn ephemeral(&self, room: &str) -> Vec<Value> {
        events(&self.room(room)["ephemeral"])
    }

    /// The last ephemeral event of this type in a joined room.
    pub fn ephemeral_of(&self, room: &str, kind: &str) -> Option<Value> {
        self.ephemeral(room).into_iter().rfind(|event| event["type"] == kind)
    }

    /// To-device messages.
    pub fn to_device(&self) -> Vec<Value> {
        events(&self.ok()["to_device"])
    }

    /// Global account data.
    pub fn account_data(&self) -> Vec<Value> {
        events(&self.ok()["account_data"])
    }

    /// Presence.
    pub fn presence(&self) -> Vec<Value> {
        events(&self.ok()["presence"])
    }
}

/// The `events` of a section; empty where there is none.
pub fn events(section: &Value) -> Vec<Value> {
    section["events"].as_array().cloned().unwrap_or_default()
}

/// The `event_id` of each event.
pub fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|e| e["event_id"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Whether `events` has one of this type.
pub fn has_type(events: &[Value], kind: &str) -> bool {
    events.iter().any(|event| event["type"] == kind)
}

/// A device that syncs on from where it was.
#[derive(Clone, Debug)]
pub struct Feed {
    user: User,
    /// Where the next sync starts.
    pub since: String,
    /// The first sync.
    pub first: Synced,
    filter: Option<Value>,
}

impl Feed {
    /// Makes a first sync.
    pub async fn open(user: User) -> Self {
        let first = user.sync().await;
        Self { since: first.next_batch(), user, first, filter: None }
    }

    /// The same with a filter from now on.
    #[must_use]
    pub fn filtered(mut self, filter: Value) -> Self {
        self.filter = Some(filter);
        self
    }

    /// What is new now, without waiting.
    pub async fn now(&mut self) -> Synced {
        self.next(0).await
    }

    /// What is new; waits for it up to `timeout_ms`.
    pub async fn next(&mut self, timeout_ms: u64) -> Synced {
        let mut request = self.user.sync().since(&self.since).timeout_ms(timeout_ms);
        if let Some(filter) = &self.filter {
            request = request.filter(filter);
        }
        let synced = request.await;
        self.since = synced.next_batch();
        synced
    }

    /// Syncs on until `condition` finds what it looks for.
    pub async fn until<T>(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&Synced) -> Option<T>,
    ) -> T {
        let deadline = tokio::time::Instant::now() + FEED_LIMIT;
        let mut seen = Vec::new();
        loop {
            let synced = self.next(2_000).await;
            if let Some(found) = condition(&synced) {
                return found;
            }
            seen.push(synced.text.clone());
            let late = tokio::time::Instant::now() > deadline;
            assert!(!late, "{} waited {FEED_LIMIT:?} for {what}; seen: {seen:#?}", self.user.id);
        }
    }

    /// Syncs on until an event with this id is in the timeline of `room`; returns it.
    pub async fn until_event(&mut self, room: &str, event: &str) -> Value {
        self.until(event, |synced| {
            synced.timeline(room).into_iter().find(|found| found["event_id"] == event)
        })
        .await
    }
}
