//! Rooms to be made, field by field.

use std::{future::IntoFuture, pin::Pin};

use serde_json::{Map, Value, json};

use crate::{http::Request, user::User};

/// A `createRoom` request; awaited, it returns the room id.
#[derive(Debug)]
#[must_use = "the room is made when awaited"]
pub struct CreateRoom {
    user: User,
    body: Map<String, Value>,
    members: Vec<User>,
}

impl CreateRoom {
    pub(crate) fn new(user: User) -> Self {
        Self { user, body: Map::new(), members: Vec::new() }
    }

    /// With any field.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.body.insert(field.to_owned(), value.into());
        self
    }

    /// `private_chat`, `trusted_private_chat` or `public_chat`.
    pub fn preset(self, preset: &str) -> Self {
        self.with("preset", preset)
    }

    /// With this room version.
    pub fn version(self, version: &str) -> Self {
        self.with("room_version", version)
    }

    /// Invites `user`.
    pub fn invite(mut self, user: &User) -> Self {
        let invited = self.body.entry("invite").or_insert_with(|| json!([]));
        if let Value::Array(invited) = invited {
            invited.push(user.id.as_str().into());
        }
        self
    }

    /// Invites `user`, who then joins.
    pub fn member(mut self, user: &User) -> Self {
        self.members.push(user.clone());
        self.invite(user)
    }

    /// With one more piece of initial state.
    pub fn state(mut self, kind: &str, content: Value) -> Self {
        let state = self.body.entry("initial_state").or_insert_with(|| json!([]));
        if let Value::Array(state) = state {
            state.push(json!({"type": kind, "state_key": "", "content": content}));
        }
        self
    }

    /// The request itself, for scenarios of refusals.
    pub fn request(self) -> Request {
        self.user.post("/createRoom", &Value::Object(self.body))
    }
}

impl IntoFuture for CreateRoom {
    type Output = String;
    type IntoFuture = Pin<Box<dyn Future<Output = String> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let members = self.members.clone();
            let room = self.request().await.string("room_id");
            for member in members {
                member.join(&room).await.ok();
            }
            room
        })
    }
}
