//! The events of an interval, room by room: from memory where it reaches back far enough, else
//! from the tables with one query for all rooms.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use chatd_base::{Position, Result, RoomNid};
use chatd_rooms::{client_event::Bundles, filter::EventFilter, visibility::Lens};
use chatd_storage::{
    Pool,
    events::{self, Between, End, Span, StoredEvent, Which},
};
use chatd_streams::{StreamToken, events::Membership};
use ruma_common::OwnedUserId;

use crate::{
    index::Live,
    plan::{Asker, Plan, RoomPlan, Section, Source},
};

/// An event with the asker's membership when it happened.
#[derive(Clone, Debug)]
pub struct Shown {
    pub event: Arc<StoredEvent>,
    pub membership: Membership,
}

/// The part of a room's timeline that an answer shows.
#[derive(Debug)]
pub struct Timeline {
    /// Oldest first.
    pub events: Vec<Shown>,
    /// Whether the interval holds more, older events that the filter lets pass.
    pub limited: bool,
    /// The point before the first event, or the end of the interval if there is none.
    pub start: Position,
    /// All events of the interval, if memory has them.
    pub live: Option<Vec<Live>>,
}

impl Timeline {
    pub(crate) fn nothing(plan: &RoomPlan) -> Self {
        Self { events: Vec::new(), limited: false, start: plan.high, live: Some(Vec::new()) }
    }

    pub fn contains(&self, event: &StoredEvent) -> bool {
        self.events.iter().any(|shown| shown.event.nid == event.nid)
    }
}

/// All timelines of an answer.
#[derive(Debug, Default)]
pub struct Timelines {
    pub by_room: BTreeMap<RoomNid, Timeline>,
    /// What is bundled with their events.
    pub bundles: Bundles,
}

/// Reads the timelines of `plan`: no query if memory has all of them.
pub async fn read(pool: &Pool, asker: &Asker, plan: &Plan, limit: usize) -> Result<Timelines> {
    let wanted = |room: &RoomPlan| asker.filter.room.timeline.allows_room(&room.room_id);
    let filter = &asker.filter.room.timeline;
    let mut by_room = BTreeMap::new();
    let mut from_tables = Vec::new();
    for room in plan.rooms.values() {
        match &room.source {
            _ if !wanted(room) => {
                by_room.insert(room.room, Timeline::nothing(room));
            }
            Source::Nothing => {
                by_room.insert(room.room, Timeline::nothing(room));
            }
            Source::Memory(live) if is_enough(live, asker) => {
                by_room.insert(room.room, from_memory(room, live, filter, &plan.ignored, limit));
            }
            Source::Memory(_) | Source::Tables => from_tables.push(room),
        }
    }
    let mut bundles = Bundles::default();
    if !from_tables.is_empty() {
        let read = read_tables(pool, asker, plan, &from_tables, limit).await?;
        let shown: Vec<Arc<StoredEvent>> =
            read.values().flat_map(|t| t.events.iter().map(|shown| shown.event.clone())).collect();
        bundles = chatd_rooms::bundle::load(pool, asker.user, &shown).await?;
        by_room.extend(read);
    }
    Ok(Timelines { by_room, bundles })
}

/// Whether events in memory are what the client must get: not if one of them is not any more what
/// it was, nor if the filter asks for what memory does not know.
fn is_enough(live: &[Live], asker: &Asker) -> bool {
    let filter = &asker.filter;
    live.iter().all(|live| !live.altered) && !filter.room.timeline.needs_relations()
}

fn from_memory(
    plan: &RoomPlan,
    live: &[Live],
    filter: &EventFilter,
    ignored: &HashSet<OwnedUserId>,
    limit: usize,
) -> Timeline {
    let wanted = |live: &&Live| !live.row.hidden && filter.allows(&live.event);
    let mut newest: Vec<&Live> =
        live.iter().rev().filter(wanted).take(limit.saturating_add(1)).collect();
    let limited = newest.len() > limit;
    newest.truncate(limit);
    let start = newest.last().map_or(plan.high, |first| before(first.event.pos));
    let events = newest
        .into_iter()
        .rev()
        .filter(|live| is_welcome(&live.event, ignored))
        .map(|live| Shown { event: live.event.clone(), membership: Membership::Join })
        .collect();
    Timeline { events, limited, start, live: Some(live.to_vec()) }
}

/// The point just before the event at `position`.
fn before(position: Position) -> Position {
    Position(position.0 - 1)
}

/// Messages of users who are ignored are left out; state is not.
fn is_welcome(event: &StoredEvent, ignored: &HashSet<OwnedUserId>) -> bool {
    event.state_key.is_some() || ignored.is_empty() || !ignored.contains(&event.sender)
}

