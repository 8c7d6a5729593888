//! Users of this server who are, or have just been, online: what their devices do, what the table
//! says of them, and when to look at them again. Nothing here reads a clock, waits or writes.

use std::collections::{BTreeSet, HashMap};

use chatd_base::UserNid;
use chatd_streams::presence::{PresenceRow, PresenceState};
use ruma_common::{OwnedUserId, UserId};

use super::{
    device::{Device, Timeouts, combine, next_change_ms},
    remote::{Heard, TELL_AGAIN_MS},
};
use crate::logins::ts;

/// The status message of a user.
#[derive(Clone, Debug)]
pub(super) enum Status {
    /// As the table says, which has not been read yet.
    Unread,
    Known(Option<String>),
}

/// What the table says of a user.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub state: PresenceState,
    pub currently_active: bool,
    pub last_active_ms: u64,
    /// When it was written, as far as this process knows.
    pub at_ms: u64,
}

/// One user who is, or has just been, somewhere online.
#[derive(Debug)]
pub(super) struct Live {
    user_id: OwnedUserId,
    pub devices: HashMap<Box<str>, Device>,
    pub status: Status,
    pub status_changed: bool,
    pub last_active_ms: u64,
    pub written: Option<Written>,
    /// For when the timer is set.
    scheduled_ms: Option<u64>,
}

#[derive(Default)]
pub(super) struct State {
    pub users: HashMap<UserNid, Live>,
    timer: BTreeSet<(u64, UserNid)>,
    /// Users who may look other than the table says.
    pub dirty: BTreeSet<UserNid>,
    /// Users of other servers.
    pub heard: Heard,
}

impl State {
    /// The moment at which there is something to do next; 0 if there is something to write already.
    pub(super) fn due(&self) -> Option<u64> {
        if !self.dirty.is_empty() {
            return Some(0);
        }
        let own = self.timer.first().map(|(at, _)| *at);
        own.into_iter().chain(self.heard.due()).min()
    }

    /// Sets the timer for a user's next change, if it is not set for an earlier moment anyway.
    /// Whether that is the first of all now.
    pub(super) fn reschedule(&mut self, user: UserNid, now_ms: u64, timeouts: Timeouts) -> bool {
        let Some(live) = self.users.get_mut(&user) else { return false };
        let Some(next) = live.next_look_ms(now_ms, timeouts) else { return false };
        match live.scheduled_ms {
            Some(earlier) if earlier <= next => return false,
            Some(later) => drop(self.timer.remove(&(later, user))),
            None => {}
        }
        live.scheduled_ms = Some(next);
        let is_first = self.timer.first().is_none_or(|(at, _)| next < *at);
        self.timer.insert((next, user));
        is_first
    }

    /// Marks users whose time has come, and forgets those who are gone.
    pub(super) fn look_at_due(&mut self, now_ms: u64, timeouts: Timeouts) {
        while let Some((at, user)) = self.timer.first().copied().filter(|(at, _)| *at <= now_ms) {
            self.timer.remove(&(at, user));
            let Some(live) = self.users.get_mut(&user) else { continue };
            live.scheduled_ms = None;
            live.devices.retain(|_, device| {
                device.state(now_ms, timeouts) != PresenceState::Offline || device.syncing > 0
            });
            if live.row(user, now_ms, timeouts).is_some() {
                self.dirty.insert(user);
            } else if live.devices.is_empty() {
                self.users.remove(&user);
            }
            self.reschedule(user, now_ms, timeouts);
        }
    }

    /// What dirty users look like now; those whose status message is not known stay dirty.
    pub(super) fn take_dirty(&mut self, now_ms: u64, timeouts: Timeouts) -> Vec<PresenceRow> {
        let (unread, known): (BTreeSet<UserNid>, BTreeSet<UserNid>) =
            std::mem::take(&mut self.dirty).into_iter().partition(|user| self.is_unread(*user));
        self.dirty = unread;
        let row = |user| self.users.get(&user)?.row(user, now_ms, timeouts);
        known.into_iter().filter_map(row).collect()
    }

    /// Dirty users whose status message is not known.
    pub(super) fn unread(&self) -> Vec<UserNid> {
        self.dirty.iter().copied().filter(|user| self.is_unread(*user)).collect()
    }

    fn is_unread(&self, user: UserNid) -> bool {
        self.users.get(&user).is_some_and(|live| matches!(live.status, Status::Unread))
    }

    /// Notes that the table says this now. Whether the user's timer is the first of all now.
    pub(super) fn note_written(
        &mut self,
        row: &PresenceRow,
        now_ms: u64,
        timeouts: Timeouts,
    ) -> bool {
        let Some(live) = self.users.get_mut(&row.user) else { return false };
        live.written = Some(Written {
            state: row.state,
            currently_active: row.currently_active,
            last_active_ms: u64::try_from(row.last_active_ts).unwrap_or_default(),
            at_ms: now_ms,
        });
        live.status_changed = matches!(&live.status, Status::Known(now) if *now != row.status_msg);
        if live.devices.is_empty() && !self.dirty.contains(&row.user) {
            if let Some(at) = live.scheduled_ms {
                self.timer.remove(&(at, row.user));
            }
            self.users.remove(&row.user);
        }
        // The moment at which it is to be told again counts from now.
        self.reschedule(row.user, now_ms, timeouts)
    }
}

