//! Presence at the instances that do not write it: what devices do there is noted, and told to the
//! writer in batches. A device that is new, or wants to be shown otherwise, is told at once; what
//! goes on is told with the next heartbeat. So the calls are as many as there are instances,
//! however many users they have, and users of an instance that is lost go offline by themselves.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use chatd_base::{Error, Refusal, Requester, Result, UserNid};
use chatd_config::StreamName;
use chatd_streams::presence::PresenceState;
use parking_lot::Mutex;
use ruma_common::OwnedUserId;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{Presence, device::Device, device_of};

/// Devices that are noted (R8); those beyond are not told of.
const MAX_DEVICES: usize = 200_000;
/// Devices in one call (R8).
const MOST_PER_CALL: usize = 5_000;
/// Between heartbeats; shorter where users go offline sooner.
const HEARTBEAT_MS: u64 = 10_000;
/// Between calls, so that those who come together are told together.
const PAUSE: Duration = Duration::from_millis(100);
const CALL: &str = "presence.hear";

type Key = (UserNid, Box<str>);

/// What a device does at this instance.
#[derive(Debug)]
struct Noted {
    user_id: OwnedUserId,
    wanted: PresenceState,
    /// Syncs that are waiting now.
    syncing: u32,
    /// A sync has begun that the writer has not been told of.
    is_new: bool,
    /// End of the last sync; 0 if there was none here.
    seen_ms: u64,
    /// Last thing that a person did; 0 if there was none here.
    active_ms: u64,
    /// When the writer was told.
    told_ms: u64,
    /// What it was told that the device wants.
    told: Option<PresenceState>,
    is_urgent: bool,
}

#[derive(Default)]
struct State {
    devices: HashMap<Key, Noted>,
    urgent: Vec<Key>,
}

/// What is to be told to the writer.
#[derive(Default)]
pub(super) struct Relay {
    state: Mutex<State>,
    wake: Notify,
    heartbeat_ms: u64,
}

/// What a device has done since it was told of last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Report {
    user: UserNid,
    user_id: OwnedUserId,
    device: Box<str>,
    wanted: PresenceState,
    /// Whether a sync has begun.
    is_new: bool,
    /// How long ago it was last syncing, and its person active; absent if that was not there.
    seen_ago_ms: Option<u64>,
    active_ago_ms: Option<u64>,
}

impl Relay {
    pub(super) fn new(sync_ms: u64) -> Self {
        Self { heartbeat_ms: HEARTBEAT_MS.min(sync_ms / 3).max(1), ..Self::default() }
    }

    /// Notes something; false if there is no room for another device.
    fn note(&self, who: &Requester, now_ms: u64, change: impl FnOnce(&mut Noted)) -> bool {
        let key: Key = (who.user, device_of(who).into());
        let mut state = self.state.lock();
        if state.devices.len() >= MAX_DEVICES && !state.devices.contains_key(&key) {
            return false;
        }
        let noted = state.devices.entry(key.clone()).or_insert_with(|| Noted::new(who));
        change(noted);
        let is_due = now_ms.saturating_sub(noted.told_ms) >= self.heartbeat_ms;
        let is_other = noted.is_new && noted.told != Some(noted.wanted);
        if (is_due || is_other) && !noted.is_urgent {
            noted.is_urgent = true;
            state.urgent.push(key);
            self.wake.notify_one();
        }
        true
    }

    pub(super) fn sync_began(&self, who: &Requester, wanted: PresenceState, now_ms: u64) -> bool {
        self.note(who, now_ms, |noted| {
            noted.wanted = wanted;
            noted.is_new = true;
            noted.syncing = noted.syncing.saturating_add(1);
        })
    }

    pub(super) fn sync_ended(&self, user: UserNid, device: &str, now_ms: u64) {
        if let Some(noted) = self.state.lock().devices.get_mut(&(user, device.into())) {
            noted.syncing = noted.syncing.saturating_sub(1);
            noted.seen_ms = now_ms;
        }
    }

