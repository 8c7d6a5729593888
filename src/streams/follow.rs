//! Reads how far the other instances have got from the tables, in case the bus has lost
//! something: rarely while it works, each second while it does not (R4).

use std::sync::Arc;

use chatd_base::Stop;
use chatd_storage::{Pool, positions};
use tokio::time::{Duration, Instant};

use crate::Streams;

/// Between two looks, whatever asks for them.
const PAUSE: Duration = Duration::from_millis(50);

/// Until `stop`.
pub(crate) async fn run(streams: Arc<Streams>, pool: Pool, stop: Stop) {
    let mut is_lost = false;
    while let Some(patience) = streams.bus.patience() {
        let due = Instant::now() + patience;
        tokio::select! {
            () = streams.look.notified() => {}
            () = tokio::time::sleep_until(due) => {}
            () = stop.triggered() => return,
        }
        match positions::list(&pool).await {
            Ok(known) => {
                streams.skip_to(&known);
                is_lost = false;
            }
            Err(error) => {
                if !is_lost {
                    tracing::warn!(%error, "positions of the other instances cannot be read");
                }
                is_lost = true;
            }
        }
        if !stop.sleep(PAUSE).await {
            return;
        }
    }
}
