//! Pages of a room's timeline, single events, and what is around them.

use std::{collections::BTreeSet, sync::Arc};

use chatd_base::{EventNid, Position, Refusal, Result, UserNid};
use chatd_storage::{
    events::{self, End, Location, Span, StoredEvent, Which},
    room_state::StateFilter,
};
use chatd_streams::RoomToken;
use ruma_common::{EventId, RoomId};

use super::{Reader, Shown};
use crate::{bundle, client_event::Bundles, filter::EventFilter, visibility::Lens};

/// Which page of a timeline is wanted.
#[derive(Clone, Debug)]
pub struct MessagesQuery {
    /// Where the page begins; the live end or the beginning of the room by default.
    pub from: Option<RoomToken>,
    /// Where it ends at the latest.
    pub to: Option<RoomToken>,
    /// Newest first, or oldest first.
    pub end: End,
    pub limit: usize,
    pub filter: EventFilter,
}

/// A page of a timeline.
#[derive(Debug)]
pub struct Messages {
    pub shown: Shown,
    pub start: RoomToken,
    /// Where the next page begins; `None` when there is nothing more.
    pub end: Option<RoomToken>,
    /// Where it would begin.
    pub last: RoomToken,
    /// Members that the page's senders were, if the filter asks for them.
    pub state: Vec<Arc<StoredEvent>>,
    /// Whether the page has everything that is older than its beginning: other servers may have
    /// more.
    pub is_exhausted: bool,
    /// Events of the page behind which something was missing when they came.
    pub behind_gaps: Vec<EventNid>,
}

/// An event and its surroundings.
#[derive(Debug)]
pub struct Context {
    pub shown: Shown,
    pub event: Arc<StoredEvent>,
    /// Newest first.
    pub before: Vec<Arc<StoredEvent>>,
    /// Oldest first.
    pub after: Vec<Arc<StoredEvent>>,
    pub start: RoomToken,
    pub end: RoomToken,
    /// State behind the last of the events.
    pub state: Vec<Arc<StoredEvent>>,
    /// Whether nothing older than `before` is known.
    pub is_exhausted: bool,
}

/// Changes of membership and visibility that one page looks across.
const MOST_SPANS: usize = 100;
/// Below all events, also those from before this server came into a room.
pub(super) const BEGINNING: Position = Position(i64::MIN);

impl Reader {
    /// A page of what the user may see of a room.
    pub async fn messages(
        &self,
        user: UserNid,
        room: &RoomId,
        query: MessagesQuery,
    ) -> Result<Messages> {
        let (lens, until) = self.admitted(user, room).await?;
        let newest = until.unwrap_or_else(|| self.now());
        let backwards = query.end == End::Newest;
        let start = query
            .from
            .unwrap_or_else(|| RoomToken::at(if backwards { newest } else { Position(0) }));
        let (from, to) = futures::try_join!(
            self.locate_if(lens.room, Some(&start)),
            self.locate_if(lens.room, query.to.as_ref()),
        )?;
        // No event is at the position 0: whoever begins there begins with the first.
        let first = |from: Location| if from.low.0 == 0 { BEGINNING } else { from.low };
        let (low, high) = if backwards {
            (to.map_or(BEGINNING, |to| to.low), from.map_or(newest, |from| from.high.min(newest)))
        } else {
            (from.map_or(BEGINNING, first), to.map_or(newest, |to| to.high.min(newest)))
        };
        let (mut events, broken_off) =
            self.list_seen(&lens, (low, high), query.end, query.limit, &query.filter).await?;
        let is_full = events.len() >= query.limit;
        let token_at = |last: &Arc<StoredEvent>| match query.end {
            End::Newest => token_before(last),
            End::Oldest => token_behind(last),
        };
        let broken_off = broken_off.filter(|_| !is_full);
        let last = match broken_off {
            Some(pos) => RoomToken::Topological { depth: 0, pos },
            None => events.last().map_or_else(|| start.clone(), token_at),
        };
        let is_more = broken_off.is_some() || !events.is_empty() && (is_full || !backwards);
        let end = is_more.then(|| last.clone());
        let is_exhausted = !is_full && broken_off.is_none() && low == BEGINNING && backwards;
        let behind_gaps = events.iter().filter(|event| event.is_behind_gap());
        let behind_gaps = behind_gaps.map(|event| event.nid).collect();
        self.drop_ignored(user, &mut events).await?;
        let (bundles, state) = if query.filter.lazy_load_members {
            self.with_senders(user, &events).await?
        } else {
            (bundle::load(&self.pool, user, &events).await?, Vec::new())
        };
        let shown = Shown { lens, events, bundles };
        Ok(Messages { shown, start, end, last, state, is_exhausted, behind_gaps })
    }

    /// What is told together with events of one room, and what their senders were at the newest.
    async fn with_senders(
        &self,
        user: UserNid,
        events: &[Arc<StoredEvent>],
    ) -> Result<(Bundles, Vec<Arc<StoredEvent>>)> {
        let Some(newest) = events.iter().max_by_key(|event| event.pos) else {
            return Ok((Bundles::default(), Vec::new()));
        };
        if !newest.is_of_the_past() {
            return bundle::load_with_senders(&self.pool, user, events, newest.pos).await;
        }
        let senders = senders(events);
        let wanted = StateFilter {
            kind: Some("m.room.member"),
            members: Some(&senders),
            ..StateFilter::default()
        };
        futures::try_join!(bundle::load(&self.pool, user, events), self.state_with(newest, &wanted),)
    }

