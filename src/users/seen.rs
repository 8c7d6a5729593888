//! When devices were last seen: noted in memory by every request, written for all devices at
//! once every few seconds.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use chatd_base::{Stop, UserNid, tasks};
use chatd_storage::{Pool, devices};
use parking_lot::Mutex;

/// Devices that may wait to be written (R8); more than that are noted at their next request.
const MAX_WAITING: usize = 20_000;
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// The last request of a device.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at_ms: u64,
    pub address: Option<IpAddr>,
    pub user_agent: Option<String>,
}

type Waiting = HashMap<(UserNid, Box<str>), Seen>;

/// Collects and writes.
pub struct LastSeen {
    pool: Pool,
    waiting: Mutex<Waiting>,
}

impl LastSeen {
    /// Starts the task that writes.
    pub fn start(pool: &Pool, stop: &Stop) -> Arc<Self> {
        let seen = Arc::new(Self { pool: pool.clone(), waiting: Mutex::default() });
        tasks::spawn("last_seen", seen.clone().run(stop.clone()));
        seen
    }

    /// Notes a request of a device.
    pub fn note(&self, user: UserNid, device_id: &str, seen: Seen) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_WAITING {
            waiting.insert((user, device_id.into()), seen);
        }
    }

    /// What has been noted of a device and not been written yet.
    pub fn unwritten(&self, user: UserNid, device_id: &str) -> Option<Seen> {
        self.waiting.lock().get(&(user, device_id.into())).cloned()
    }

    async fn run(self: Arc<Self>, stop: Stop) {
        let _held = stop.hold();
        while stop.sleep(WRITE_EVERY).await {
            self.write().await;
        }
        self.write().await;
    }

    async fn write(&self) {
        let rows = columns(std::mem::take(&mut *self.waiting.lock()));
        if rows.users.is_empty() {
            return;
        }
        // Nobody waits for this; the next request of each device says it again.
        if let Err(error) = devices::note_seen(&self.pool, &rows).await {
            tracing::warn!(%error, devices = rows.users.len(), "could not note when devices were seen");
        }
    }
}

/// Sorted by device, so that instances that write at the same time do not wait in a circle.
fn columns(waiting: Waiting) -> devices::SeenColumns {
    let mut all: Vec<_> = waiting.into_iter().collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut columns = devices::SeenColumns::default();
    for ((user, device_id), seen) in all {
        columns.users.push(user.0);
        columns.device_ids.push(device_id.into());
        columns.times.push(i64::try_from(seen.at_ms).unwrap_or(i64::MAX));
        columns.addresses.push(seen.address.map(|address| address.to_string()));
        columns.user_agents.push(seen.user_agent);
    }
    columns
}
