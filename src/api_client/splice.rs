//! Answers made of pieces that are JSON already.

use chatd_base::Requester;
use chatd_http::Reply;
use chatd_rooms::client_event::Viewer;
use serde::Serialize;

use crate::App;

/// A JSON object that is written member by member.
pub struct Object {
    out: Vec<u8>,
}

impl Object {
    pub fn new() -> Self {
        Self { out: Vec::with_capacity(4096) }
    }

    /// Adds a member whose value `write` appends.
    pub fn raw(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        self.out.push(if self.out.is_empty() { b'{' } else { b',' });
        serde_json::to_writer(&mut self.out, name).expect("a string always serialises");
        self.out.push(b':');
        write(&mut self.out);
        self
    }

    /// Adds a member.
    pub fn member(&mut self, name: &str, value: &(impl Serialize + ?Sized)) -> &mut Self {
        self.raw(name, |out| {
            serde_json::to_writer(out, value).expect("plain values always serialise");
        })
    }

    /// Adds a member if there is a value.
    pub fn optional(&mut self, name: &str, value: Option<impl Serialize>) -> &mut Self {
        if let Some(value) = value {
            self.member(name, &value);
        }
        self
    }

    /// The finished object as an answer.
    pub fn reply(&mut self) -> Reply {
        if self.out.is_empty() {
            self.out.push(b'{');
        }
        self.out.push(b'}');
        Reply::raw_json(std::mem::take(&mut self.out))
    }
}

/// How the requester sees events that name their room.
pub fn viewer<'a>(app: &App, who: &'a Requester) -> Viewer<'a> {
    Viewer {
        user: who.user,
        device: who.device_id.as_ref().map(|device| device.as_str()),
        now_ms: app.clock.now_ms(),
        with_room_id: true,
    }
}
