//! Small integers that stand for long strings inside the server, and stream positions.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

number! {
    /// A room, as the database numbers it.
    RoomNid(i32);
    /// A user of any server.
    UserNid(i32);
    /// An event. Not a position: numbers are handed out before the commit.
    EventNid(i64);
    /// A (type, state key) pair.
    KeyNid(i64);
    /// An event type that is not part of a state key.
    TypeNid(i32);
    /// An immutable state snapshot of one room.
    SnapshotId(i64);
    /// How far a writer has got in its stream.
    Position(i64);
    /// One of the fixed number of slices that rooms hash to.
    ShardId(i16);
    /// A stream writer, numbered in the table `writers`.
    WriterId(i16);
}
