//! Users of other servers of whom nothing is heard any more. Their servers tell of them again and
//! again while they are there; who is silent for too long is taken to be offline, for the server may
//! be gone, or the way to it.

use std::collections::{BTreeSet, HashMap};

use chatd_base::UserNid;
use chatd_streams::presence::{PresenceRow, PresenceState};

/// After so long without a word a user is taken to be offline; as long as other servers wait.
const SILENCE_MS: u64 = 30 * 60 * 1_000;
/// Before that time, and so often, this server tells of its own users.
pub(super) const TELL_AGAIN_MS: u64 = 25 * 60 * 1_000;

/// Those who are not offline, and when they were heard of last.
#[derive(Default)]
pub(super) struct Heard {
    users: HashMap<UserNid, (u64, PresenceRow)>,
    by_time: BTreeSet<(u64, UserNid)>,
}

impl Heard {
    /// Takes note of what a server has told of one of its users.
    pub(super) fn note(&mut self, row: &PresenceRow, now_ms: u64, most: usize) {
        if let Some((at, _)) = self.users.remove(&row.user) {
            self.by_time.remove(&(at, row.user));
        }
        if row.state == PresenceState::Offline || self.users.len() >= most {
            return;
        }
        self.users.insert(row.user, (now_ms, row.clone()));
        self.by_time.insert((now_ms, row.user));
    }

    /// When the next of them has been silent for too long.
    pub(super) fn due(&self) -> Option<u64> {
        self.by_time.first().map(|(at, _)| at.saturating_add(SILENCE_MS))
    }

    /// Those who have been silent for too long, as they are shown from now on.
    pub(super) fn take_silent(&mut self, now_ms: u64) -> Vec<PresenceRow> {
        let mut silent = Vec::new();
        while self.due().is_some_and(|due| due <= now_ms) {
            let Some((_, user)) = self.by_time.pop_first() else { break };
            let Some((_, row)) = self.users.remove(&user) else { continue };
            let gone = PresenceState::Offline;
            silent.push(PresenceRow { state: gone, currently_active: false, ..row });
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use ruma_common::owned_user_id;

    use super::*;

    fn row(user: i32, state: PresenceState) -> PresenceRow {
        PresenceRow {
            user: UserNid(user),
            user_id: owned_user_id!("@bob:there"),
            state,
            status_msg: Some("here".to_owned()),
            currently_active: true,
            last_active_ts: 5,
        }
    }

    #[test]
    fn who_is_silent_for_half_an_hour_is_offline() {
        let mut heard = Heard::default();
        heard.note(&row(1, PresenceState::Online), 1_000, 10);
        heard.note(&row(2, PresenceState::Unavailable), 2_000, 10);
        heard.note(&row(3, PresenceState::Busy), 3_000, 10);
        heard.note(&row(1, PresenceState::Online), 4_000, 10);
        heard.note(&row(3, PresenceState::Offline), 5_000, 10);
        assert_eq!(heard.due(), Some(2_000 + SILENCE_MS));
        assert!(heard.take_silent(1_999 + SILENCE_MS).is_empty());
        let silent = heard.take_silent(3_999 + SILENCE_MS);
        assert_eq!(silent.len(), 1);
        assert_eq!((silent[0].user, silent[0].state), (UserNid(2), PresenceState::Offline));
        assert_eq!(silent[0].status_msg.as_deref(), Some("here"));
        assert!(!silent[0].currently_active && silent[0].last_active_ts == 5);
        assert_eq!(heard.take_silent(4_000 + SILENCE_MS)[0].user, UserNid(1));
        assert_eq!(heard.due(), None);
    }

    #[test]
    fn no_more_are_followed_than_that() {
        let mut heard = Heard::default();
        heard.note(&row(1, PresenceState::Online), 1, 1);
        heard.note(&row(2, PresenceState::Online), 2, 1);
        heard.note(&row(1, PresenceState::Online), 3, 1);
        assert_eq!((heard.users.len(), heard.by_time.len()), (1, 1));
        assert_eq!(heard.due(), Some(3 + SILENCE_MS));
    }
}
