//! Events by the time that they give themselves.

use chatd_base::RoomNid;

use crate::{Pool, Result, Row, events::Span, statement::statements};

/// How far the clocks of servers may be apart, in milliseconds: where a user sees only a part of a
/// room, what is looked at lies between the times of its first and its last event, and this much
/// around them.
macro_rules! slack {
    () => {
        "3600000"
    };
}

/// The step in which a time is in the index.
macro_rules! step {
    ($time:literal) => {
        concat!("least(greatest(", $time, " >> 16, -2147483648), 2147483647)::int4")
    };
}

/// The time of a span's event at one end.
macro_rules! time_at {
    ($compare:literal, $order:literal) => {
        concat!(
            "(SELECT e.origin_ts FROM events e
              WHERE e.room = $1 AND e.pos ",
            $compare,
            " AND e.flags & 7 = 0
              ORDER BY e.pos ",
            $order,
            " LIMIT 1)"
        )
    };
}

/// Whether an event is one of a span, between two times. The planner cannot guess how many are;
/// without `coalesce` it takes them for few, and reads and sorts all of the room.
macro_rules! is_between {
    ($from:literal, $until:literal) => {
        concat!(
            "e.room = $1 AND 7 & e.flags = 0 AND coalesce(
                 e.origin_ts >= ",
            $from,
            " AND e.origin_ts <= ",
            $until,
            "
                 AND e.pos > s.low AND e.pos <= s.high, false)"
        )
    };
}

/// The event of each span that is nearest on one side of a time, and of those the nearest one:
/// first the step that has it, in the order of the index, then all events of that step.
macro_rules! nearest {
    ($is_later:literal, $from:literal, $until:literal, $order:literal) => {
        concat!(
            "(SELECT ",
            $is_later,
            ", n.event_id, n.origin_ts,
                     EXISTS (SELECT 1 FROM event_gaps g WHERE g.room = $1 AND g.event = n.nid)
              FROM s
              CROSS JOIN LATERAL (
                  SELECT ",
            step!("e.origin_ts"),
            " AS step FROM events e
                  WHERE ",
            is_between!($from, $until),
            "
                    AND ",
            step!("e.origin_ts"),
            " >= ",
            step!($from),
            "
                    AND ",
            step!("e.origin_ts"),
            " <= ",
            step!($until),
            "
                  ORDER BY ",
            step!("e.origin_ts"),
            " ",
            $order,
            " LIMIT 1) AS found
              CROSS JOIN LATERAL (
                  SELECT e.nid, e.event_id, e.origin_ts, e.depth FROM events e
                  WHERE ",
            is_between!($from, $until),
            "
                    AND ",
            step!("e.origin_ts"),
            " = found.step
                  ORDER BY e.origin_ts ",
            $order,
            ", e.depth ",
            $order,
            ", e.nid ",
            $order,
            "
                  LIMIT 1) AS n
              ORDER BY n.origin_ts ",
            $order,
            ", n.depth ",
            $order,
            ", n.nid ",
            $order,
            "
              LIMIT 1)"
        )
    };
}

statements! {
    LIST_NEAREST = concat!("
        WITH s AS MATERIALIZED (
            SELECT s.low, s.high,
                   coalesce(CASE WHEN s.low > 0 THEN ", time_at!("> s.low", "ASC"), " - ", slack!(),
                   " END, -9223372036854775808) AS since,
                   coalesce(CASE WHEN s.high < 9223372036854775807 THEN ",
                   time_at!("<= s.high", "DESC"), " + ", slack!(), " END, 9223372036854775807) AS until
            FROM unnest($3::int8[], $4::int8[]) AS s(low, high)) ",
        nearest!("true", "greatest($2::int8, s.since)", "s.until", "ASC"),
        " UNION ALL ",
        nearest!("false", "s.since", "least($2::int8, s.until)", "DESC"));
}

/// An event, and when it says that it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub event_id: String,
    /// Milliseconds since the epoch.
    pub origin_ts: i64,
    /// Whether something that came just before it is not known here.
    pub is_at_gap: bool,
}

/// What is nearest to a time, on either side; an event of just that time is on both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nearest {
    pub earlier: Option<Moment>,
    pub later: Option<Moment>,
}

/// The events of the spans of a room that are nearest to a time. A span that goes on ends at the
/// last position that there is. One that begins in the past from before this server came into the
/// room is as good as one that begins at the beginning.
pub async fn get_nearest(pool: &Pool, room: RoomNid, time: i64, spans: &[Span]) -> Result<Nearest> {
    let lows: Vec<i64> = spans.iter().map(|span| span.low.0).collect();
    let highs: Vec<i64> = spans.iter().map(|span| span.high.0).collect();
    let rows = pool.query(&LIST_NEAREST, &[&room.0, &time, &lows, &highs]).await?;
    let of = |is_later: bool| rows.iter().find(|row| row.get::<_, bool>(0) == is_later).map(moment);
    Ok(Nearest { earlier: of(false), later: of(true) })
}

fn moment(row: &Row) -> Moment {
    Moment { event_id: row.get(1), origin_ts: row.get(2), is_at_gap: row.get(3) }
}