impl Live {
    pub(super) fn new(user_id: &UserId) -> Self {
        Self {
            user_id: user_id.to_owned(),
            devices: HashMap::new(),
            status: Status::Unread,
            status_changed: false,
            last_active_ms: 0,
            written: None,
            scheduled_ms: None,
        }
    }

    /// The next moment after `now_ms` at which the user may have to be written.
    fn next_look_ms(&self, now_ms: u64, timeouts: Timeouts) -> Option<u64> {
        let devices = self.devices.values();
        let change = next_change_ms(devices, self.last_active_ms, now_ms, timeouts);
        // What is due already is dirty; a timer that is set for the past would go off for ever.
        let again = self.tell_again_ms().filter(|at| *at > now_ms);
        change.into_iter().chain(again).min()
    }

    /// When other servers have to be told again that the user is there.
    fn tell_again_ms(&self) -> Option<u64> {
        let written = self.written.filter(|written| written.state != PresenceState::Offline);
        written.map(|written| written.at_ms.saturating_add(TELL_AGAIN_MS))
    }

    /// What is to be written, if others would see a difference.
    pub(super) fn row(
        &self,
        user: UserNid,
        now_ms: u64,
        timeouts: Timeouts,
    ) -> Option<PresenceRow> {
        let shown = combine(self.devices.values(), self.last_active_ms, now_ms, timeouts);
        let is_same = self.written.is_some_and(|written| {
            let moved_ms = self.last_active_ms.saturating_sub(written.last_active_ms);
            written.state == shown.state
                && written.currently_active == shown.currently_active
                && (shown.currently_active || moved_ms < timeouts.active_ms)
                && (shown.state == PresenceState::Offline
                    || now_ms < written.at_ms.saturating_add(TELL_AGAIN_MS))
        });
        if is_same && !self.status_changed {
            return None;
        }
        Some(PresenceRow {
            user,
            user_id: self.user_id.clone(),
            state: shown.state,
            status_msg: match &self.status {
                Status::Known(status) => status.clone(),
                Status::Unread => None,
            },
            currently_active: shown.currently_active,
            last_active_ts: ts(self.last_active_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use ruma_common::user_id;

    use super::*;

    const T: Timeouts = Timeouts { idle_ms: 300_000, sync_ms: 30_000, active_ms: 60_000 };
    const USER: UserNid = UserNid(1);

    /// Somebody whose client has been syncing since 0.
    fn somebody() -> State {
        let mut device = Device::new(PresenceState::Online, 0);
        device.syncing = 1;
        let mut live = Live::new(user_id!("@a:x"));
        live.devices.insert("D".into(), device);
        live.status = Status::Known(None);
        let mut state = State::default();
        state.users.insert(USER, live);
        state.dirty.insert(USER);
        state
    }

    /// Lets the timer go off until `end`, and writes what is dirty a moment later; returns when
    /// something was written, and as what.
    fn until(state: &mut State, end: u64) -> Vec<(u64, PresenceState)> {
        let (mut now, mut written) = (0, Vec::new());
        while now <= end {
            state.look_at_due(now, T);
            for row in state.take_dirty(now, T) {
                written.push((now, row.state));
                state.note_written(&row, now + 1, T);
            }
            now = state.due().expect("somebody is there").max(now + 1);
            assert!(written.len() < 100, "it is written over and over: {written:?}");
        }
        written
    }

    #[test]
    fn who_does_nothing_is_told_again_and_again() {
        let mut state = somebody();
        let written = until(&mut state, 2 * TELL_AGAIN_MS + 400_000);
        let (online, idle) = (PresenceState::Online, PresenceState::Unavailable);
        let times: Vec<u64> = written.iter().map(|(at, _)| *at).collect();
        // Online, not active any more, idle; and then in time.
        assert_eq!(&written[..3], [(0, online), (60_000, online), (300_000, idle)]);
        assert_eq!(times[3..], [300_001 + TELL_AGAIN_MS, 300_002 + 2 * TELL_AGAIN_MS]);
        assert!(written[3..].iter().all(|(_, state)| *state == idle));
    }

    #[test]
    fn what_could_not_be_written_in_time_stops_nothing() {
        let mut state = somebody();
        until(&mut state, 0);
        for hours in 1..5 {
            // Looked at late, and not written.
            state.look_at_due(hours * 3_600_000, T);
            assert_eq!(state.due(), Some(0), "it is still to be written");
        }
        let row = state.take_dirty(5 * 3_600_000, T).pop().expect("it is to be written");
        state.note_written(&row, 5 * 3_600_000, T);
        assert_eq!(state.due(), Some(5 * 3_600_000 + TELL_AGAIN_MS));
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let mut state = somebody();
        until(&mut state, 300_000);
        let device = state.users.get_mut(&USER).and_then(|live| live.devices.get_mut("D"));
        let device = device.expect("it is there");
        (device.syncing, device.seen_ms) = (0, 310_000);
        state.reschedule(USER, 310_000, T);
        assert_eq!(state.due(), Some(340_000));
        state.look_at_due(340_000, T);
        let row = state.take_dirty(340_000, T).pop().expect("it is to be written");
        assert_eq!(row.state, PresenceState::Offline);
        state.note_written(&row, 340_000, T);
        assert_eq!(state.due(), None);
        assert!(state.users.is_empty());
    }
}