    pub(super) fn was_active(&self, who: &Requester, now_ms: u64) {
        self.note(who, now_ms, |noted| noted.active_ms = now_ms);
    }

    /// What cannot wait for the next heartbeat.
    fn take_urgent(&self, now_ms: u64) -> Vec<Report> {
        let mut state = self.state.lock();
        let urgent = std::mem::take(&mut state.urgent);
        let report = |key: Key| Some(state.devices.get_mut(&key)?.report(key, now_ms));
        urgent.into_iter().filter_map(report).collect()
    }

    /// Everything that goes on or has ended since it was told. Forgets what has ended before.
    fn take_all(&self, now_ms: u64) -> Vec<Report> {
        let mut state = self.state.lock();
        state.urgent.clear();
        state.devices.retain(|_, noted| noted.has_news());
        let all = state.devices.iter_mut();
        all.map(|(key, noted)| noted.report(key.clone(), now_ms)).collect()
    }

    /// The writer has not heard these: they are part of the next heartbeat.
    fn take_back(&self, reports: &[Report]) {
        let mut state = self.state.lock();
        for report in reports {
            if let Some(noted) = state.devices.get_mut(&(report.user, report.device.clone())) {
                noted.is_new |= report.is_new;
                (noted.told_ms, noted.told) = (0, None);
            }
        }
    }
}

impl Noted {
    fn new(who: &Requester) -> Self {
        Self {
            user_id: who.user_id.clone(),
            wanted: PresenceState::Online,
            syncing: 0,
            is_new: false,
            seen_ms: 0,
            active_ms: 0,
            told_ms: 0,
            told: None,
            is_urgent: false,
        }
    }

    fn has_news(&self) -> bool {
        self.syncing > 0 || self.is_new || self.seen_ms.max(self.active_ms) >= self.told_ms
    }

    fn report(&mut self, (user, device): Key, now_ms: u64) -> Report {
        let ago = |at_ms: u64| (at_ms > 0).then(|| now_ms.saturating_sub(at_ms));
        let report = Report {
            user,
            user_id: self.user_id.clone(),
            device,
            wanted: self.wanted,
            is_new: self.is_new,
            seen_ago_ms: if self.syncing > 0 { Some(0) } else { ago(self.seen_ms) },
            active_ago_ms: ago(self.active_ms),
        };
        // A moment later, so that what happens in this millisecond is news.
        self.told_ms = now_ms + 1;
        self.told = Some(self.wanted);
        (self.is_new, self.is_urgent) = (false, false);
        report
    }
}

impl Presence {
    /// Hears the other instances, from now on.
    pub(super) fn answer_calls(&self) {
        let presence = self.clone();
        self.0.deps.streams.calls.on(CALL, move |body| answer(presence.clone(), body));
    }

    /// Until the end: tells the writer what devices do here.
    pub(super) async fn relay(self) {
        let stop = self.0.deps.stop.clone();
        let relay = &self.0.relay;
        let every = Duration::from_millis(relay.heartbeat_ms);
        let mut heartbeat = tokio::time::Instant::now() + every;
        loop {
            let reports = tokio::select! {
                () = stop.triggered() => return,
                () = tokio::time::sleep_until(heartbeat) => {
                    heartbeat = tokio::time::Instant::now() + every;
                    relay.take_all(self.now_ms())
                }
                () = relay.wake.notified() => relay.take_urgent(self.now_ms()),
            };
            for part in reports.chunks(MOST_PER_CALL) {
                if let Err(error) = self.tell(part).await {
                    tracing::info!(%error, "presence could not be told");
                    relay.take_back(part);
                }
            }
            stop.sleep(PAUSE).await;
        }
    }

    async fn tell(&self, reports: &[Report]) -> Result<()> {
        let body = serde_json::to_vec(reports).map_err(Error::internal)?;
        let others = &self.0.deps.streams.others;
        others.ask_writer(StreamName::Presence, CALL, body.into()).await?;
        Ok(())
    }

