//! What is told of a room besides its events: who types, who has read what.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chatd_base::{Position, Result, RoomNid, UserNid};
use chatd_storage::{Interner, Pool, receipts};
use chatd_streams::receipts::ReceiptRow;
use serde::Serialize;

use crate::{
    json::{self, Object},
    plan::{Asker, Plan, RoomPlan},
};

/// Adds the receipts that memory does not have to the rooms of `plan`: two queries at most.
pub async fn read(pool: &Pool, interner: &Interner, asker: &Asker, plan: &mut Plan) -> Result<()> {
    let from_tables = plan.new_receipts_from_tables || plan.known_receipts_from_tables;
    if !from_tables || !asker.filter.room.ephemeral.allows_type("m.receipt") {
        return Ok(());
    }
    let is_new = |room: &RoomNid| plan.rooms.get(room).is_some_and(|room| room.is_new);
    let (new, known): (Vec<RoomNid>, Vec<RoomNid>) = plan.joined().into_iter().partition(is_new);
    let mut found = Vec::new();
    if !new.is_empty() {
        found.extend(receipts::list(pool, &new, Position(0)).await?);
    }
    if let Some(since) = &plan.since
        && plan.known_receipts_from_tables
        && !known.is_empty()
    {
        found.extend(receipts::list(pool, &known, since.receipts.min).await?);
    }
    found.retain(|receipt| !receipt.is_private || receipt.user == asker.user);
    let users: Vec<UserNid> = found.iter().map(|receipt| receipt.user).collect();
    let names = interner.user_names(&users).await?;
    for (receipt, name) in found.into_iter().zip(names) {
        let Some(room) = plan.room_for_extras(asker, receipt.room) else { continue };
        if let Some(row) = name.and_then(|name| row(room, receipt, &name)) {
            room.receipts.push(Arc::new(row));
        }
    }
    Ok(())
}

fn row(room: &RoomPlan, stored: receipts::Stored, user_id: &str) -> Option<ReceiptRow> {
    Some(ReceiptRow {
        room: stored.room,
        room_id: room.room_id.clone(),
        user: stored.user,
        user_id: user_id.try_into().ok()?,
        is_private: stored.is_private,
        thread: Some(stored.thread).filter(|thread| !thread.is_empty()),
        event_id: stored.event_id.try_into().ok()?,
        event_pos: stored.event_pos,
        ts: stored.ts,
    })
}

/// Whether [`write`] would write anything.
pub fn is_empty(room: &RoomPlan, asker: &Asker) -> bool {
    let filter = &asker.filter.room.ephemeral;
    let typing = room.typing.is_some() && filter.allows_type("m.typing");
    let receipts = !room.receipts.is_empty() && filter.allows_type("m.receipt");
    !(typing || receipts) || !filter.allows_room(&room.room_id)
}

/// Appends the member `ephemeral`.
pub fn write(out: &mut Object<'_>, room: &RoomPlan, asker: &Asker) {
    let mut events: Vec<Vec<u8>> = Vec::new();
    let filter = &asker.filter.room.ephemeral;
    if !is_empty(room, asker) {
        if let Some(typing) = room.typing.as_ref().filter(|_| filter.allows_type("m.typing")) {
            #[derive(Serialize)]
            struct Content<'a, T> {
                user_ids: &'a T,
            }
            events.push(event("m.typing", &Content { user_ids: &typing.users }));
        }
        if filter.allows_type("m.receipt") {
            events.extend(contents(&room.receipts).iter().map(|c| event("m.receipt", c)));
        }
    }
    out.events("ephemeral", events, |out, event| out.extend_from_slice(&event));
}

fn event(kind: &str, content: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut event = Object::begin(&mut out);
    json::write(event.member("content"), content);
    event.value("type", kind);
    event.end();
    out
}

#[derive(Debug, PartialEq, Serialize)]
struct Receipt<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<&'a str>,
    ts: i64,
}

/// Event → kind → user → receipt.
type Content<'a> = BTreeMap<&'a str, BTreeMap<&'static str, BTreeMap<&'a str, Receipt<'a>>>>;

/// The newest receipt of each user, kind and thread, as contents of `m.receipt`. A user with
/// receipts of several threads at one event needs several of them.
fn contents(rows: &[Arc<ReceiptRow>]) -> Vec<Content<'_>> {
    let mut newest: HashMap<(UserNid, bool, Option<&str>), &ReceiptRow> = HashMap::new();
    for row in rows {
        let newest = newest.entry((row.user, row.is_private, row.thread.as_deref())).or_insert(row);
        if newest.event_pos < row.event_pos {
            *newest = row;
        }
    }
    let mut rows: Vec<&ReceiptRow> = newest.into_values().collect();
    rows.sort_by(|a, b| (&a.user_id, &a.thread).cmp(&(&b.user_id, &b.thread)));
    let mut contents: Vec<Content<'_>> = Vec::new();
    for row in rows {
        let kind = if row.is_private { "m.read.private" } else { "m.read" };
        let is_free = |content: &Content<'_>| {
            let users = content.get(row.event_id.as_str()).and_then(|kinds| kinds.get(kind));
            users.is_none_or(|users| !users.contains_key(row.user_id.as_str()))
        };
        let index = contents.iter().position(is_free).unwrap_or_else(|| {
            contents.push(Content::new());
            contents.len() - 1
        });
        let kinds = contents[index].entry(row.event_id.as_str()).or_default();
        let receipt = Receipt { thread_id: row.thread.as_deref(), ts: row.ts };
        kinds.entry(kind).or_default().insert(row.user_id.as_str(), receipt);
    }
    contents
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn receipt(user: i32, event: &str, thread: Option<&str>, ts: i64) -> Arc<ReceiptRow> {
        Arc::new(ReceiptRow {
            room: RoomNid(1),
            room_id: "!r:x".try_into().unwrap(),
            user: UserNid(user),
            user_id: format!("@u{user}:x").try_into().unwrap(),
            is_private: false,
            thread: thread.map(str::to_owned),
            event_id: event.try_into().unwrap(),
            event_pos: Position(ts),
            ts,
        })
    }

    #[test]
    fn the_newest_receipt_of_each_thread_is_told() {
        let rows = [
            receipt(1, "$1", None, 1),
            receipt(1, "$2", None, 2),
            receipt(1, "$2", Some("main"), 3),
            receipt(2, "$2", None, 4),
            // Of another writer, and later only there.
            receipt(2, "$1", None, 1),
        ];
        let contents = serde_json::to_value(contents(&rows)).unwrap();
        assert_eq!(
            contents,
            json!([
                {"$2": {"m.read": {"@u1:x": {"ts": 2}, "@u2:x": {"ts": 4}}}},
                {"$2": {"m.read": {"@u1:x": {"ts": 3, "thread_id": "main"}}}},
            ])
        );
    }
}