    /// One event, of that room if one is named; told to be absent if the user may not see it.
    pub async fn event(
        &self,
        user: UserNid,
        room: Option<&RoomId>,
        event: &EventId,
    ) -> Result<Shown> {
        let (lens, event) = self.seen_event(user, room, event).await?;
        self.shown(lens, vec![event]).await
    }

    /// An event, up to `limit` events around it, and the state behind them.
    pub async fn context(
        &self,
        user: UserNid,
        room: &RoomId,
        event: &EventId,
        limit: usize,
        filter: &EventFilter,
    ) -> Result<Context> {
        let (lens, event) = self.seen_event(user, Some(room), event).await?;
        let earlier = (BEGINNING, Position(event.pos.0 - 1));
        let later = (event.pos, self.now());
        let ((mut before, broken_off), (mut after, _)) = futures::try_join!(
            self.list_seen(&lens, earlier, End::Newest, limit / 2, filter),
            self.list_seen(&lens, later, End::Oldest, limit - limit / 2, filter),
        )?;
        let start = token_before(before.last().unwrap_or(&event));
        let is_exhausted = before.len() < limit / 2 && broken_off.is_none();
        let last = after.last().unwrap_or(&event);
        let (end, last) = (token_behind(last), last.clone());
        self.drop_ignored(user, &mut before).await?;
        self.drop_ignored(user, &mut after).await?;
        let all: Vec<_> = before.iter().chain([&event]).chain(&after).cloned().collect();
        let senders: Vec<&str> = senders(&all);
        let wanted = StateFilter {
            members: filter.lazy_load_members.then_some(&senders),
            ..StateFilter::default()
        };
        let mut state = self.state_with(&last, &wanted).await?;
        state.retain(|event| filter.allows(event));
        let shown = self.shown(lens, all).await?;
        Ok(Context { shown, event, before, after, start, end, state, is_exhausted })
    }

    /// The event with its room's lens, if it is of that room and the user may see it.
    pub(super) async fn seen_event(
        &self,
        user: UserNid,
        room: Option<&RoomId>,
        event: &EventId,
    ) -> Result<(Arc<Lens>, Arc<StoredEvent>)> {
        let absent = || Refusal::not_found("event not found");
        let found = events::get_by_id(&self.pool, event.as_str()).await?.ok_or_else(absent)?;
        if room.is_some_and(|room| *found.room_id != *room) {
            return Err(absent().into());
        }
        let lens = self.lens(user, &found.room_id).await?;
        if !lens.sees(&found) {
            return Err(absent().into());
        }
        Ok((lens, found))
    }

    /// Events in (low, high] that the lens and the filter show, and where the search was broken off
    /// if the user has come and gone too often.
    async fn list_seen(
        &self,
        lens: &Lens,
        (low, high): (Position, Position),
        end: End,
        limit: usize,
        filter: &EventFilter,
    ) -> Result<(Vec<Arc<StoredEvent>>, Option<Position>)> {
        if !filter.allows_room(&lens.room_id) {
            return Ok((Vec::new(), None));
        }
        let mut spans = lens.spans(low, high);
        let broken_off = shorten(&mut spans, end);
        let filter = filter.to_storage();
        let mut found =
            events::list_timelines(&self.pool, &spans, Which::All, end, limit, &filter, None)
                .await?;
        found.truncate(limit);
        Ok((found, broken_off))
    }
}

/// Leaves no more spans than one page looks across; returns where they end, if some are left out.
fn shorten(spans: &mut Vec<Span>, end: End) -> Option<Position> {
    let surplus = spans.len().checked_sub(MOST_SPANS).filter(|surplus| *surplus > 0)?;
    match end {
        End::Newest => {
            spans.drain(..surplus);
            spans.first().map(|span| span.low)
        }
        End::Oldest => {
            spans.truncate(MOST_SPANS);
            spans.last().map(|span| span.high)
        }
    }
}

fn senders(events: &[Arc<StoredEvent>]) -> Vec<&str> {
    let distinct: BTreeSet<&str> = events.iter().map(|event| event.sender.as_str()).collect();
    distinct.into_iter().collect()
}

/// The point just before an event.
fn token_before(event: &StoredEvent) -> RoomToken {
    RoomToken::Topological { depth: (event.depth - 1).max(0), pos: Position(event.pos.0 - 1) }
}

/// The point just behind an event.
fn token_behind(event: &StoredEvent) -> RoomToken {
    RoomToken::Topological { depth: event.depth, pos: event.pos }
}

#[cfg(test)]
mod tests {
    use chatd_base::RoomNid;

    use super::*;

    #[test]
    fn a_page_that_looks_across_too_much_says_where_it_ends() {
        let spans = |count: usize| -> Vec<Span> {
            let span = |n: i64| Span {
                room: RoomNid(1),
                low: Position(n * 10),
                high: Position(n * 10 + 5),
            };
            (0..i64::try_from(count).unwrap()).map(span).collect()
        };
        for end in [End::Newest, End::Oldest] {
            let mut few = spans(MOST_SPANS);
            assert_eq!(shorten(&mut few, end), None);
            assert_eq!(few.len(), MOST_SPANS);
        }
        let mut many = spans(MOST_SPANS + 3);
        assert_eq!(shorten(&mut many, End::Newest), Some(Position(30)));
        assert_eq!((many.len(), many[0].low), (MOST_SPANS, Position(30)));
        let mut many = spans(MOST_SPANS + 3);
        assert_eq!(shorten(&mut many, End::Oldest), Some(Position(995)));
        assert_eq!(many.len(), MOST_SPANS);
    }
}
