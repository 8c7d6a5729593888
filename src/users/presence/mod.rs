//! Who is online. What devices do is kept in memory, and only what others would see of a change
//! is written and put on the stream. One timer finds the changes that come by waiting. All of this
//! is at the writer of the stream; the others tell it what devices do there (`relay`).

mod device;
mod live;
mod present;
mod relay;
mod remote;
mod told;

use std::{collections::HashMap, sync::Arc, time::Duration};

use chatd_base::{Refusal, Requester, Result, UserNid, tasks};
use chatd_config::{PresenceMode, StreamName};
use chatd_storage::{memberships, presence};
use chatd_streams::{
    Writer,
    presence::{Presence as PresenceStream, PresenceState},
};
use futures::future::join_all;
use parking_lot::Mutex;
use ruma_common::UserId;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

pub use self::told::RemotePresence;
use self::{
    device::{Device, Timeouts},
    live::{Live, State, Status, Written},
    relay::Relay,
    told::{Aside, MAX_UNSEEN},
};
use crate::{Deps, logins::ts};

/// Users and devices of one user whose presence is followed (R8); those beyond stay as they are.
const MAX_USERS: usize = 200_000;
const MAX_DEVICES: usize = 50;
/// Users that an earlier process left online and this one takes over.
const MAX_TAKEN_OVER: i64 = 100_000;
/// Longest status message, in bytes.
const MAX_STATUS_BYTES: usize = 4096;
/// How long the timer waits after a failed write.
const PAUSE: Duration = Duration::from_secs(5);

struct Inner {
    deps: Deps,
    timeouts: Timeouts,
    writer: Writer<PresenceStream>,
    /// Whether this instance is the writer. If not, it uses `relay`, and nothing of what follows.
    is_writer: bool,
    relay: Relay,
    state: Mutex<State>,
    /// Places for messages that are looked at again.
    unseen: Arc<Semaphore>,
    /// Whom they are about.
    aside: Mutex<Aside>,
    /// Wakes the task: something is dirty or the timer goes off earlier.
    wake: Notify,
    /// Makes writes a line, so that the last one written is the last one that happened.
    writing: tokio::sync::Mutex<()>,
}

/// Presence of this server's users. Cheap to clone.
#[derive(Clone)]
pub struct Presence(Arc<Inner>);

/// Says that a device is syncing, until it is dropped.
pub struct Syncing {
    presence: Presence,
    user: UserNid,
    device: Box<str>,
}

impl Drop for Syncing {
    fn drop(&mut self) {
        self.presence.sync_ended(self.user, &self.device);
    }
}

/// The state that a client's word means.
pub fn parse_state(word: &str) -> Result<PresenceState> {
    Ok(match word {
        "online" => PresenceState::Online,
        "unavailable" => PresenceState::Unavailable,
        "offline" => PresenceState::Offline,
        "busy" | "org.matrix.msc3026.busy" => PresenceState::Busy,
        _ => return Err(Refusal::invalid_param("invalid presence state").into()),
    })
}

impl Presence {
    /// Starts the timer.
    pub(crate) fn start(deps: &Deps) -> Self {
        let streams = &deps.streams;
        let config = &deps.config.presence;
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let timeouts = Timeouts {
            idle_ms: ms(config.idle_timeout),
            sync_ms: ms(config.sync_online_timeout),
            active_ms: ms(config.last_active_granularity),
        };
        let presence = Self(Arc::new(Inner {
            timeouts,
            is_writer: streams.writes(StreamName::Presence),
            relay: Relay::new(timeouts.sync_ms),
            writer: Writer::open(streams, &streams.presence, &deps.pool, &deps.stop),
            state: Mutex::default(),
            unseen: Arc::new(Semaphore::new(MAX_UNSEEN)),
            aside: Mutex::default(),
            wake: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            deps: deps.clone(),
        }));
        match config.enabled {
            PresenceMode::Enabled if presence.0.is_writer => {
                presence.answer_calls();
                presence.follow_others(&streams.presence);
                tasks::spawn("presence", presence.clone().run());
            }
            PresenceMode::Enabled => drop(tasks::spawn("presence", presence.clone().relay())),
            _ => {}
        }
        presence
    }

    fn now_ms(&self) -> u64 {
        self.0.deps.clock.now_ms()
    }

    fn mode(&self) -> PresenceMode {
        self.0.deps.config.presence.enabled
    }

    /// Whether presence is shown at all.
    pub fn is_enabled(&self) -> bool {
        self.mode() != PresenceMode::Disabled
    }

