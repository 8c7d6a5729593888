//! How rows reach the other instances.

mod local;
mod redis;
mod state;
mod tls;
mod wire;

use std::{sync::Arc, time::Duration};

use chatd_base::Stop;

use crate::{Head, Streams};

pub use local::LocalBus;
pub use redis::RedisBus;
pub use state::BusState;

/// Rows that can be put on a wire, serialised only if somebody is there to read them.
pub trait Encode {
    fn head(&self) -> Head;

    /// JSON.
    fn rows(&self) -> Vec<u8>;
}

/// Carries frames to the other instances. It may lose, repeat and delay them (R4).
pub trait Bus: Send + Sync + 'static {
    /// Must not block and must not fail: what it cannot carry, readers fetch from the tables.
    fn publish(&self, stream: &'static str, frame: &dyn Encode);

    /// Starts to hand frames of other instances to `streams`, until `stop`.
    fn listen(&self, streams: &Arc<Streams>, stop: &Stop);

    /// How often positions are to be read from the tables in case frames got lost; `None` if
    /// there is nobody else who writes.
    fn patience(&self) -> Option<Duration>;

    /// How it stands; `None` if there is nobody else.
    fn state(&self) -> Option<BusState>;

    /// Whether frames come in, as far as is known.
    fn is_calm(&self) -> bool;
}
