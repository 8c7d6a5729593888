//! The pure part of presence: what a user's devices add up to at a moment, and when that may
//! change by itself.

use chatd_streams::presence::PresenceState;

/// How long states last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// Online without activity for so long is unavailable.
    pub idle_ms: u64,
    /// Neither a sync nor activity for so long is offline.
    pub sync_ms: u64,
    /// Activity counts as current for so long.
    pub active_ms: u64,
}

/// One device of a user who is not offline.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    /// What the client asked for last.
    pub wanted: PresenceState,
    /// Last thing that a person did.
    pub active_ms: u64,
    /// End of the last sync.
    pub seen_ms: u64,
    /// Syncs that are waiting now.
    pub syncing: u32,
}

impl Device {
    pub(super) fn new(wanted: PresenceState, now_ms: u64) -> Self {
        Self { wanted, active_ms: now_ms, seen_ms: now_ms, syncing: 0 }
    }

    fn gone_ms(&self, timeouts: Timeouts) -> u64 {
        self.seen_ms.max(self.active_ms).saturating_add(timeouts.sync_ms)
    }

    pub(super) fn state(&self, now_ms: u64, timeouts: Timeouts) -> PresenceState {
        if self.syncing == 0 && now_ms >= self.gone_ms(timeouts) {
            return PresenceState::Offline;
        }
        let is_idle = now_ms >= self.active_ms.saturating_add(timeouts.idle_ms);
        match self.wanted {
            PresenceState::Online if is_idle => PresenceState::Unavailable,
            wanted => wanted,
        }
    }

    /// A request of this device asks for `wanted`. A sync does not end `Busy`, and is no sign of
    /// a person.
    pub(super) fn sync_wants(&mut self, wanted: PresenceState) {
        if self.wanted != PresenceState::Busy {
            self.wanted = wanted;
        }
    }

    /// A person did something.
    pub(super) fn note_activity(&mut self, now_ms: u64) {
        self.active_ms = now_ms;
        if self.wanted == PresenceState::Unavailable {
            self.wanted = PresenceState::Online;
        }
    }

    /// When the state changes if nothing happens until then.
    fn next_change_ms(&self, now_ms: u64, timeouts: Timeouts) -> Option<u64> {
        let gone = (self.syncing == 0).then(|| self.gone_ms(timeouts));
        let idle = self.active_ms.saturating_add(timeouts.idle_ms);
        let idle = (self.wanted == PresenceState::Online).then_some(idle);
        [gone, idle].into_iter().flatten().filter(|at| *at > now_ms).min()
    }
}

/// What others are shown of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub state: PresenceState,
    pub currently_active: bool,
}

/// The best state of all devices wins: busy, online, unavailable, offline.
pub(super) fn combine<'a>(
    devices: impl Iterator<Item = &'a Device>,
    last_active_ms: u64,
    now_ms: u64,
    timeouts: Timeouts,
) -> Shown {
    let rank = |state: &PresenceState| match state {
        PresenceState::Busy => 3,
        PresenceState::Online => 2,
        PresenceState::Unavailable => 1,
        PresenceState::Offline => 0,
    };
    let state = devices.map(|device| device.state(now_ms, timeouts)).max_by_key(rank);
    let state = state.unwrap_or(PresenceState::Offline);
    let is_recent = now_ms < last_active_ms.saturating_add(timeouts.active_ms);
    Shown { state, currently_active: state == PresenceState::Online && is_recent }
}

/// When what `combine` says may change by itself.
pub(super) fn next_change_ms<'a>(
    devices: impl Iterator<Item = &'a Device>,
    last_active_ms: u64,
    now_ms: u64,
    timeouts: Timeouts,
) -> Option<u64> {
    let stale = Some(last_active_ms.saturating_add(timeouts.active_ms)).filter(|at| *at > now_ms);
    devices.filter_map(|device| device.next_change_ms(now_ms, timeouts)).chain(stale).min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T: Timeouts = Timeouts { idle_ms: 300_000, sync_ms: 30_000, active_ms: 60_000 };

    fn state_of() -> impl Strategy<Value = PresenceState> {
        prop_oneof![
            Just(PresenceState::Online),
            Just(PresenceState::Unavailable),
            Just(PresenceState::Offline),
            Just(PresenceState::Busy),
        ]
    }

    fn device() -> impl Strategy<Value = Device> {
        (state_of(), 0_u64..400_000, 0_u64..400_000, 0_u32..2).prop_map(
            |(wanted, active_ms, seen_ms, syncing)| Device { wanted, active_ms, seen_ms, syncing },
        )
    }

    #[test]
    fn an_online_device_goes_idle_and_then_away() {
        let mut device = Device::new(PresenceState::Online, 0);
        device.syncing = 1;
        assert_eq!(device.state(299_999, T), PresenceState::Online);
        assert_eq!(device.state(300_000, T), PresenceState::Unavailable);
        device.syncing = 0;
        device.seen_ms = 300_000;
        assert_eq!(device.state(329_999, T), PresenceState::Unavailable);
        assert_eq!(device.state(330_000, T), PresenceState::Offline);
    }

    #[test]
    fn a_sync_does_not_end_busy_but_activity_ends_unavailable() {
        let mut device = Device::new(PresenceState::Busy, 0);
        device.sync_wants(PresenceState::Online);
        assert_eq!(device.state(1, T), PresenceState::Busy);
        let mut device = Device::new(PresenceState::Unavailable, 0);
        device.note_activity(5);
        assert_eq!(device.state(6, T), PresenceState::Online);
    }

    #[test]
    fn the_best_device_wins() {
        let devices = [PresenceState::Unavailable, PresenceState::Online, PresenceState::Offline]
            .map(|wanted| Device::new(wanted, 0));
        let shown = combine(devices.iter(), 0, 10, T);
        assert_eq!(shown, Shown { state: PresenceState::Online, currently_active: true });
        assert!(!combine(devices.iter(), 0, 60_000, T).currently_active);
        assert_eq!(combine([].iter(), 0, 10, T).state, PresenceState::Offline);
    }

    proptest! {
        /// Nothing changes before the moment for which the timer is set.
        #[test]
        fn the_timer_misses_no_change(
            devices in proptest::collection::vec(device(), 0..4),
            now in 0_u64..800_000,
            later in 0_u64..800_000,
        ) {
            let active = devices.iter().map(|device| device.active_ms).max().unwrap_or(0);
            let before = combine(devices.iter(), active, now, T);
            let next = next_change_ms(devices.iter(), active, now, T).unwrap_or(u64::MAX);
            let then = now.saturating_add(later).min(next.saturating_sub(1)).max(now);
            prop_assert_eq!(combine(devices.iter(), active, then, T), before);
        }
    }
}
