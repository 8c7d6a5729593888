//! A fixed number of locks that users share, for changes that read before they write.

use chatd_base::UserNid;
use tokio::sync::{Mutex, MutexGuard};

const STRIPES: usize = 64;

/// Makes the changes of one user a line. Users whose numbers fall together wait for each other.
pub(crate) struct UserLocks([Mutex<()>; STRIPES]);

impl UserLocks {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }

    /// Waits until no other change of `user` is under way.
    pub(crate) async fn of(&self, user: UserNid) -> MutexGuard<'_, ()> {
        let stripe = user.0.unsigned_abs() as usize % STRIPES;
        self.0[stripe].lock().await
    }
}