/// What lies between the tokens of two syncs; `None` where spans of positions say it.
fn between(since: Option<&StreamToken>, now: &StreamToken) -> Option<Between> {
    let start = StreamToken::default();
    let since = since.unwrap_or(&start);
    let mut writers: Vec<_> =
        since.ahead.iter().chain(&now.ahead).map(|(writer, _)| *writer).collect();
    if writers.is_empty() {
        return None;
    }
    writers.sort_unstable();
    writers.dedup();
    Some(Between {
        lows: writers.iter().map(|writer| since.of(*writer).0).collect(),
        highs: writers.iter().map(|writer| now.of(*writer).0).collect(),
        writers: writers.into_iter().map(|writer| writer.0).collect(),
        low: since.min.0,
        high: now.min.0,
    })
}

async fn read_tables(
    pool: &Pool,
    asker: &Asker,
    plan: &Plan,
    plans: &[&RoomPlan],
    limit: usize,
) -> Result<BTreeMap<RoomNid, Timeline>> {
    let spans: Vec<Span> =
        plans.iter().map(|p| Span { room: p.room, low: p.low, high: p.high }).collect();
    let filter = asker.filter.room.timeline.to_storage();
    let between = between(plan.since.as_ref().map(|since| &since.room), &plan.now.room);
    let (ignored, most) = (&plan.ignored, limit.saturating_add(1));
    let which = Which::Streamed;
    let found =
        events::list_timelines(pool, &spans, which, End::Newest, most, &filter, between.as_ref())
            .await?;
    let mut newest: HashMap<RoomNid, Vec<Arc<StoredEvent>>> = HashMap::new();
    for event in found {
        newest.entry(event.room).or_default().push(event);
    }
    // Who was in the room all the time sees everything; for the others history decides.
    let strangers: Vec<RoomNid> = plans
        .iter()
        .filter(|plan| plan.is_new || plan.section == Section::Leave)
        .map(|plan| plan.room)
        .collect();
    let lenses = if strangers.is_empty() {
        Vec::new()
    } else {
        Lens::of_many(pool, asker.user, &strangers).await?
    };
    let lenses: HashMap<RoomNid, Lens> = lenses.into_iter().map(|lens| (lens.room, lens)).collect();
    let timelines = plans.iter().map(|plan| {
        let mut events = newest.remove(&plan.room).unwrap_or_default();
        let limited = events.len() > limit;
        events.truncate(limit);
        let start = events.last().map_or(plan.high, |first| before(first.pos));
        let lens = lenses.get(&plan.room);
        let shown = events
            .into_iter()
            .rev()
            .filter(|event| is_welcome(event, ignored) && asker.filter.room.timeline.allows(event))
            .filter(|event| lens.is_none_or(|lens| lens.sees(event)))
            .map(|event| {
                let membership = lens.map_or(Membership::Join, |lens| lens.membership_at(&event));
                Shown { event, membership }
            })
            .collect();
        (plan.room, Timeline { events: shown, limited, start, live: None })
    });
    Ok(timelines.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{live_message, room_plan};

    proptest! {
        /// R3: over any sequence of intervals, what is shown and what was cut off by the limit
        /// are together every event, once and in order; and what was cut off is just what lies
        /// between the client's token and `start`, where `prev_batch` points.
        #[test]
        fn intervals_hold_every_event_once(
            gaps in proptest::collection::vec(1_i64..5, 1..60),
            reads in proptest::collection::vec(0_usize..60, 0..15),
            limit in 0_usize..8,
        ) {
            let mut at = 0;
            let all: Vec<Live> = gaps.iter().map(|gap| { at += gap; live_message(at) }).collect();
            let mut reads: Vec<usize> = reads.into_iter().map(|r| r.min(all.len())).collect();
            reads.push(all.len());
            reads.sort_unstable();
            let (mut low, mut cursor) = (Position(0), 0);
            let mut seen: Vec<i64> = Vec::new();
            for upto in reads {
                let rows = &all[cursor..upto];
                let high = rows.last().map_or(low, |row| row.event.pos);
                let plan = room_plan(low, high);
                let timeline =
                    from_memory(&plan, rows, &EventFilter::default(), &HashSet::new(), limit);
                prop_assert!(timeline.events.len() <= limit);
                prop_assert_eq!(timeline.limited, rows.len() > limit);
                // What /messages gives back from `start`, down to the client's token.
                let gap = all.iter().map(|l| l.event.pos).filter(|p| *p > low && *p <= timeline.start);
                if timeline.limited {
                    seen.extend(gap.map(|p| p.0));
                }
                seen.extend(timeline.events.iter().map(|shown| shown.event.pos.0));
                (low, cursor) = (high, upto);
            }
            prop_assert_eq!(seen, all.iter().map(|l| l.event.pos.0).collect::<Vec<_>>());
        }
    }
}
