//! What is worth telling only while it is true: receipts, typing, presence. Of each the newest is
//! kept, and nothing at all for a server that does not answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chatd_streams::{presence::PresenceRow, receipts::ReceiptRow};
use ruma_common::{OwnedRoomId, OwnedUserId};
use serde_json::{Map, Value, json};

/// Facts of one kind that wait for one server (R8); further ones are dropped.
const MOST: usize = 1_000;
/// Users in one `m.presence`.
const MOST_IN_PRESENCE: usize = 50;

/// A receipt: whose, where, and in which thread.
type ReceiptKey = (OwnedRoomId, OwnedUserId, Option<String>);

/// What waits for one server.
#[derive(Debug, Default)]
pub(super) struct Ephemeral {
    receipts: BTreeMap<ReceiptKey, Arc<ReceiptRow>>,
    typing: BTreeMap<(OwnedRoomId, OwnedUserId), bool>,
    presence: BTreeMap<OwnedUserId, Arc<PresenceRow>>,
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

    /// Adds a receipt, which replaces an earlier one.
    pub(super) fn add_receipt(&mut self, row: &Arc<ReceiptRow>) {
        let key = (row.room_id.clone(), row.user_id.clone(), row.thread.clone());
        put(&mut self.receipts, key, row.clone());
    }

    /// Adds that somebody types, or does not any more.
    pub(super) fn add_typing(&mut self, room: &OwnedRoomId, user: &OwnedUserId, types: bool) {
        put(&mut self.typing, (room.clone(), user.clone()), types);
    }

    /// Adds somebody's presence, which replaces an earlier one.
    pub(super) fn add_presence(&mut self, row: &Arc<PresenceRow>) {
        put(&mut self.presence, row.user_id.clone(), row.clone());
    }

    /// Takes up to `limit` EDUs.
    pub(super) fn take(&mut self, limit: usize, now_ms: u64) -> Vec<String> {
        let mut edus = Vec::new();
        while edus.len() < limit && !self.receipts.is_empty() {
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
        for ((room, user, thread), row) in std::mem::take(&mut self.receipts) {
            if !seen.insert((room.clone(), user.clone())) {
                self.receipts.insert((room, user, thread), row);
                continue;
            }
            let mut data = json!({ "ts": row.ts });
            if let Some(thread) = thread {
                data["thread_id"] = thread.into();
            }
            let receipt = json!({ "event_ids": [row.event_id], "data": data });
            let of_room = content.entry(room).or_default();
            of_room.entry("m.read").or_default().insert(user.to_string(), receipt);
        }
        json!(content)
    }

    fn take_presence(&mut self, now_ms: u64) -> Value {
        let mut push = Vec::new();
        while push.len() < MOST_IN_PRESENCE
            && let Some((user_id, row)) = self.presence.pop_first()
        {
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

    fn receipt(user: &str, thread: Option<&str>, event: &str) -> Arc<ReceiptRow> {
        Arc::new(ReceiptRow {
            room: RoomNid(1),
            room_id: "!r:a".try_into().unwrap(),
            user: UserNid(1),
            user_id: user.try_into().unwrap(),
            is_private: false,
            thread: thread.map(str::to_owned),
            event_id: event.try_into().unwrap(),
            event_pos: Position(1),
            ts: 7,
        })
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
            waiting.take(9, 0).iter().map(|edu| serde_json::from_str(edu).unwrap()).collect();
        assert_eq!(edus.len(), 2, "a user has one place in an EDU");
        let read = |edu: usize, user: &str| edus[edu]["content"]["!r:a"]["m.read"][user].clone();
        assert_eq!(read(0, "@a:a"), json!({ "event_ids": ["$2"], "data": { "ts": 7 } }));
        assert_eq!(read(0, "@b:a")["event_ids"], json!(["$4"]));
        assert_eq!(read(1, "@a:a")["data"], json!({ "ts": 7, "thread_id": "$t" }));
        assert!(waiting.is_empty());
    }
}
