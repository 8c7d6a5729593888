//! One logged-in device, and the requests that it makes. Each returns the whole answer, so that
//! a scenario can look at successes and refusals alike; the shortcuts that return a value panic
//! on a refusal.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};

use crate::{
    http::{Answer, Http, Request, path},
    room::CreateRoom,
    sync::{Feed, SyncRequest},
};

/// A logged-in device; cheap to clone.
#[derive(Clone, Debug)]
pub struct User {
    http: Http,
    /// `@name:test.local`
    pub id: String,
    /// The local part.
    pub name: String,
    /// The device.
    pub device: String,
    /// The access token.
    pub token: String,
    transactions: Arc<AtomicU64>,
}

/// The password that [`User::register`] gives to `name`.
pub fn password_of(name: &str) -> String {
    format!("password of {name}")
}

impl User {
    /// Registers `name` and logs it in.
    pub async fn register(http: &Http, name: &str) -> Self {
        let body = json!({
            "username": name,
            "password": password_of(name),
            "auth": {"type": "m.login.dummy"},
        });
        let answer = http.request("POST", "/register").json(&body).await;
        Self::from_login(http, &answer)
    }

    /// Logs `name` in as another device.
    pub async fn login(http: &Http, name: &str) -> Self {
        let body = json!({
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": password_of(name),
        });
        let answer = http.request("POST", "/login").json(&body).await;
        Self::from_login(http, &answer)
    }

    /// The device that a successful register or login has made.
    #[track_caller]
    pub fn from_login(http: &Http, answer: &Answer) -> Self {
        let id = answer.string("user_id");
        let name = id[1..].split(':').next().unwrap_or_default().to_owned();
        Self {
            http: http.clone(),
            name,
            device: answer.string("device_id"),
            token: answer.string("access_token"),
            id,
            transactions: Arc::default(),
        }
    }

    /// Whether both are users of one server.
    pub fn is_of_server_of(&self, other: &Self) -> bool {
        let server = |user: &Self| user.id.split_once(':').map(|(_, server)| server.to_owned());
        server(self) == server(other)
    }

    /// The same user as another device.
    pub async fn another_device(&self) -> Self {
        Self::login(&self.http, &self.name).await
    }

    /// The same device with another access token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// The same device, talking to another server on the same database.
    #[must_use]
    pub fn at(&self, http: &Http) -> Self {
        Self { http: http.clone(), ..self.clone() }
    }

    /// Any request with this device's token.
    pub fn request(&self, method: &str, path: impl Into<String>) -> Request {
        self.http.request(method, path).token(&self.token)
    }

    /// GET.
    pub fn get(&self, path: impl Into<String>) -> Request {
        self.request("GET", path)
    }

    /// POST with a JSON body.
    pub fn post(&self, path: impl Into<String>, body: &Value) -> Request {
        self.request("POST", path).json(body)
    }

    /// PUT with a JSON body.
    pub fn put(&self, path: impl Into<String>, body: &Value) -> Request {
        self.request("PUT", path).json(body)
    }

    /// DELETE.
    pub fn delete(&self, path: impl Into<String>) -> Request {
        self.request("DELETE", path)
    }

    /// A transaction id that this device has not used.
    pub fn transaction(&self) -> String {
        format!("t{}", self.transactions.fetch_add(1, Ordering::Relaxed))
    }

    /// A room to be made by this user.
    pub fn create_room(&self) -> CreateRoom {
        CreateRoom::new(self.clone())
    }

    /// A public room.
    pub async fn public_room(&self) -> String {
        self.create_room().preset("public_chat").await
    }

    /// Joins a room by id or alias.
    pub fn join(&self, room: &str) -> Request {
        self.post(path("/join/{}", &[room]), &json!({}))
    }

    /// Joins a room of another server, with its help.
    pub fn join_via(&self, room: &str, server: &str) -> Request {
        self.join(room).query("server_name", server).query("via", server)
    }

    /// Knocks at a room of another server.
    pub fn knock_via(&self, room: &str, server: &str) -> Request {
        let url = path("/knock/{}", &[room]);
        self.post(url, &json!({})).query("server_name", server).query("via", server)
    }

    /// Leaves, or rejects an invitation.
    pub fn leave(&self, room: &str) -> Request {
        self.post(path("/rooms/{}/leave", &[room]), &json!({}))
    }