    /// Notes that a device has begun to sync and wants to be shown as `wanted`; hold what is
    /// returned until the sync has been answered. A sync with `offline` leaves presence alone.
    pub fn syncing(&self, who: &Requester, wanted: PresenceState) -> Option<Syncing> {
        if self.mode() != PresenceMode::Enabled || wanted == PresenceState::Offline {
            return None;
        }
        let device: Box<str> = device_of(who).into();
        let now_ms = self.now_ms();
        if !self.0.is_writer {
            return self.0.relay.sync_began(who, wanted, now_ms).then(|| Syncing {
                presence: self.clone(),
                user: who.user,
                device,
            });
        }
        self.update(who.user, &who.user_id, |live, timeouts| {
            let is_full = live.devices.len() >= MAX_DEVICES;
            match live.devices.get_mut(&device) {
                Some(known) if known.state(now_ms, timeouts) != PresenceState::Offline => {
                    known.sync_wants(wanted);
                    known.syncing = known.syncing.saturating_add(1);
                }
                None if is_full => return false,
                _ => {
                    let mut new = Device::new(wanted, now_ms);
                    new.syncing = 1;
                    live.devices.insert(device.clone(), new);
                    live.last_active_ms = now_ms;
                }
            }
            true
        })
        .then(|| Syncing { presence: self.clone(), user: who.user, device })
    }

    fn sync_ended(&self, user: UserNid, device: &str) {
        let now_ms = self.now_ms();
        if !self.0.is_writer {
            return self.0.relay.sync_ended(user, device, now_ms);
        }
        let mut state = self.0.state.lock();
        let Some(live) = state.users.get_mut(&user) else { return };
        if let Some(device) = live.devices.get_mut(device) {
            device.syncing = device.syncing.saturating_sub(1);
            device.seen_ms = now_ms;
        }
        self.reschedule(&mut state, user, now_ms);
    }

    /// Sets the timer for a user's next change.
    fn reschedule(&self, state: &mut State, user: UserNid, now_ms: u64) {
        if state.reschedule(user, now_ms, self.0.timeouts) {
            self.0.wake.notify_one();
        }
    }

    /// Notes that the user has done something: sent an event, a receipt, typed.
    pub fn note_activity(&self, who: &Requester) {
        if self.mode() != PresenceMode::Enabled {
            return;
        }
        let now_ms = self.now_ms();
        if !self.0.is_writer {
            return self.0.relay.was_active(who, now_ms);
        }
        let known = self.0.state.lock().users.contains_key(&who.user);
        if known {
            self.update(who.user, &who.user_id, |live, _| {
                if let Some(device) = live.devices.get_mut(device_of(who)) {
                    device.note_activity(now_ms);
                    live.last_active_ms = now_ms;
                }
                true
            });
        }
    }

    /// Sets the requester's presence and status message. On return it is durable.
    pub async fn set(
        &self,
        who: &Requester,
        wanted: PresenceState,
        status_msg: Option<String>,
    ) -> Result<()> {
        if !self.is_enabled() {
            return Ok(());
        }
        if status_msg.as_ref().is_some_and(|status| status.len() > MAX_STATUS_BYTES) {
            return Err(Refusal::invalid_param("the status message is too long").into());
        }
        let now_ms = self.now_ms();
        self.update(who.user, &who.user_id, |live, _| {
            let device = live.devices.entry(device_of(who).into());
            let device = device.or_insert_with(|| Device::new(wanted, now_ms));
            device.wanted = wanted;
            device.active_ms = now_ms;
            live.last_active_ms = now_ms;
            live.status = Status::Known(status_msg);
            live.status_changed = true;
            true
        });
        self.flush().await
    }

    /// A user's presence as the requester may see it: the user's own, or that of somebody with
    /// whom they share a room.
    pub async fn get(&self, who: &Requester, target: &UserId) -> Result<Value> {
        if !self.is_enabled() {
            return Ok(json!({ "presence": "offline" }));
        }
        let pool = &self.0.deps.pool;
        let hidden = || Refusal::forbidden("you are not allowed to see their presence");
        let user = self.0.deps.interner.known_users(&[target.as_str()]).await?;
        let user = user.first().copied().flatten().ok_or_else(hidden)?;
        if user != who.user && memberships::list_sharing(pool, who.user, &[user]).await?.is_empty()
        {
            return Err(hidden().into());
        }
        let stored = presence::list(pool, &[user]).await?.into_iter().next();
        Ok(match stored {
            Some(stored) => content(&stored, self.now_ms()),
            None => json!({ "presence": "offline" }),
        })
    }

    /// Changes a user's devices, then looks whether others see a difference. False if `change`
    /// says so or there is no room for another user.
    fn update(
        &self,
        user: UserNid,
        user_id: &UserId,
        change: impl FnOnce(&mut Live, Timeouts) -> bool,
    ) -> bool {
        let now_ms = self.now_ms();
        let mut state = self.0.state.lock();
        if state.users.len() >= MAX_USERS && !state.users.contains_key(&user) {
            return false;
        }
        let live = state.users.entry(user).or_insert_with(|| Live::new(user_id));
        if !change(live, self.0.timeouts) {
            return false;
        }
        if live.row(user, now_ms, self.0.timeouts).is_some() {
            state.dirty.insert(user);
            self.0.wake.notify_one();
        }
        self.reschedule(&mut state, user, now_ms);
        true
    }

