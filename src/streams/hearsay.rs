//! What instances tell each other in passing, over the same bus as rows. It is kept nowhere: whoever
//! does not hear it goes on without.

use std::collections::BTreeMap;

use chatd_base::{Position, WriterId};
use parking_lot::RwLock;

use crate::{Concerns, Head, Streams, bus::Encode};

type Listener = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Who listens to which subject.
#[derive(Default)]
pub(crate) struct Hearsay(RwLock<BTreeMap<&'static str, Listener>>);

impl Hearsay {
    /// Hands on what another instance has said; false if nobody listens to that.
    pub fn hear(&self, subject: &str, said: &[u8]) -> bool {
        let listeners = self.0.read();
        let Some(listener) = listeners.get(subject) else { return false };
        listener(said);
        true
    }
}

/// Something said, in the form of a frame without positions.
struct Saying {
    writer: WriterId,
    said: Vec<u8>,
}

impl Encode for Saying {
    fn head(&self) -> Head {
        let nowhere = Position::default();
        let (writer, concerns) = (self.writer, Concerns::Everybody);
        Head { writer, previous: nowhere, position: nowhere, concerns }
    }

    fn rows(&self) -> Vec<u8> {
        self.said.clone()
    }
}

impl Streams {
    /// Says something to all other instances that listen to `subject`, which must not be the name of
    /// a stream. They may not hear it, or hear it twice.
    pub fn tell(&self, subject: &'static str, said: Vec<u8>) {
        self.bus.publish(subject, &Saying { writer: self.writer.writer, said });
    }

    /// Listens to what others say. A listener must be quick and must not wait. Called while the
    /// instance is wired.
    pub fn on_told(&self, subject: &'static str, listen: impl Fn(&[u8]) + Send + Sync + 'static) {
        self.hearsay.0.write().insert(subject, Box::new(listen));
    }
}
