//! How rows reach the other instances.

mod local;

pub use local::LocalBus;

/// Rows that can be put on a wire, serialised only if somebody is there to read them.
pub trait Encode {
    fn encode(&self) -> Vec<u8>;
}

/// Carries frames to the other instances. It may lose, repeat and delay them (R4).
pub trait Bus: Send + Sync + 'static {
    /// Must not block and must not fail: what it cannot carry, readers fetch from the tables.
    fn publish(&self, stream: &'static str, frame: &dyn Encode);
}
