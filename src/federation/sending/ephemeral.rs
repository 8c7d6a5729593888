//! What is worth telling only while it is true: receipts, typing, presence. Of each the newest is
//! kept. A server that does not answer gets nothing but the receipts, when it has the events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chatd_base::Position;
use chatd_streams::{presence::PresenceRow, receipts::ReceiptRow};
use ruma_common::{OwnedRoomId, OwnedUserId};
use serde_json::{Map, Value, json};

use super::inbox::At;

/// Facts of one kind that wait for one server (R8); further ones are dropped.
const MOST: usize = 1_000;
/// Users in one `m.presence`.
const MOST_IN_PRESENCE: usize = 50;

/// A receipt: whose, where, and in which thread.
type ReceiptKey = (OwnedRoomId, OwnedUserId, Option<String>);

/// The position of the oldest receipt and of the oldest presence that may not have been told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Oldest {
    pub receipt: Option<Position>,
    pub presence: Option<Position>,
}

impl Oldest {
    /// Of both.
    pub(super) fn and(self, other: Self) -> Self {
        let least = |a: Option<Position>, b: Option<Position>| a.into_iter().chain(b).min();
        Self {
            receipt: least(self.receipt, other.receipt),
            presence: least(self.presence, other.presence),
        }
    }
}

/// What waits for one server.
#[derive(Debug, Default)]
pub(super) struct Ephemeral {
    receipts: BTreeMap<ReceiptKey, Arc<At<ReceiptRow>>>,
    typing: BTreeMap<(OwnedRoomId, OwnedUserId), bool>,
    presence: BTreeMap<OwnedUserId, Arc<At<PresenceRow>>>,
    /// Receipts that are in the transaction that is under way, and the oldest presence.
    under_way: Vec<Arc<At<ReceiptRow>>>,
    presence_under_way: Option<Position>,
}

fn key_of(receipt: &At<ReceiptRow>) -> ReceiptKey {
    let row = &receipt.row;
    (row.room_id.clone(), row.user_id.clone(), row.thread.clone())
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V) {
    if map.len() < MOST || map.contains_key(&key) {
        map.insert(key, value);
    }
}

impl Ephemeral {
    pub(super) fn is_empty(&self) -> bool {
        self.receipts.is_empty() && self.typing.is_empty() && self.presence.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps no more than receipts.
    pub(super) fn keep_receipts(&mut self) {
        self.typing.clear();
        self.presence.clear();
    }

    /// What was under way has arrived.
    pub(super) fn accepted(&mut self) {
        self.under_way.clear();
        self.presence_under_way = None;
    }

    /// Nobody knows whether what was under way has arrived: receipts are told again.
    pub(super) fn failed(&mut self) {
        self.presence_under_way = None;
        for receipt in std::mem::take(&mut self.under_way) {
            let key = key_of(&receipt);
            if !self.receipts.contains_key(&key) {
                put(&mut self.receipts, key, receipt);
            }
        }
    }

    /// What may not have been told.
    pub(super) fn oldest(&self) -> Oldest {
        let receipts = self.receipts.values().chain(&self.under_way);
        let presence = self.presence.values().map(|presence| presence.at);
        Oldest {
            receipt: receipts.map(|receipt| receipt.at).min(),
            presence: presence.chain(self.presence_under_way).min(),
        }
    }

    /// Adds a receipt, which replaces an earlier one.
    pub(super) fn add_receipt(&mut self, receipt: &Arc<At<ReceiptRow>>) {
        put(&mut self.receipts, key_of(receipt), receipt.clone());
    }

    /// Adds that somebody types, or does not any more.
    pub(super) fn add_typing(&mut self, room: &OwnedRoomId, user: &OwnedUserId, types: bool) {
        put(&mut self.typing, (room.clone(), user.clone()), types);
    }

    /// Adds somebody's presence, which replaces an earlier one.
    pub(super) fn add_presence(&mut self, presence: &Arc<At<PresenceRow>>) {
        put(&mut self.presence, presence.row.user_id.clone(), presence.clone());
    }

    /// Takes up to `limit` EDUs. Receipts are left unless the server `has_events` that they are of.
    pub(super) fn take(&mut self, limit: usize, has_events: bool, now_ms: u64) -> Vec<String> {
        let mut edus = Vec::new();
        while has_events && edus.len() < limit && !self.receipts.is_empty() {
            edus.push(edu("m.receipt", &self.take_receipts()));
        }
        while edus.len() < limit && !self.presence.is_empty() {
            edus.push(edu("m.presence", &self.take_presence(now_ms)));
        }
        while edus.len() < limit
            && let Some(((room_id, user_id), typing)) = self.typing.pop_first()
        {
            let content = json!({ "room_id": room_id, "user_id": user_id, "typing": typing });
            edus.push(edu("m.typing", &content));
        }
        edus
    }

    /// As many receipts as fit together: one of each user in each room.
    fn take_receipts(&mut self) -> Value {
        let mut seen: BTreeSet<(OwnedRoomId, OwnedUserId)> = BTreeSet::new();
        let mut content: BTreeMap<OwnedRoomId, BTreeMap<&str, Map<String, Value>>> =
            BTreeMap::new();
        for ((room, user, thread), receipt) in std::mem::take(&mut self.receipts) {
            if !seen.insert((room.clone(), user.clone())) {
                self.receipts.insert((room, user, thread), receipt);
                continue;
            }
            let row = &receipt.row;
            let mut data = json!({ "ts": row.ts });
            if let Some(thread) = thread {
                data["thread_id"] = thread.into();
            }
            let told = json!({ "event_ids": [row.event_id], "data": data });
            let of_room = content.entry(room).or_default();
            of_room.entry("m.read").or_default().insert(user.to_string(), told);
            self.under_way.push(receipt);
        }
        json!(content)
    }

    fn take_presence(&mut self, now_ms: u64) -> Value {
        let mut push = Vec::new();
        while push.len() < MOST_IN_PRESENCE
            && let Some((user_id, presence)) = self.presence.pop_first()
        {
            let under_way = self.presence_under_way.into_iter();
            self.presence_under_way = under_way.chain([presence.at]).min();
            let row = &presence.row;
            let last = u64::try_from(row.last_active_ts).unwrap_or_default();
            let mut one = json!({
                "user_id": user_id,
                "presence": row.state.as_str(),
                "currently_active": row.currently_active,
            });
            if last > 0 {
                one["last_active_ago"] = now_ms.saturating_sub(last).into();
            }
            if let Some(status) = &row.status_msg {
                one["status_msg"] = status.as_str().into();
            }
            push.push(one);
        }
        json!({ "push": push })
    }
}

/// An EDU as it stands in a transaction.
pub(super) fn edu(kind: &str, content: &Value) -> String {
    json!({ "edu_type": kind, "content": content }).to_string()
}

#[cfg(test)]
mod tests {
    use chatd_base::{Position, RoomNid, UserNid};

