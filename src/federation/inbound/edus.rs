//! What passes: who types, who has read what, who is there, messages to devices, changes of device
//! lists. Everything is checked to be about users of the server that sends it, and goes to the
//! streams that it belongs to. Only what a sender may not lose fails the transaction.

use std::collections::{BTreeMap, HashMap};

use chatd_base::{Error, Result};
use chatd_rooms::acl;
use chatd_storage::remote_edus;
use chatd_streams::presence::PresenceState;
use chatd_users::{
    presence::{RemotePresence, parse_state},
    receipts::RemoteReceipt,
    remote_devices::{RemoteDevice, Update},
    to_device::Messages,
    typing::RemoteTyping,
};
use futures::{future, future::try_join_all};
use ruma_common::{OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::Inbound;

/// Receipts and presences of one transaction that are looked at (R8).
const MOST_RECEIPTS: usize = 2_000;
const MOST_PRESENCES: usize = 2_000;

#[derive(Deserialize)]
struct Edu {
    edu_type: String,
    content: Value,
}

#[derive(Deserialize)]
struct Typing {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    typing: bool,
}

/// Of one user and kind.
#[derive(Deserialize)]
struct Receipt {
    #[serde(default)]
    data: ReceiptData,
    event_ids: Vec<OwnedEventId>,
}

#[derive(Default, Deserialize)]
struct ReceiptData {
    #[serde(default)]
    ts: i64,
    #[serde(default)]
    thread_id: Option<String>,
}

/// By room, kind and user.
type Receipts = BTreeMap<OwnedRoomId, BTreeMap<String, BTreeMap<OwnedUserId, Receipt>>>;

#[derive(Deserialize)]
struct Presences {
    push: Vec<Presence>,
}

#[derive(Deserialize)]
struct Presence {
    user_id: OwnedUserId,
    presence: String,
    #[serde(default)]
    status_msg: Option<String>,
    #[serde(default)]
    last_active_ago: i64,
    #[serde(default)]
    currently_active: bool,
}

#[derive(Deserialize)]
struct ToDevice {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    kind: String,
    message_id: String,
    messages: Messages,
}

#[derive(Deserialize)]
struct DeviceListUpdate {
    user_id: OwnedUserId,
    stream_id: i64,
    #[serde(default)]
    prev_id: Vec<i64>,
    #[serde(flatten)]
    device: RemoteDevice,
    #[serde(default)]
    deleted: Option<bool>,
}

#[derive(Deserialize)]
struct SigningKeyUpdate {
    user_id: OwnedUserId,
    #[serde(default)]
    master_key: Option<Value>,
    #[serde(default)]
    self_signing_key: Option<Value>,
}

/// The EDUs of a transaction by what they are about.
#[derive(Default)]
struct Sorted {
    typing: Vec<RemoteTyping>,
    receipts: Vec<RemoteReceipt>,
    presence: Vec<RemotePresence>,
    messages: Vec<ToDevice>,
    updates: Vec<Update>,
}

/// What may be about the events that come with it.
pub(super) struct Passing {
    receipts: Vec<RemoteReceipt>,
    presence: Vec<RemotePresence>,
}

impl Inbound {
    /// Takes in EDUs. On return messages to devices and changes of device lists are durable. What
    /// follows the events of the transaction is returned for that.
    pub(super) async fn take_edus(&self, origin: &ServerName, edus: Vec<Value>) -> Result<Passing> {
        let mut sorted = Sorted::default();
        for edu in edus {
            if let Err(why) = sorted.take(edu, origin, self.now_ms()) {
                tracing::debug!(server.name = %origin, why, "an EDU is passed over");
            }
        }
        self.without_closed(origin, &mut sorted).await?;
        let Sorted { typing, receipts, presence, messages, updates } = sorted;
        let lasting =
            future::try_join(self.take_messages(messages), self.update_devices(origin, updates));
        let (lasting, ()) = future::join(lasting, self.set_typing(typing)).await;
        lasting.map(|_| Passing { receipts, presence })
    }

    /// Takes in what a transaction tells beside its events, when these have their place.
    pub(super) async fn take_passing(&self, passing: Passing) {
        let Passing { receipts, presence } = passing;
        future::join(self.set_receipts(receipts), self.set_presence(presence)).await;
    }

    /// Leaves out what is about rooms that keep the server out; one query.
    async fn without_closed(&self, origin: &ServerName, sorted: &mut Sorted) -> Result<()> {
        let mut rooms: Vec<&str> = sorted
            .typing
            .iter()
            .map(|typing| typing.room_id.as_str())
            .chain(sorted.receipts.iter().map(|receipt| receipt.room_id.as_str()))
            .collect();
        rooms.sort_unstable();
        rooms.dedup();
        if rooms.is_empty() {
            return Ok(());
        }
        let acls = remote_edus::list_acls(&self.0.pool, &rooms).await.map_err(Error::from)?;
        let admits: HashMap<String, bool> =
            acls.into_iter().map(|(room, content)| (room, acl::admits(&content, origin))).collect();
        let is_open = |room: &OwnedRoomId| admits.get(room.as_str()).copied().unwrap_or(true);
        sorted.typing.retain(|typing| is_open(&typing.room_id));
        sorted.receipts.retain(|receipt| is_open(&receipt.room_id));
        Ok(())
    }

    async fn set_typing(&self, typing: Vec<RemoteTyping>) {
        if !typing.is_empty() {
            told(self.0.users.typing.set_remote(typing).await, "typing");
        }
    }

    async fn set_receipts(&self, receipts: Vec<RemoteReceipt>) {
        if !receipts.is_empty() {
            told(self.0.users.receipts.set_remote(receipts).await, "receipts");
        }
    }

    async fn set_presence(&self, presence: Vec<RemotePresence>) {
        if !presence.is_empty() {
            told(self.0.users.presence.set_remote(presence).await, "presence");
        }
    }

    /// Those of one sender in their order: they may be steps of a talk.
    async fn take_messages(&self, messages: Vec<ToDevice>) -> Result<()> {
        let mut by_sender: BTreeMap<OwnedUserId, Vec<ToDevice>> = BTreeMap::new();
        for message in messages {
            by_sender.entry(message.sender.clone()).or_default().push(message);
        }
        let taken = by_sender.into_values().map(|messages| async move {
            for message in messages {
                self.take_message(message).await?;
            }
            Ok::<(), Error>(())
        });
        try_join_all(taken.collect::<Vec<_>>()).await.map(drop)
    }

    async fn take_message(&self, message: ToDevice) -> Result<()> {
        let ToDevice { sender, kind, message_id, messages } = message;
        match self.0.users.to_device.receive(&sender, &kind, &message_id, messages).await {
            Err(Error::Refused(why)) if why.status < 500 => {
                tracing::info!(user.id = %sender, %why, "messages to devices are refused");
                Ok(())
            }
            outcome => outcome,
        }
    }
}

/// What passes may be lost; it comes again.
fn told(outcome: Result<()>, what: &'static str) {
    if let Err(error) = outcome {
        tracing::warn!(%error, what, "what another server has told is lost");
    }
}

impl Sorted {
    fn take(&mut self, edu: Value, origin: &ServerName, now_ms: i64) -> Result<(), String> {
        let Edu { edu_type, content } = parse(edu)?;
        match edu_type.as_str() {
            "m.typing" => {
                let Typing { room_id, user_id, typing } = parse(content)?;
                let user_id = of(user_id, origin)?;
                self.typing.push(RemoteTyping { room_id, user_id, is_typing: typing });
            }
            "m.receipt" => self.take_receipts(parse(content)?, origin),
            "m.presence" => {
                let Presences { push } = parse(content)?;
                for presence in push.into_iter().take(MOST_PRESENCES) {
                    self.presence.push(presence.told(origin, now_ms)?);
                }
            }
            "m.direct_to_device" => {
                let message: ToDevice = parse(content)?;
                of(message.sender.clone(), origin)?;
                self.messages.push(message);
            }
            "m.device_list_update" => {
                let update: DeviceListUpdate = parse(content)?;
                self.updates.push(Update::Device {
                    user_id: of(update.user_id, origin)?,
                    stream_id: update.stream_id,
                    prev_id: update.prev_id,
                    device: update.device,
                    deleted: update.deleted.unwrap_or_default(),
                });
            }
            "m.signing_key_update" | "org.matrix.signing_key_update" => {
                let update: SigningKeyUpdate = parse(content)?;
                self.updates.push(Update::CrossSigning {
                    user_id: of(update.user_id, origin)?,
                    master_key: update.master_key,
                    self_signing_key: update.self_signing_key,
                });
            }
            other => return Err(format!("`{other}` is not known")),
        }
        Ok(())
    }

    fn take_receipts(&mut self, receipts: Receipts, origin: &ServerName) {
        for (room_id, kinds) in receipts {
            let read = kinds.into_iter().filter(|(kind, _)| kind == "m.read");
            for (user_id, receipt) in read.flat_map(|(_, users)| users) {
                let last = receipt.event_ids.into_iter().next_back();
                let is_theirs = user_id.server_name() == origin;
                let (Some(event_id), true) = (last, is_theirs) else { continue };
                let ReceiptData { ts, thread_id: thread } = receipt.data;
                let room_id = room_id.clone();
                let receipt = RemoteReceipt { room_id, user_id, event_id, thread, ts };
                if receipt.is_sound() && self.receipts.len() < MOST_RECEIPTS {
                    self.receipts.push(receipt);
                }
            }
        }
    }
}

impl Presence {
    fn told(self, origin: &ServerName, now_ms: i64) -> Result<RemotePresence, String> {
        let state: PresenceState = parse_state(&self.presence).map_err(|why| why.to_string())?;
        Ok(RemotePresence {
            user_id: of(self.user_id, origin)?,
            state,
            status_msg: self.status_msg,
            currently_active: self.currently_active,
            last_active_ts: now_ms.saturating_sub(self.last_active_ago.max(0)),
        })
    }
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// Refuses users of other servers than the sender.
fn of(user: OwnedUserId, origin: &ServerName) -> Result<OwnedUserId, String> {
    match user.server_name() == origin {
        true => Ok(user),
        false => Err(format!("{user} is not a user of {origin}")),
    }
}
