//! Whether this process is still the one that writes as its instance (R6).

use std::time::Duration;

use chatd_base::Stop;
use chatd_storage::{
    Pool,
    positions::{self, Seat},
};

/// How often an idle process asks. One that writes is told by its first commit.
const EVERY: Duration = Duration::from_secs(5);

/// Until `stop`: fails the process when another one has taken its seat, since what it holds in
/// memory is not what the tables say any more.
pub async fn watch(pool: Pool, seat: Seat, stop: Stop) {
    while stop.sleep(EVERY).await {
        // A database that is away says nothing about the seat.
        if let Ok(false) = positions::is_seated(&pool, seat).await {
            return unseated(&stop);
        }
    }
}

/// Fails the process because it has lost its seat.
pub(crate) fn unseated(stop: &Stop) {
    stop.fail(
        "another chatd has started on this database under the same instance name and has taken \
         over; only one may run",
    );
}
