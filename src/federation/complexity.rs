//! How much a room asks of a server that is in it, as servers tell each other.

use serde::{Deserialize, Serialize};

/// Pieces of state that make a room one more complex.
const STATE: f64 = 500.0;

/// How complex a room is.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Complexity {
    /// By the number of its pieces of state, to two decimals.
    pub v1: f64,
}

impl Complexity {
    /// That of a room with so much state.
    pub fn of_state(count: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self { v1: (f64::from(count) / STATE * 100.0).round() / 100.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complexity_grows_with_the_state() {
        for (count, v1) in [(0, 0.0), (6, 0.01), (500, 1.0), (12_345, 24.69)] {
            assert_eq!(Complexity::of_state(count), Complexity { v1 });
        }
    }
}
