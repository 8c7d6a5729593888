//! Messages from device to device: put into the inboxes of the devices that exist, in one commit.

use std::collections::{BTreeMap, HashMap};

use chatd_base::{Error, Refusal, Requester, Result, UserNid};
use chatd_storage::keys;
use chatd_streams::{
    Raw, Writer,
    to_device::{Send, ToDevice as ToDeviceStream, ToDeviceRow},
};
use ruma_common::{OwnedDeviceId, OwnedUserId, ServerName, UserId};
use serde_json::{Map, Value, json, value::to_raw_value};
use uuid::Uuid;

use crate::{Deps, digest, logins::ts};

/// Most messages that one request may put into inboxes, `*` counted for each device (R8).
const MAX_MESSAGES: usize = 5_000;
/// Largest message, and largest sum of those of one request, in bytes.
const MAX_MESSAGE_BYTES: usize = 128 * 1024;
const MAX_REQUEST_BYTES: usize = 32 * 1024 * 1024;
/// Other servers get what is larger in parts.
const MAX_OUTBOUND_BYTES: usize = 32 * 1024;
const MAX_TYPE_BYTES: usize = 255;
/// Every device of the user.
const ALL_DEVICES: &str = "*";

/// Contents by user and device (or `*`), as clients send them.
pub type Messages = BTreeMap<OwnedUserId, OfDevices>;
/// Contents of messages by device.
type OfDevices = BTreeMap<String, Map<String, Value>>;

/// Sends messages to devices.
pub struct ToDevice {
    deps: Deps,
    writer: Writer<ToDeviceStream>,
}

impl ToDevice {
    pub(crate) fn new(deps: &Deps) -> Self {
        let streams = &deps.streams;
        let writer = Writer::open(streams, &streams.to_device, &deps.pool, &deps.stop);
        Self { deps: deps.clone(), writer }
    }

    /// Sends `messages`. On return they are durable; a repeat of `txn_id` by the same device has
    /// no further effect. Users and devices that do not exist are passed over; those of other
    /// servers get theirs from their server.
    pub async fn send(
        &self,
        who: &Requester,
        kind: &str,
        txn_id: &str,
        messages: Messages,
    ) -> Result<()> {
        let device = who.device_id.as_ref().map_or("", |device| device.as_str());
        let txn = digest::of(&["to_device", who.user_id.as_str(), device, txn_id]);
        let mut rows = self.rows(&who.user_id, kind, txn, &messages).await?;
        self.add_outbound(&mut rows, who, kind, &messages)?;
        self.put(rows).await
    }

    /// Puts messages that `sender`, who is of another server, has sent into the inboxes of this
    /// server's devices. On return they are durable; a repeat of the id by the same server has no
    /// further effect.
    pub async fn receive(
        &self,
        sender: &UserId,
        kind: &str,
        message_id: &str,
        messages: Messages,
    ) -> Result<()> {
        let txn = digest::of(&["from_server", sender.server_name().as_str(), message_id]);
        let rows = self.rows(sender, kind, txn, &messages).await?;
        self.put(rows).await
    }

    /// What goes into the inboxes of this server's devices.
    async fn rows(
        &self,
        sender: &UserId,
        kind: &str,
        txn: Uuid,
        messages: &Messages,
    ) -> Result<Rows> {
        if kind.len() > MAX_TYPE_BYTES {
            return Err(Refusal::invalid_param("the event type is too long").into());
        }
        let devices = self.devices_of(messages).await?;
        let mut rows = Rows { txn, ..Rows::default() };
        for (user_id, contents) in messages {
            let Some((user, devices)) = devices.get(user_id.as_str()) else { continue };
            for (device, content) in contents {
                rows.add(sender, kind, *user, devices, device, content)?;
            }
        }
        Ok(rows)
    }

    /// Makes them durable, unless the request that they are of has been here before.
    async fn put(&self, rows: Rows) -> Result<()> {
        if rows.rows.is_empty() {
            return Ok(());
        }
        let now_ms = ts(self.deps.clock.now_ms());
        match self.writer.append(Send { messages: rows.rows, txn: Some(rows.txn), now_ms }).await {
            Err(error) if error.errcode() == Some(Refusal::REPEAT) => Ok(()),
            outcome => outcome,
        }
    }

    /// Adds what goes to other servers.
    fn add_outbound(
        &self,
        rows: &mut Rows,
        who: &Requester,
        kind: &str,
        messages: &Messages,
    ) -> Result<()> {
        let config = &self.deps.config;
        let mut by_server: BTreeMap<&ServerName, Vec<_>> = BTreeMap::new();
        for (user, contents) in messages {
            let server = user.server_name();
            if server != config.server_name && config.federation.may_talk_to(server) {
                by_server.entry(server).or_default().push((user, contents));
            }
        }
        for (server, users) in by_server {
            rows.add_outbound(who, kind, server, &users)?;
        }
        Ok(())
    }

