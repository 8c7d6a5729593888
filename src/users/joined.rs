//! Who is in which room, as far as somebody has asked lately: so that typing costs no query.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use chatd_base::{Cache, Result, RoomNid, UserNid};
use chatd_storage::{Pool, memberships};
use chatd_streams::events::{EventRow, Membership};

use crate::Deps;

/// Pairs of user and room that are remembered (R8).
const CACHED: usize = 50_000;

/// Joined users who have been asked for, kept true by the stream of events. That somebody is not
/// in a room is not remembered: whoever has just joined must not be refused.
pub(crate) struct Joined {
    pool: Pool,
    cache: Cache<(UserNid, RoomNid), ()>,
    /// Counts changes, so that what was read before one of them is not remembered after it.
    changes: AtomicU64,
}

impl Joined {
    pub(crate) fn new(deps: &Deps) -> Arc<Self> {
        let joined = Arc::new(Self {
            pool: deps.pool.clone(),
            cache: Cache::new("joined", CACHED),
            changes: AtomicU64::new(0),
        });
        let view = joined.clone();
        deps.streams.events.on_common_rows(move |frame| {
            frame.rows.iter().for_each(|(_, row)| view.fold(row));
        });
        let view = joined.clone();
        deps.streams.events.on_skipped(move |_, _| {
            view.changes.fetch_add(1, Ordering::SeqCst);
            view.cache.clear();
        });
        joined
    }

    fn fold(&self, row: &EventRow) {
        // Resolved state may have changed memberships without saying whose.
        if !row.resolved.is_empty() {
            self.changes.fetch_add(1, Ordering::SeqCst);
            self.cache.retain(|(_, room), _| *room != row.room);
        }
        let Some(change) = row.membership.as_ref().filter(|change| change.is_local) else { return };
        self.changes.fetch_add(1, Ordering::SeqCst);
        if change.now != Membership::Join {
            self.cache.remove(&(change.user, row.room));
        }
    }

    /// Whether `user` is in `room`. No query if that has been asked before.
    pub(crate) async fn is_joined(&self, user: UserNid, room: RoomNid) -> Result<bool> {
        if self.cache.get(&(user, room)).is_some() {
            return Ok(true);
        }
        let changes = self.changes.load(Ordering::SeqCst);
        if !memberships::is_joined(&self.pool, user, room).await? {
            return Ok(false);
        }
        self.cache.insert((user, room), ());
        if self.changes.load(Ordering::SeqCst) != changes {
            self.cache.remove(&(user, room));
        }
        Ok(true)
    }
}