    /// Forgets a room.
    pub fn forget(&self, room: &str) -> Request {
        self.post(path("/rooms/{}/forget", &[room]), &json!({}))
    }

    /// `invite`, `kick`, `ban` or `unban`.
    pub fn change(&self, action: &str, room: &str, who: &User) -> Request {
        let url = path("/rooms/{}/", &[room]) + action;
        self.post(url, &json!({"user_id": who.id}))
    }

    /// Invites.
    pub fn invite(&self, room: &str, who: &User) -> Request {
        self.change("invite", room, who)
    }

    /// Replaces a room by one of another version.
    pub fn upgrade(&self, room: &str, version: &str) -> Request {
        self.post(path("/rooms/{}/upgrade", &[room]), &json!({"new_version": version}))
    }

    /// Sends an event under a transaction id.
    pub fn send_event(&self, room: &str, kind: &str, txn: &str, content: &Value) -> Request {
        self.put(path("/rooms/{}/send/{}/{}", &[room, kind, txn]), content)
    }

    /// Sends a text under a new transaction id.
    pub fn send_text(&self, room: &str, text: &str) -> Request {
        let content = json!({"msgtype": "m.text", "body": text});
        self.send_event(room, "m.room.message", &self.transaction(), &content)
    }

    /// Sends a text; returns the event id.
    pub async fn send(&self, room: &str, text: &str) -> String {
        self.send_text(room, text).await.string("event_id")
    }

    /// Redacts under a new transaction id.
    pub fn redact(&self, room: &str, event: &str) -> Request {
        let txn = self.transaction();
        self.put(
            path("/rooms/{}/redact/{}/{}", &[room, event, &txn]),
            &json!({"reason": "why not"}),
        )
    }

    /// Sets a piece of state.
    pub fn set_state(&self, room: &str, kind: &str, key: &str, content: &Value) -> Request {
        self.put(path("/rooms/{}/state/{}/{}", &[room, kind, key]), content)
    }

    /// Reads the content of a piece of state.
    pub fn get_state(&self, room: &str, kind: &str, key: &str) -> Request {
        self.get(path("/rooms/{}/state/{}/{}", &[room, kind, key]))
    }

    /// Reads one event.
    pub fn event(&self, room: &str, event: &str) -> Request {
        self.get(path("/rooms/{}/event/{}", &[room, event]))
    }

    /// One page of history: `b` or `f`.
    pub fn messages(&self, room: &str, direction: &str) -> Request {
        self.get(path("/rooms/{}/messages", &[room])).query("dir", direction)
    }

    /// Every event of a room that this user may see, oldest first.
    pub async fn history(&self, room: &str) -> Vec<Value> {
        let (mut events, mut from) = (Vec::new(), None::<String>);
        loop {
            let mut request = self.messages(room, "b").query("limit", 100);
            if let Some(from) = &from {
                request = request.query("from", from);
            }
            let answer = request.await;
            let page = answer.ok();
            events.extend(page["chunk"].as_array().into_iter().flatten().cloned());
            match page["end"].as_str() {
                Some(end) => from = Some(end.to_owned()),
                None => break,
            }
        }
        events.reverse();
        events
    }

    /// Public read receipt.
    pub fn read(&self, room: &str, event: &str) -> Request {
        self.post(path("/rooms/{}/receipt/m.read/{}", &[room, event]), &json!({}))
    }

    /// Starts or stops typing.
    pub fn typing(&self, room: &str, typing: bool) -> Request {
        let url = path("/rooms/{}/typing/{}", &[room, &self.id]);
        self.put(url, &json!({"typing": typing, "timeout": 30_000}))
    }

    /// Sends one to-device message.
    pub fn to_device(&self, kind: &str, txn: &str, to: &User, content: &Value) -> Request {
        let body = json!({"messages": {&to.id: {&to.device: content}}});
        self.put(path("/sendToDevice/{}/{}", &[kind, txn]), &body)
    }

    /// Global account data.
    pub fn set_account_data(&self, kind: &str, content: &Value) -> Request {
        self.put(path("/user/{}/account_data/{}", &[&self.id, kind]), content)
    }

    /// A sync to be made.
    pub fn sync(&self) -> SyncRequest {
        SyncRequest::new(self.clone())
    }

    /// A first sync, and a position to go on from.
    pub async fn feed(&self) -> Feed {
        Feed::open(self.clone()).await
    }
}
