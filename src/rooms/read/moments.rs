//! Events by the time at which they happened.

use chatd_base::{Position, Result, RoomNid, UserNid};
use chatd_storage::{
    Pool,
    events::Span,
    moments::{self, Nearest},
};
use ruma_common::{EventId, RoomId};
use serde::Deserialize;

use super::{Reader, timeline::BEGINNING};

pub use chatd_storage::moments::Moment;

/// Changes of membership and visibility that one search looks across (R8).
const MOST_SPANS: usize = 100;

/// In which direction of a time an event is looked for; one of just that time is in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Toward {
    #[serde(rename = "b")]
    Earlier,
    #[serde(rename = "f")]
    Later,
}

/// What is known here of the event that is nearest to a time.
#[derive(Clone, Debug)]
pub struct NearestEvent {
    pub found: Option<Moment>,
    /// Whether other servers may know one that is nearer, and that the user may see.
    pub may_be_elsewhere: bool,
    /// Version of the room.
    pub version: String,
}

impl Toward {
    /// As it is written in requests.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Earlier => "b",
            Self::Later => "f",
        }
    }

    /// How far `time` is from `of` in this direction; `None` if it is on the other side.
    pub fn distance(self, of: i64, time: i64) -> Option<u64> {
        let is_there = match self {
            Self::Earlier => time <= of,
            Self::Later => time >= of,
        };
        is_there.then(|| time.abs_diff(of))
    }

    fn pick(self, nearest: Nearest) -> Option<Moment> {
        match self {
            Self::Earlier => nearest.earlier,
            Self::Later => nearest.later,
        }
    }
}

impl Reader {
    /// The event nearest to a time, of those that the user may see.
    pub async fn nearest(
        &self,
        user: UserNid,
        room: &RoomId,
        time: i64,
        toward: Toward,
    ) -> Result<NearestEvent> {
        let (lens, until) = self.admitted(user, room).await?;
        let mut spans = lens.spans(BEGINNING, until.unwrap_or(Position(i64::MAX)));
        spans.drain(..spans.len().saturating_sub(MOST_SPANS));
        let nearest = moments::get_nearest(&self.pool, lens.room, time, &spans).await?;
        let is_before_a_gap = nearest.later.as_ref().is_some_and(|later| later.is_at_gap);
        let is_behind_all = toward == Toward::Later && nearest.later.is_none() && until.is_none();
        Ok(NearestEvent {
            found: toward.pick(nearest),
            may_be_elsewhere: is_behind_all || is_before_a_gap && lens.shows_what_was_before(),
            version: lens.version.clone(),
        })
    }

    /// Whether an event of the room is known and hidden from the user.
    pub async fn is_hidden(&self, user: UserNid, room: &RoomId, event: &EventId) -> Result<bool> {
        match chatd_storage::events::get_by_id(&self.pool, event.as_str()).await? {
            None => Ok(false),
            Some(known) => {
                let lens = self.lens(user, room).await?;
                Ok(*known.room_id != *room || !lens.sees(&known))
            }
        }
    }
}

/// The event nearest to a time, whoever may see it.
pub async fn nearest_of_all(
    pool: &Pool,
    room: RoomNid,
    time: i64,
    toward: Toward,
) -> Result<Option<Moment>> {
    let all = Span { room, low: BEGINNING, high: Position(i64::MAX) };
    Ok(toward.pick(moments::get_nearest(pool, room, time, &[all]).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_measured_in_one_direction() {
        for (toward, time, distance) in [
            (Toward::Later, 15, Some(5)),
            (Toward::Later, 10, Some(0)),
            (Toward::Later, 9, None),
            (Toward::Earlier, 9, Some(1)),
            (Toward::Earlier, 10, Some(0)),
            (Toward::Earlier, 11, None),
            (Toward::Later, i64::MAX, Some(i64::MAX.abs_diff(10))),
        ] {
            assert_eq!(toward.distance(10, time), distance, "{toward:?} {time}");
        }
    }
}