    /// Devices of those users in `messages` that exist, in one query.
    async fn devices_of<'a>(
        &self,
        messages: &'a Messages,
    ) -> Result<HashMap<&'a str, (UserNid, Vec<String>)>> {
        let local = &self.deps.config.server_name;
        let names: Vec<&str> = messages
            .keys()
            .filter(|user| user.server_name() == *local)
            .map(|user| user.as_str())
            .collect();
        let nids = self.deps.interner.known_users(&names).await?;
        let known: Vec<UserNid> = nids.iter().copied().flatten().collect();
        if known.is_empty() {
            return Ok(HashMap::new());
        }
        let mut by_nid: HashMap<UserNid, Vec<String>> = HashMap::new();
        for (user, device) in keys::list_devices(&self.deps.pool, &known).await? {
            by_nid.entry(user).or_default().push(device);
        }
        let found = names.into_iter().zip(nids).filter_map(|(name, nid)| {
            let nid = nid?;
            Some((name, (nid, by_nid.remove(&nid)?)))
        });
        Ok(found.collect())
    }
}

/// Messages of one request, within its limits.
#[derive(Default)]
struct Rows {
    /// Digest of the request's transaction id.
    txn: Uuid,
    rows: Vec<ToDeviceRow>,
    bytes: usize,
}

impl Rows {
    /// Adds messages for users of one server, as few as their size allows.
    fn add_outbound(
        &mut self,
        who: &Requester,
        kind: &str,
        server: &ServerName,
        users: &[(&OwnedUserId, &OfDevices)],
    ) -> Result<()> {
        let mut part: BTreeMap<&OwnedUserId, BTreeMap<&String, &Map<String, Value>>> =
            BTreeMap::new();
        let mut bytes = 0;
        for (user, contents) in users {
            for (device, content) in *contents {
                let size = serde_json::to_string(content).map_err(Error::internal)?.len();
                if size > MAX_MESSAGE_BYTES {
                    return Err(Refusal::too_large("a message to a device is too large").into());
                }
                if bytes + size > MAX_OUTBOUND_BYTES && !part.is_empty() {
                    self.push_outbound(who, kind, server, &std::mem::take(&mut part))?;
                    bytes = 0;
                }
                bytes += size;
                part.entry(user).or_default().insert(device, content);
            }
        }
        if part.is_empty() { Ok(()) } else { self.push_outbound(who, kind, server, &part) }
    }

    fn push_outbound(
        &mut self,
        who: &Requester,
        kind: &str,
        server: &ServerName,
        messages: &BTreeMap<&OwnedUserId, BTreeMap<&String, &Map<String, Value>>>,
    ) -> Result<()> {
        let message = json!({
            "sender": who.user_id,
            "type": kind,
            // Of the request and the place in it, so that a message has one id whatever happens.
            "message_id": format!("{}-{}", self.txn.simple(), self.rows.len()),
            "messages": messages,
        });
        let message: Raw = to_raw_value(&message).map_err(Error::internal)?.into();
        self.bytes += message.get().len();
        if self.rows.len() >= MAX_MESSAGES || self.bytes > MAX_REQUEST_BYTES {
            return Err(Refusal::too_large("too many messages to devices").into());
        }
        self.rows.push(ToDeviceRow::outbound(server.to_owned(), message));
        Ok(())
    }

    fn add(
        &mut self,
        sender: &UserId,
        kind: &str,
        user: UserNid,
        devices: &[String],
        wanted: &str,
        content: &Map<String, Value>,
    ) -> Result<()> {
        let message = json!({ "sender": sender, "type": kind, "content": content });
        let message: Raw = to_raw_value(&message).map_err(Error::internal)?.into();
        let size = message.get().len();
        if size > MAX_MESSAGE_BYTES {
            return Err(Refusal::too_large("a message to a device is too large").into());
        }
        for device in devices.iter().filter(|id| wanted == ALL_DEVICES || *id == wanted) {
            self.bytes += size;
            if self.rows.len() >= MAX_MESSAGES || self.bytes > MAX_REQUEST_BYTES {
                return Err(Refusal::too_large("too many messages to devices").into());
            }
            let device_id = OwnedDeviceId::from(device.as_str());
            self.rows.push(ToDeviceRow::inbox(user, device_id, message.clone()));
        }
        Ok(())
    }
}
