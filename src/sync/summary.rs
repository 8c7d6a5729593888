//! Who is in a room, in short: counts, and the heroes that stand for a missing name.

use std::{collections::BTreeMap, sync::Arc};

use chatd_base::{Result, RoomNid};
use chatd_storage::{Pool, sync::SummaryRow};

use crate::{
    index::Index,
    json::Object,
    plan::{Asker, Plan, Section, Source},
    timeline::Timelines,
};

/// Members that stand for a room without a name.
const HEROES: usize = 5;

/// Summaries of the rooms whose members changed, or that are new to the client. One query for
/// all that memory does not have.
pub async fn read(
    pool: &Pool,
    index: &Index,
    asker: &Asker,
    plan: &Plan,
    timelines: &Timelines,
) -> Result<BTreeMap<RoomNid, Arc<SummaryRow>>> {
    let wanted: Vec<RoomNid> = plan
        .rooms
        .values()
        .filter(|room| room.section == Section::Join)
        .filter(|room| {
            let from_tables = || {
                timelines.by_room.get(&room.room).is_some_and(|timeline| {
                    let mut events = timeline.events.iter();
                    timeline.limited || events.any(|shown| &*shown.event.kind == "m.room.member")
                })
            };
            room.is_new
                || room.is_completed
                || asker.full_state
                || match &room.source {
                    Source::Nothing => false,
                    Source::Memory(live) => {
                        live.iter().any(|live| live.memberships().next().is_some())
                    }
                    Source::Tables => from_tables(),
                }
        })
        .map(|room| room.room)
        .collect();
    let (mut summaries, missing, seen) = {
        let state = index.lock();
        let known: BTreeMap<RoomNid, Arc<SummaryRow>> = wanted
            .iter()
            .filter_map(|room| Some((*room, state.summaries.get(room)?.clone())))
            .collect();
        let missing: Vec<RoomNid> =
            wanted.iter().filter(|room| !known.contains_key(room)).copied().collect();
        (known, missing, state.membership_changes)
    };
    if !missing.is_empty() {
        let rows = chatd_storage::sync::list_summaries(pool, &missing).await?;
        let mut state = index.lock();
        for row in rows {
            let row = Arc::new(row);
            state.keep_summary(seen, row.clone());
            summaries.insert(row.room, row);
        }
    }
    Ok(summaries)
}

/// The members that stand for the room, seen by `asker`.
pub fn heroes<'a>(summary: &'a SummaryRow, asker: &Asker) -> Vec<&'a str> {
    if summary.has_name {
        return Vec::new();
    }
    let others = |users: &'a [String]| -> Vec<&'a str> {
        let others = users.iter().map(String::as_str);
        others.filter(|user| *user != asker.user_id.as_str()).take(HEROES).collect()
    };
    let members = others(&summary.first_members);
    if members.is_empty() { others(&summary.first_gone) } else { members }
}

/// Appends the member `summary`.
pub fn write(room: &mut Object<'_>, summary: &SummaryRow, asker: &Asker) {
    let mut out = room.object("summary");
    if !summary.has_name {
        out.value("m.heroes", &heroes(summary, asker));
    }
    out.value("m.invited_member_count", &summary.invited);
    out.value("m.joined_member_count", &summary.joined);
    out.end();
}
