//! The user's own data: account data of all kinds, and push rules.

use chatd_base::{Position, Result, RoomNid};
use chatd_storage::{Pool, account_data};
use chatd_streams::Raw;
use chatd_users::Users;
use serde_json::value::RawValue;

use crate::{
    json::Object,
    plan::{Asker, Plan, Rows},
};

/// Global account data: (type, content).
pub type Global = Vec<(String, Raw)>;

/// Reads what memory does not have: data of rooms goes to the rooms of `plan`, the rest is
/// returned, with the push rules among it if they are news.
pub async fn read(pool: &Pool, users: &Users, asker: &Asker, plan: &mut Plan) -> Result<Global> {
    let mut global = match std::mem::replace(&mut plan.account_data, Rows::Memory(Vec::new())) {
        Rows::Memory(rows) => {
            rows.iter().map(|row| (row.kind.clone(), row.content.clone())).collect()
        }
        Rows::Tables => from_tables(pool, asker, plan).await?,
    };
    if plan.push_rules.is_some() && asker.filter.account_data.allows_type("m.push_rules") {
        let content = users.push_rules.content(asker.user, &asker.user_id).await?;
        global.push(("m.push_rules".to_owned(), content));
    }
    global.retain(|(kind, _)| asker.filter.account_data.allows_type(kind));
    for room in plan.rooms.values_mut() {
        let filter = &asker.filter.room.account_data;
        let wants_room = filter.allows_room(&room.room_id);
        room.account_data.retain(|(kind, _)| wants_room && filter.allows_type(kind));
    }
    Ok(global)
}

async fn from_tables(pool: &Pool, asker: &Asker, plan: &mut Plan) -> Result<Global> {
    let since = plan.since.as_ref().map_or(Position(0), |since| since.account_data.min);
    // A room that is new to the client needs all of its data, however old that is.
    let after = if plan.arrived_in.is_empty() { since } else { Position(0) };
    let mut global = Global::new();
    for row in account_data::list(pool, asker.user, after).await? {
        let is_news = row.pos > since;
        let is_gone = plan.since.is_none() && row.content == "{}" && row.kind != "m.tag";
        let raw = RawValue::from_string(row.content).map_err(chatd_base::Error::internal)?;
        if row.room == RoomNid(0) {
            if is_news && !is_gone {
                global.push((row.kind, raw.into()));
            }
        } else if is_news && !is_gone || plan.arrived_in.contains(&row.room) {
            add_to_room(plan, asker, row.room, row.kind, raw.into());
        }
    }
    Ok(global)
}

fn add_to_room(plan: &mut Plan, asker: &Asker, room: RoomNid, kind: String, content: Raw) {
    if let Some(room) = plan.room_for_extras(asker, room) {
        room.account_data.push((kind, content));
    }
}

/// Appends `{"type", "content"}`.
pub fn write(out: &mut Vec<u8>, kind: &str, content: &RawValue) {
    let mut event = Object::begin(out);
    event.raw("content", content.get());
    event.value("type", kind);
    event.end();
}