    use super::*;

    fn receipt(user: &str, thread: Option<&str>, event: &str) -> Arc<At<ReceiptRow>> {
        let row = ReceiptRow {
            room: RoomNid(1),
            room_id: "!r:a".try_into().unwrap(),
            user: UserNid(1),
            user_id: user.try_into().unwrap(),
            is_private: false,
            thread: thread.map(str::to_owned),
            event_id: event.try_into().unwrap(),
            event_pos: Position(1),
            ts: 7,
        };
        Arc::new(At { at: Position(3), row })
    }

    #[test]
    fn receipts_wait_for_the_events_and_come_again() {
        let mut waiting = Ephemeral::default();
        waiting.add_receipt(&receipt("@a:a", None, "$1"));
        waiting.add_typing(&"!r:a".try_into().unwrap(), &"@a:a".try_into().unwrap(), true);
        assert_eq!(waiting.take(9, false, 0).len(), 1, "that somebody types");
        assert_eq!(waiting.take(9, true, 0).len(), 1);
        assert!(waiting.is_empty());
        assert_eq!(waiting.oldest().receipt, Some(Position(3)));
        waiting.failed();
        waiting.keep_receipts();
        let edus = waiting.take(9, true, 0);
        assert!(edus[0].contains("$1"), "{edus:?}");
        waiting.accepted();
        assert_eq!((waiting.is_empty(), waiting.oldest()), (true, Oldest::default()));
    }

    #[test]
    fn the_newest_receipt_of_each_thread_is_told() {
        let mut waiting = Ephemeral::default();
        for (user, thread, event) in [
            ("@a:a", None, "$1"),
            ("@a:a", None, "$2"),
            ("@a:a", Some("$t"), "$3"),
            ("@b:a", None, "$4"),
        ] {
            waiting.add_receipt(&receipt(user, thread, event));
        }
        let edus: Vec<Value> =
            waiting.take(9, true, 0).iter().map(|edu| serde_json::from_str(edu).unwrap()).collect();
        assert_eq!(edus.len(), 2, "a user has one place in an EDU");
        let read = |edu: usize, user: &str| edus[edu]["content"]["!r:a"]["m.read"][user].clone();
        assert_eq!(read(0, "@a:a"), json!({ "event_ids": ["$2"], "data": { "ts": 7 } }));
        assert_eq!(read(0, "@b:a")["event_ids"], json!(["$4"]));
        assert_eq!(read(1, "@a:a")["data"], json!({ "ts": 7, "thread_id": "$t" }));
        assert!(waiting.is_empty());
    }
}
