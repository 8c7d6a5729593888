//! Devices: where a user is logged in. Removing one ends its tokens and removes its keys and its
//! inbox in the commit that tells others of it.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Requester, Result, UserNid};
use chatd_storage::{Batch, devices, notices::Notice};
use chatd_streams::{
    Writer,
    device_lists::{DeviceListRow, DeviceLists, KeyChange},
};
use ruma_common::UserId;
use serde::Serialize;

use crate::{
    Deps, keys,
    seen::LastSeen,
    tokens::{Ended, Tokens},
};

/// Longest device id and display name, in characters.
pub const MAX_DEVICE_ID: usize = 512;
pub const MAX_DISPLAY_NAME: usize = 100;

/// A device as clients see it.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen_ts: Option<u64>,
}

/// Devices of this server's users.
pub struct Devices {
    deps: Deps,
    tokens: Arc<Tokens>,
    seen: Arc<LastSeen>,
    writer: Writer<DeviceLists>,
}

impl Devices {
    pub(crate) fn new(
        deps: &Deps,
        tokens: &Arc<Tokens>,
        seen: &Arc<LastSeen>,
        writer: &Writer<DeviceLists>,
    ) -> Self {
        let (tokens, seen, writer) = (tokens.clone(), seen.clone(), writer.clone());
        Self { deps: deps.clone(), tokens, seen, writer }
    }

    /// All devices of a user.
    pub async fn list(&self, user: UserNid) -> Result<Vec<Device>> {
        let rows = devices::list(&self.deps.pool, user).await?;
        Ok(rows.into_iter().map(|row| self.shown(user, row)).collect())
    }

    /// One device of a user; refuses with 404 if it does not exist.
    pub async fn get(&self, user: UserNid, device_id: &str) -> Result<Device> {
        match devices::get(&self.deps.pool, user, device_id).await? {
            Some(row) => Ok(self.shown(user, row)),
            None => Err(unknown_device()),
        }
    }

    /// Gives a device of the requester another display name.
    pub async fn rename(&self, who: &Requester, device_id: &str, name: Option<&str>) -> Result<()> {
        if name.is_some_and(|name| name.chars().count() > MAX_DISPLAY_NAME) {
            let message = format!("the name is longer than {MAX_DISPLAY_NAME} characters");
            return Err(Refusal::new(400, "M_TOO_LARGE", message).into());
        }
        self.get(who.user, device_id).await?;
        let (user, device, name) = (who.user, device_id.to_owned(), name.map(str::to_owned));
        let rows = vec![row(who.user, &who.user_id, Some(device_id))];
        let statements = move |batch: &mut Batch| {
            devices::set_display_name(batch, user, &device, name.as_deref());
        };
        self.writer.append(KeyChange { rows, statements: Box::new(statements) }).await?;
        Ok(())
    }

    /// Removes those of `device_ids` that exist, with everything that belongs to them.
    pub async fn delete(&self, who: &Requester, device_ids: Vec<String>) -> Result<()> {
        self.delete_with(who.user, &who.user_id, device_ids, |_| ()).await
    }

    /// Removes all devices of the requester but the one that asks, and all tokens but its own.
    pub async fn delete_all_but(&self, who: &Requester) -> Result<()> {
        let mut device_ids = self.ids(who.user).await?;
        device_ids.retain(|id| who.device_id.as_ref().is_none_or(|own| own.as_str() != id));
        let (user, token) = (who.user, who.token);
        let notices = self.deps.notices.clone();
        let loose = move |batch: &mut Batch| {
            devices::delete_loose_tokens(batch, user, token);
            notices.tell(batch, Notice::TokensEnded { user, but: Some(token) });
        };
        let outcome = self.delete_with(who.user, &who.user_id, device_ids, loose).await;
        self.tokens.forget(who.user, Ended::AllBut(who.token));
        outcome
    }

    /// Removes all devices of a user and does `also` in the same commit.
    pub async fn delete_all_with(
        &self,
        user: UserNid,
        user_id: &UserId,
        also: impl Fn(&mut Batch) + Send + Sync + 'static,
    ) -> Result<()> {
        let device_ids = self.ids(user).await?;
        let notices = self.deps.notices.clone();
        let with_loose = move |batch: &mut Batch| {
            devices::delete_loose_tokens(batch, user, 0);
            notices.tell(batch, Notice::TokensEnded { user, but: None });
            also(batch);
        };
        let outcome = self.delete_with(user, user_id, device_ids, with_loose).await;
        self.tokens.forget(user, Ended::All);
        outcome
    }

    /// Ends the session of the requester: its device, or a token that has none.
    pub async fn log_out(&self, who: &Requester) -> Result<()> {
        match &who.device_id {
            Some(device_id) => self.delete(who, vec![device_id.to_string()]).await,
            None => {
                let mut batch = Batch::new();
                chatd_storage::tokens::delete(&mut batch, who.token);
                let ended = Notice::TokensEnded { user: who.user, but: None };
                self.deps.notices.tell(&mut batch, ended);
                let outcome = self.deps.pool.commit(batch).await;
                self.tokens.forget(who.user, Ended::All);
                outcome?;
                Ok(())
            }
        }
    }

    async fn ids(&self, user: UserNid) -> Result<Vec<String>> {
        let rows = devices::list(&self.deps.pool, user).await?;
        Ok(rows.into_iter().map(|row| row.device_id).collect())
    }

    async fn delete_with(
        &self,
        user: UserNid,
        user_id: &UserId,
        device_ids: Vec<String>,
        also: impl Fn(&mut Batch) + Send + Sync + 'static,
    ) -> Result<()> {
        let gone = |id| DeviceListRow { is_gone: true, ..row(user, user_id, Some(id)) };
        let rows: Vec<_> = device_ids.iter().map(|id| gone(id.as_str())).collect();
        let notices = self.deps.notices.clone();
        let statements = move |batch: &mut Batch| {
            devices::delete(batch, user, &device_ids);
            notices.tell(batch, Notice::DevicesEnded { user, devices: device_ids.clone() });
            also(batch);
        };
        if rows.is_empty() {
            let mut batch = Batch::new();
            statements(&mut batch);
            self.deps.pool.commit(batch).await?;
        } else {
            self.writer.append(KeyChange { rows, statements: Box::new(statements) }).await?;
        }
        Ok(())
    }

    fn shown(&self, user: UserNid, row: devices::Device) -> Device {
        let unwritten = self.seen.unwritten(user, &row.device_id);
        let (at_ms, address) = match unwritten {
            Some(seen) => {
                (Some(seen.at_ms), seen.address.map(|ip| ip.to_string()).or(row.last_seen_ip))
            }
            None => (row.last_seen_ts.and_then(|ts| u64::try_from(ts).ok()), row.last_seen_ip),
        };
        Device {
            device_id: row.device_id,
            display_name: row.display_name,
            last_seen_ip: address,
            last_seen_ts: at_ms,
        }
    }
}

fn row(user: UserNid, user_id: &UserId, device_id: Option<&str>) -> DeviceListRow {
    keys::changed(user, user_id, device_id)
}

fn unknown_device() -> Error {
    Refusal::not_found("there is no such device").into()
}
