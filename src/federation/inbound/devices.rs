//! Device lists of users of other servers: updates go to where the stream of device lists is
//! written, and lists of which an update was missed are fetched there.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use chatd_base::{Error, Refusal, Result, Stop, UserNid};
use chatd_config::StreamName;
use chatd_servers::{Ask, Failure};
use chatd_storage::remote_devices::Stale;
use chatd_users::remote_devices::{DeviceList, Update};
use futures::{StreamExt, stream};
use ruma_common::{ServerName, UserId};

use super::{Inbound, Inner, state::segment};

const CALL: &str = "federation.device_lists";
/// How often lists are looked for that have to be fetched.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Lists that are fetched at a time (R8).
const AT_ONCE: usize = 8;
const MOST_BYTES: usize = 8 * 1024 * 1024;
const WITHIN: Duration = Duration::from_secs(30);

impl Inbound {
    /// Starts to answer the calls of other instances.
    pub(super) fn answer_device_calls(&self) {
        let streams = &self.0.users.deps.streams;
        if streams.writes(StreamName::DeviceLists) {
            let inbound = Arc::downgrade(&self.0);
            streams.calls.on(CALL, move |body| answer(inbound.clone(), body));
        }
    }

    /// Takes in updates of `origin`. On return they are durable.
    pub(super) async fn update_devices(
        &self,
        origin: &ServerName,
        updates: Vec<Update>,
    ) -> Result<()> {
        if updates.is_empty() {
            return Ok(());
        }
        let streams = &self.0.users.deps.streams;
        if streams.writes(StreamName::DeviceLists) {
            return self.update_devices_here(&updates).await;
        }
        tracing::debug!(server.name = %origin, count = updates.len(), "device lists go elsewhere");
        let body = serde_json::to_vec(&updates).map_err(Error::internal)?;
        streams.others.ask_writer(StreamName::DeviceLists, CALL, body.into()).await?;
        Ok(())
    }

    async fn update_devices_here(&self, updates: &[Update]) -> Result<()> {
        if self.0.users.remote_devices.update(updates).await? {
            self.0.stale.notify_one();
        }
        Ok(())
    }

    /// Fetches lists of which updates were missed, until `stop`.
    pub(super) async fn follow_devices(self, stop: Stop) {
        if !self.0.users.deps.streams.writes(StreamName::DeviceLists) {
            return;
        }
        while !stop.is_triggered() {
            if let Err(error) = self.fetch_stale().await {
                tracing::debug!(%error, "device lists cannot be looked for");
            }
            tokio::select! {
                _ = stop.sleep(LOOK_EVERY) => {}
                () = self.0.stale.notified() => {}
            }
        }
    }

    /// Tries all of them once, so that those that cannot be had hold up nobody.
    async fn fetch_stale(&self) -> Result<()> {
        let mut after = UserNid(0);
        loop {
            let stale = self.0.users.remote_devices.list_stale(after).await?;
            let Some(last) = stale.last() else { return Ok(()) };
            after = last.user;
            let fetching: Vec<_> = stale.into_iter().map(|one| self.fetch_list(one)).collect();
            stream::iter(fetching).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
        }
    }

    async fn fetch_list(&self, stale: Stale) {
        let Ok(user_id) = UserId::parse(&*stale.user_id) else { return };
        let path = format!("/_matrix/federation/v1/user/devices/{}", segment(user_id.as_str()));
        let ask = Ask::get(path).within(WITHIN).most_bytes(MOST_BYTES);
        let asked: Result<DeviceList, Failure> =
            self.0.servers.client.ask_json(user_id.server_name(), ask).await;
        let outcome = match asked {
            Ok(list) => self.0.users.remote_devices.replace(stale, list).await,
            Err(failure) => {
                tracing::debug!(user.id = %user_id, %failure, "a device list cannot be fetched");
                return;
            }
        };
        if let Err(error) = outcome {
            tracing::warn!(user.id = %user_id, %error, "a device list could not be stored");
        }
    }
}

/// Does what another instance asks for.
async fn answer(inbound: Weak<Inner>, body: Bytes) -> Result<Vec<u8>> {
    let inbound = inbound.upgrade().ok_or_else(|| Refusal::not_owner(String::new()))?;
    let updates: Vec<Update> = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("not updates of device lists: {error}")))?;
    Inbound(inbound).update_devices_here(&updates).await?;
    Ok(Vec::from("{}"))
}