    /// Takes in what a device has done at another instance. Hearing it twice changes nothing.
    fn hear(&self, report: &Report) {
        let now_ms = self.now_ms();
        let since = |ago: Option<u64>| ago.map(|ago| now_ms.saturating_sub(ago));
        let (seen_ms, active_ms) = (since(report.seen_ago_ms), since(report.active_ago_ms));
        if seen_ms.is_none() && !self.0.state.lock().users.contains_key(&report.user) {
            return;
        }
        self.update(report.user, &report.user_id, |live, timeouts| {
            let is_full = live.devices.len() >= super::MAX_DEVICES;
            match live.devices.get_mut(&report.device) {
                Some(known) if known.state(now_ms, timeouts) != PresenceState::Offline => {
                    if report.is_new {
                        known.sync_wants(report.wanted);
                    }
                    known.seen_ms = known.seen_ms.max(seen_ms.unwrap_or(0));
                }
                None if is_full => return false,
                _ => {
                    let Some(seen_ms) = seen_ms else { return true };
                    if report.is_new {
                        live.last_active_ms = now_ms;
                    }
                    let active_ms = live.last_active_ms;
                    let device = Device::new(report.wanted, now_ms);
                    let device = Device { active_ms, seen_ms, ..device };
                    live.devices.insert(report.device.clone(), device);
                }
            }
            let device = live.devices.get_mut(&report.device);
            if let Some((device, active_ms)) = device.zip(active_ms)
                && active_ms > device.active_ms
            {
                device.note_activity(active_ms);
                live.last_active_ms = live.last_active_ms.max(active_ms);
            }
            true
        });
    }
}

async fn answer(presence: Presence, body: Bytes) -> Result<Vec<u8>> {
    let reports: Vec<Report> = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("not reports of presence: {error}")))?;
    reports.iter().for_each(|report| presence.hear(report));
    Ok(b"{}".to_vec())
}

#[cfg(test)]
mod tests {
    use ruma_common::{owned_device_id, owned_user_id};

    use super::*;
    use crate::presence::device::Timeouts;

    fn who() -> Requester {
        Requester {
            user_id: owned_user_id!("@a:x"),
            user: UserNid(1),
            device_id: Some(owned_device_id!("D")),
            token: 1,
            is_admin: false,
            is_guest: false,
            address: None,
        }
    }

    #[test]
    fn syncs_in_a_row_are_told_once_and_then_by_heartbeats() {
        let relay = Relay::new(30_000);
        let (who, mut told) = (who(), 0);
        for second in 100..130 {
            let now_ms = second * 1_000;
            assert!(relay.sync_began(&who, PresenceState::Online, now_ms));
            told += relay.take_urgent(now_ms).len();
            relay.sync_ended(who.user, "D", now_ms + 900);
            if second % 10 == 9 {
                told += relay.take_all(now_ms + 950).len();
            }
        }
        assert_eq!(told, 4, "at once, and three heartbeats");
        assert!(relay.sync_began(&who, PresenceState::Unavailable, 130_000));
        assert_eq!(relay.take_urgent(130_000)[0].wanted, PresenceState::Unavailable);
    }

    #[test]
    fn the_end_is_told_and_then_forgotten() {
        let relay = Relay::new(30_000);
        relay.sync_began(&who(), PresenceState::Online, 100_000);
        assert_eq!(relay.take_urgent(100_010)[0].seen_ago_ms, Some(0));
        relay.sync_ended(UserNid(1), "D", 101_000);
        let last = relay.take_all(110_000);
        assert_eq!((last[0].seen_ago_ms, last[0].is_new), (Some(9_000), false));
        assert!(relay.take_all(120_000).is_empty());
        assert!(relay.state.lock().devices.is_empty());
    }