    /// Writes what dirty users look like now. On return it is durable.
    async fn flush(&self) -> Result<()> {
        let _line = self.0.writing.lock().await;
        self.read_status().await?;
        let rows = self.0.state.lock().take_dirty(self.now_ms(), self.0.timeouts);
        let written = join_all(rows.iter().map(|row| self.0.writer.append(row.clone()))).await;
        let mut outcome = Ok(());
        let mut state = self.0.state.lock();
        for (row, written) in rows.iter().zip(written) {
            match written {
                Ok(_) if state.note_written(row, self.now_ms(), self.0.timeouts) => {
                    self.0.wake.notify_one();
                }
                Ok(_) => {}
                Err(error) => {
                    state.dirty.insert(row.user);
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    /// Reads the status messages of dirty users that are not known, in one query.
    async fn read_status(&self) -> Result<()> {
        let unread = self.0.state.lock().unread();
        if unread.is_empty() {
            return Ok(());
        }
        let stored = presence::list(&self.0.deps.pool, &unread).await?;
        let mut found: HashMap<UserNid, Option<String>> =
            stored.into_iter().map(|stored| (stored.user, stored.status_msg)).collect();
        let mut state = self.0.state.lock();
        for user in unread {
            if let Some(live) = state.users.get_mut(&user)
                && matches!(live.status, Status::Unread)
            {
                live.status = Status::Known(found.remove(&user).flatten());
            }
        }
        Ok(())
    }

    /// Until the end: writes what is dirty, and looks at users whose time has come.
    async fn run(self) {
        let stop = self.0.deps.stop.clone();
        self.take_over().await;
        while !stop.is_triggered() {
            self.0.state.lock().look_at_due(self.now_ms(), self.0.timeouts);
            if let Err(error) = self.flush().await.and(self.end_silent().await) {
                tracing::warn!(%error, "presence could not be written");
                stop.sleep(PAUSE).await;
                continue;
            }
            let next = self.0.state.lock().due();
            let wait = next.map_or(u64::MAX, |at| at.saturating_sub(self.now_ms()));
            tokio::select! {
                () = self.0.wake.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(wait.min(3_600_000))) => {}
                () = stop.triggered() => {}
            }
        }
    }

    /// Follows those whom an earlier process left online, so that they go offline in time.
    async fn take_over(&self) {
        let deps = &self.0.deps;
        let found = async {
            let stored = presence::list_present(&deps.pool, MAX_TAKEN_OVER).await?;
            let nids: Vec<UserNid> = stored.iter().map(|stored| stored.user).collect();
            let names = deps.interner.user_names(&nids).await?;
            Ok::<_, chatd_storage::Error>((stored, names))
        };
        let (stored, names) = match found.await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "presence from before the start could not be read");
                return;
            }
        };
        let now_ms = self.now_ms();
        for (stored, name) in stored.into_iter().zip(names) {
            let Some(row) = present::row(stored, name.as_deref()) else { continue };
            if *row.user_id.server_name() != deps.config.server_name {
                self.0.state.lock().heard.note(&row, now_ms, MAX_USERS);
                continue;
            }
            self.update(row.user, &row.user_id, |live, _| {
                let last_active_ms = u64::try_from(row.last_active_ts).unwrap_or_default();
                live.written.get_or_insert(Written {
                    state: row.state,
                    currently_active: row.currently_active,
                    last_active_ms,
                    at_ms: now_ms,
                });
                if live.devices.is_empty() {
                    let device =
                        Device { active_ms: last_active_ms, ..Device::new(row.state, now_ms) };
                    live.devices.insert("".into(), device);
                    live.last_active_ms = last_active_ms;
                    live.status = Status::Known(row.status_msg.clone());
                }
                true
            });
        }
    }
}

fn device_of(who: &Requester) -> &str {
    who.device_id.as_ref().map_or("", |device| device.as_str())
}

/// Presence as clients see it, in the form of `GET …/status`.
fn content(stored: &presence::Stored, now_ms: u64) -> Value {
    let state = PresenceState::from_letter(stored.state).unwrap_or(PresenceState::Offline);
    let mut content = json!({ "presence": state.as_str() });
    if stored.last_active_ts > 0 {
        content["last_active_ago"] = ts(now_ms).saturating_sub(stored.last_active_ts).max(0).into();
    }
    if let Some(status) = &stored.status_msg {
        content["status_msg"] = status.as_str().into();
    }
    if state == PresenceState::Online {
        content["currently_active"] = stored.currently_active.into();
    }
    content
}
