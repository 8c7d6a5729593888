//! Bounds on what users have other servers asked: a request of a few bytes may cost many.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chatd_base::UserNid;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Searches at a time, and those of one user (R8).
const AT_ONCE: usize = 64;
const OF_ONE: usize = 4;
/// How long a request waits for its turn; without one it is answered from what is here.
const WITHIN: Duration = Duration::from_secs(5);

/// Who has other servers asked at the moment.
pub(crate) struct Turns {
    all: Semaphore,
    users: Mutex<HashMap<UserNid, Arc<Semaphore>>>,
}

/// Leave to ask; the next has it when this is dropped.
pub(crate) type Turn<'a> = (OwnedSemaphorePermit, SemaphorePermit<'a>);

impl Default for Turns {
    fn default() -> Self {
        Self { all: Semaphore::new(AT_ONCE), users: Mutex::default() }
    }
}

impl Turns {
    /// Waits until other servers may be asked for the user. Whoever asks too much waits for
    /// themselves; `None` if that takes too long.
    pub async fn turn(&self, user: UserNid) -> Option<Turn<'_>> {
        self.turn_within(user, WITHIN).await
    }

    async fn turn_within(&self, user: UserNid, within: Duration) -> Option<Turn<'_>> {
        let of_user = {
            let mut users = self.users.lock();
            users.retain(|_, turns| Arc::strong_count(turns) > 1);
            users.entry(user).or_insert_with(|| Arc::new(Semaphore::new(OF_ONE))).clone()
        };
        let turn = async {
            let of_user = of_user.acquire_owned().await.ok()?;
            Some((of_user, self.all.acquire().await.ok()?))
        };
        tokio::time::timeout(within, turn).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_too_much_holds_up_nobody_else() {
        let turns = Turns::default();
        let mut held = Vec::new();
        for _ in 0..OF_ONE {
            held.push(turns.turn(UserNid(1)).await.expect("a turn"));
        }
        assert!(turns.turn_within(UserNid(1), Duration::from_millis(10)).await.is_none());
        assert!(turns.turn(UserNid(2)).await.is_some());
        held.pop();
        assert!(turns.turn(UserNid(1)).await.is_some());
    }
}