    #[test]
    fn what_was_not_heard_is_told_again() {
        let relay = Relay::new(30_000);
        relay.sync_began(&who(), PresenceState::Online, 100_000);
        relay.sync_ended(UserNid(1), "D", 100_001);
        let lost = relay.take_urgent(100_010);
        relay.take_back(&lost);
        let again = relay.take_all(110_000);
        assert_eq!((again.len(), again[0].is_new), (1, true));
    }

    #[test]
    fn activity_is_told_at_once_and_not_each_time() {
        let relay = Relay::new(30_000);
        relay.was_active(&who(), 100_000);
        let told = relay.take_urgent(100_000);
        assert_eq!((told[0].seen_ago_ms, told[0].active_ago_ms), (None, Some(0)));
        relay.was_active(&who(), 101_000);
        assert!(relay.take_urgent(101_000).is_empty());
        assert_eq!(relay.take_all(110_000)[0].active_ago_ms, Some(9_000));
    }

    /// What a reader is shown of one device during syncs of 30 seconds each, at an instance whose
    /// heartbeats go to the writer.
    fn shown_in_half_an_hour(pause_ms: u64) -> Vec<PresenceState> {
        let timeouts = Timeouts { idle_ms: 300_000, sync_ms: 30_000, active_ms: 60_000 };
        let (relay, who) = (Relay::new(timeouts.sync_ms), who());
        let (mut device, mut shown) = (None::<Device>, Vec::new());
        let mut is_syncing = false;
        for step in 0..18_000_u64 {
            let now_ms = 100_000 + step * 100;
            let is_pause = (step * 100) % (30_000 + pause_ms) >= 30_000;
            if is_syncing == is_pause {
                is_syncing = !is_pause;
                if is_syncing {
                    relay.sync_began(&who, PresenceState::Online, now_ms);
                } else {
                    relay.sync_ended(who.user, "D", now_ms);
                }
            }
            let mut reports = relay.take_urgent(now_ms);
            if step % (HEARTBEAT_MS / 100) == 0 {
                reports.extend(relay.take_all(now_ms));
            }
            for report in reports {
                let device = device.get_or_insert_with(|| Device::new(report.wanted, now_ms));
                if report.is_new {
                    device.sync_wants(report.wanted);
                }
                let seen_ms = now_ms - report.seen_ago_ms.unwrap_or(now_ms);
                device.seen_ms = device.seen_ms.max(seen_ms);
            }
            let state = device.as_ref().map(|device| device.state(now_ms, timeouts));
            shown.extend(state);
        }
        shown.dedup();
        shown
    }

    #[test]
    fn half_an_hour_of_syncs_is_one_presence() {
        for pause_ms in [0, 100, 5_000, 20_000] {
            let expected = [PresenceState::Online, PresenceState::Unavailable];
            assert_eq!(shown_in_half_an_hour(pause_ms), expected, "pauses of {pause_ms} ms");
        }
    }

    #[test]
    fn ten_thousand_devices_are_a_few_calls() {
        let relay = Relay::new(30_000);
        let everybody: Vec<_> =
            (0..10_000).map(|number| Requester { user: UserNid(number), ..who() }).collect();
        let (mut calls, mut told) = (0, 0);
        // Each of them syncs anew every 20 seconds, a hundred in each step.
        for step in 0..3_000_u64 {
            let now_ms = 100_000 + step * 200;
            for who in everybody.iter().skip(usize::try_from(step % 100).unwrap()).step_by(100) {
                if step >= 100 {
                    relay.sync_ended(who.user, "D", now_ms);
                }
                relay.sync_began(who, PresenceState::Online, now_ms);
            }
            let mut reports = relay.take_urgent(now_ms);
            if step % (HEARTBEAT_MS / 200) == 0 {
                reports.extend(relay.take_all(now_ms));
            }
            // The first minute is when all of them come.
            if step >= 300 {
                calls += reports.len().div_ceil(MOST_PER_CALL);
                told += reports.len();
            }
        }
        assert!(told >= 54 * everybody.len(), "{told}: each of them in each heartbeat");
        assert!(calls <= 3 * 54, "{calls} calls in 54 heartbeats");
    }
}
