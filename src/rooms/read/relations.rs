//! Events that relate to another one, and the threads of a room.

use chatd_base::{Position, Result, UserNid};
use chatd_storage::{
    events::End,
    relations::{self, RelatedTo},
};
use chatd_streams::RoomToken;
use ruma_common::{EventId, RoomId};

use super::{Reader, Shown, timeline::BEGINNING};

/// Which related events are wanted.
#[derive(Clone, Debug)]
pub struct RelationsQuery {
    pub rel_type: Option<String>,
    pub kind: Option<String>,
    pub from: Option<RoomToken>,
    pub to: Option<RoomToken>,
    pub end: End,
    pub limit: usize,
    /// Also events that relate to related events.
    pub recurse: bool,
}

/// A page of related events.
#[derive(Debug)]
pub struct RelationsPage {
    pub shown: Shown,
    pub next: Option<RoomToken>,
}

/// A page of roots of threads.
#[derive(Debug)]
pub struct ThreadsPage {
    pub shown: Shown,
    pub next: Option<RoomToken>,
}

/// How many steps `recurse` follows.
pub const RECURSION_DEPTH: i32 = 3;

impl Reader {
    /// A page of the events that relate to `event` and that the user may see.
    pub async fn relations(
        &self,
        user: UserNid,
        room: &RoomId,
        event: &EventId,
        query: &RelationsQuery,
    ) -> Result<RelationsPage> {
        let (lens, parent) = self.seen_event(user, Some(room), event).await?;
        let newest_first = query.end == End::Newest;
        let (from, to) = futures::try_join!(
            self.locate_if(lens.room, query.from.as_ref()),
            self.locate_if(lens.room, query.to.as_ref()),
        )?;
        let all = (BEGINNING, Position(i64::MAX));
        let (low, high) = if newest_first {
            (to.map_or(all.0, |to| to.low), from.map_or(all.1, |from| from.high))
        } else {
            (from.map_or(all.0, |from| from.low), to.map_or(all.1, |to| to.high))
        };
        let wanted = RelatedTo {
            room: lens.room,
            parent: parent.event_id.as_str(),
            rel_type: query.rel_type.as_deref(),
            kind: query.kind.as_deref(),
            low,
            high,
            end: query.end,
            limit: query.limit + 1,
            depth: if query.recurse { RECURSION_DEPTH } else { 1 },
        };
        let mut events = relations::list_related(&self.pool, &wanted).await?;
        let next = next_page(&mut events, query.limit, |last| {
            if newest_first { Position(last.pos.0 - 1) } else { last.pos }
        });
        events.retain(|event| lens.sees(event));
        self.drop_ignored(user, &mut events).await?;
        Ok(RelationsPage { shown: self.shown(lens, events).await?, next })
    }

    /// Roots of the room's threads, those with the most recent replies first.
    pub async fn threads(
        &self,
        user: UserNid,
        room: &RoomId,
        only_participated: bool,
        from: Option<&RoomToken>,
        limit: usize,
    ) -> Result<ThreadsPage> {
        let (lens, until) = self.admitted(user, room).await?;
        let from = self.locate_if(lens.room, from).await?;
        let high = from.map_or(Position(i64::MAX), |from| from.high);
        let high = until.map_or(high, |until| high.min(until));
        let mut roots = relations::list_threads(
            &self.pool,
            lens.room,
            user,
            only_participated,
            high,
            limit + 1,
        )
        .await?;
        let next = next_page(&mut roots, limit, |(position, _)| Position(position.0 - 1));
        let events =
            roots.into_iter().map(|(_, root)| root).filter(|root| lens.sees(root)).collect();
        Ok(ThreadsPage { shown: self.shown(lens, events).await?, next })
    }
}

/// Cuts what was read beyond `limit` off; where the next page begins if there was any.
fn next_page<T>(
    rows: &mut Vec<T>,
    limit: usize,
    behind: impl Fn(&T) -> Position,
) -> Option<RoomToken> {
    let more = rows.len() > limit;
    rows.truncate(limit);
    rows.last().filter(|_| more).map(|last| RoomToken::at(behind(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_next_page_only_if_something_is_on_it() {
        let page = |count: i64| {
            let mut rows: Vec<i64> = (1..=count).collect();
            let next = next_page(&mut rows, 2, |last| Position(*last));
            (rows.len(), next.map(|token| token.to_string()))
        };
        assert_eq!(page(0), (0, None));
        assert_eq!(page(2), (2, None));
        assert_eq!(page(3), (2, Some("s2".to_owned())));
    }
}
