//! Events as they are read back: by number, by id, and as timelines of many rooms at once. Each
//! function is one statement whatever the number of events; names come with the rows.

use std::sync::Arc;

use chatd_base::{EventNid, KeyNid, Position, RoomNid, SnapshotId, UserNid, WriterId};
use ruma_common::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_postgres::Row;

use crate::{Error, Pool, Result, ToSql, statement::statements};

/// Columns that [`StoredEvent::from_row_at`] reads, of the events named `e`.
macro_rules! columns {
    () => {
        "e.nid, e.pos, e.snapshot, e.depth, e.origin_ts, e.key, e.replaces, e.room, e.sender, \
         e.flags, e.event_id, r.room_id, u.user_id, t.type, k.state_key, j.content, \
         j.redacted_by, CASE WHEN t.type = 'm.room.redaction' THEN j.rest END, p.event_id, \
         pu.user_id, pj.content, x.device_id, x.txn_id"
    };
}

/// What the columns need, to follow `FROM … e`.
macro_rules! joins {
    () => {
        " JOIN event_json j ON j.nid = e.nid
          JOIN rooms r ON r.nid = e.room
          JOIN users_nid u ON u.nid = e.sender
          JOIN event_types t ON t.nid = e.type
          LEFT JOIN state_keys k ON k.nid = e.key
          LEFT JOIN events p ON p.nid = e.replaces
          LEFT JOIN users_nid pu ON pu.nid = p.sender
          LEFT JOIN event_json pj ON pj.nid = p.nid
          LEFT JOIN event_txns x ON x.event = e.nid "
    };
}

/// Conditions of an [`EventFilter`], whose values are `$11` to `$17`.
macro_rules! filter {
    () => {
        " AND ($11::text[] IS NULL OR e.type IN (SELECT nid FROM event_types WHERE type LIKE ANY($11)))
          AND ($12::text[] IS NULL OR e.type NOT IN (SELECT nid FROM event_types WHERE type LIKE ANY($12)))
          AND ($13::text[] IS NULL OR e.sender IN (SELECT nid FROM users_nid WHERE user_id = ANY($13)))
          AND ($14::text[] IS NULL OR e.sender NOT IN (SELECT nid FROM users_nid WHERE user_id = ANY($14)))
          AND ($15::bool IS NULL OR (e.flags & 40 = 32) = $15)
          AND ($16::text[] IS NULL OR EXISTS (SELECT FROM event_relations x
               WHERE x.room = e.room AND x.parent = e.event_id AND x.rel_type = ANY($16)))
          AND ($17::text[] IS NULL OR EXISTS (SELECT FROM event_relations x
               JOIN events c ON c.nid = x.child JOIN users_nid cu ON cu.nid = c.sender
               WHERE x.room = e.room AND x.parent = e.event_id AND cu.user_id = ANY($17))) "
    };
}

/// What one token covers and an earlier one does not, where some writers are ahead of others. The
/// values are `$6` to `$10`.
macro_rules! covered {
    () => {
        " (e.pos <= coalesce((SELECT c.high FROM unnest($6::int2[], $8::int8[]) AS c(writer, high)
                              WHERE c.writer = e.writer), $10::int8)
           AND (w.low < $9::int8 OR
                e.pos > coalesce((SELECT c.low FROM unnest($6, $7::int8[]) AS c(writer, low)
                                  WHERE c.writer = e.writer), $9))) "
    };
}

/// Up to `$4` events in (low, high] of each room without the flags `$5`, under more conditions.
macro_rules! timeline {
    ($order:literal, $($conditions:tt)*) => {
        concat!("SELECT ", columns!(), "
            FROM unnest($1::int4[], $2::int8[], $3::int8[]) AS w(room, low, high)
            CROSS JOIN LATERAL (
                SELECT e.* FROM events e
                WHERE e.room = w.room AND e.pos > w.low AND e.pos <= w.high AND e.flags & $5 = 0",
            $($conditions)*,
            " ORDER BY e.pos ", $order, " LIMIT $4) AS e", joins!(),
            "ORDER BY e.room, e.pos ", $order)
    };
}

/// Who has written at the position of a row, in its room: not always the writer of the event that the
/// row names, which may have been brought back later, by another owner of the room.
macro_rules! writer_at {
    ($row:literal) => {
        concat!(
            "(SELECT w.writer FROM events w WHERE w.room = ",
            $row,
            ".room AND w.pos = ",
            $row,
            ".pos AND w.pos > 0 LIMIT 1)"
        )
    };
}

pub(crate) use {columns, joins, writer_at};

statements! {
    LIST_EVENTS_BY_NIDS = concat!("SELECT ", columns!(), " FROM events e", joins!(),
        "WHERE e.nid = ANY($1::int8[])");
    LIST_EVENTS_BY_IDS = concat!("SELECT ", columns!(), " FROM events e", joins!(),
        "WHERE e.event_id = ANY($1::text[])");
    /// Ids come in the order of the references.
    LIST_FEDERATION = "
        SELECT e.nid, j.rest,
               ARRAY(SELECT p.event_id FROM unnest(e.prev_ids) WITH ORDINALITY AS x(nid, n)
                     JOIN events p ON p.nid = x.nid ORDER BY x.n),
               ARRAY(SELECT a.event_id FROM unnest(e.auth_ids) WITH ORDINALITY AS x(nid, n)
                     JOIN events a ON a.nid = x.nid ORDER BY x.n)
        FROM events e JOIN event_json j ON j.nid = e.nid WHERE e.nid = ANY($1::int8[])";
    /// The first event of a room that a token does not cover, and the last that it does. All at or
    /// below $2 are covered, and none above $3.
    LOCATE = "SELECT min(e.pos) FILTER (WHERE NOT e.is_covered),
                     max(e.pos) FILTER (WHERE e.is_covered)
              FROM (SELECT e.pos,
                           e.pos <= coalesce((SELECT ahead.pos
                                              FROM unnest($4::int2[], $5::int8[]) AS ahead(writer, pos)
                                              WHERE ahead.writer = e.writer), $2) AS is_covered
                    FROM events e
                    WHERE e.room = $1 AND e.pos > $2 AND e.pos <= $3 AND e.flags & 7 = 0) AS e";
    LIST_NEWEST = timeline!("DESC", "");
    LIST_OLDEST = timeline!("ASC", "");
    LIST_NEWEST_BETWEEN = timeline!("DESC", " AND ", covered!());
    LIST_OLDEST_BETWEEN = timeline!("ASC", " AND ", covered!());
    LIST_NEWEST_FILTERED =
        timeline!("DESC", filter!(), " AND ($6::int2[] IS NULL OR ", covered!(), ")");
    LIST_OLDEST_FILTERED =
        timeline!("ASC", filter!(), " AND ($6::int2[] IS NULL OR ", covered!(), ")");
}

pub use crate::lane::flags;

/// The event that a state event replaced, as far as clients are told of it.
#[derive(Clone, Debug)]
pub struct ReplacedEvent {
    pub event_id: OwnedEventId,
    pub sender: OwnedUserId,
    pub content: Arc<RawValue>,
}

/// The request that made an event.
#[derive(Clone, Debug)]
pub struct Transaction {
    pub user: UserNid,
    pub device_id: String,
    pub txn_id: String,
}

/// An event with all that clients may be told of it. Live rows become this too.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    pub nid: EventNid,
    pub pos: Position,
    /// State before the event; 0 where it is not known (outliers, live rows).
    pub snapshot: SnapshotId,
    pub depth: i64,
    pub origin_ts: i64,
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub event_id: OwnedEventId,
    pub sender: OwnedUserId,
    pub sender_nid: UserNid,
    pub kind: Arc<str>,
    pub state_key: Option<Arc<str>>,
    pub key: Option<KeyNid>,
    /// As clients get it; pruned if the event is redacted.
    pub content: Arc<RawValue>,
    /// `redacts`, if it is a member of the event and not of its content.
    pub redacts: Option<OwnedEventId>,
    pub flags: i16,
    pub redacted_by: Option<EventNid>,
    pub replaced: Option<ReplacedEvent>,
    /// Known for a day after a local request.
    pub txn: Option<Transaction>,
}

impl StoredEvent {
    pub fn is_redacted(&self) -> bool {
        self.flags & flags::REDACTED != 0
    }

    /// Whether the event was rejected or is not part of a timeline for another reason.
    pub fn is_hidden(&self) -> bool {
        self.flags & (flags::OUTLIER | flags::REJECTED | flags::SOFT_FAILED) != 0
    }

    /// Whether other servers have told it later. The state with it is known from its snapshot only.
    pub fn is_of_the_past(&self) -> bool {
        self.flags & flags::BACKFILLED != 0
    }

    /// Whether a predecessor was missing when the event came, among the stream's events. That may
    /// have come since.
    pub fn is_behind_gap(&self) -> bool {
        self.flags & flags::BEHIND_GAP != 0 && self.pos.0 > 0
    }

    pub fn is_state(&self, kind: &str, state_key: &str) -> bool {
        &*self.kind == kind && self.state_key.as_deref() == Some(state_key)
    }

    /// Reads the columns of `columns!`, the first of them at `first`.
    pub(crate) fn from_row_at(row: &Row, first: usize) -> Result<Self> {
        let text = |index: usize| row.get::<_, Option<&str>>(first + index).map(Arc::from);
        let replaced = match row.get::<_, Option<&str>>(first + 18) {
            None => None,
            Some(event_id) => Some(ReplacedEvent {
                event_id: parse(event_id)?,
                sender: parse(row.get(first + 19))?,
                content: raw(row.get(first + 20))?,
            }),
        };
        let sender_nid = UserNid(row.get(first + 8));
        let txn = row.get::<_, Option<String>>(first + 21).zip(row.get(first + 22));
        let txn =
            txn.map(|(device_id, txn_id)| Transaction { user: sender_nid, device_id, txn_id });
        Ok(Self {
            nid: EventNid(row.get(first)),
            pos: Position(row.get(first + 1)),
            snapshot: SnapshotId(row.get(first + 2)),
            depth: row.get(first + 3),
            origin_ts: row.get(first + 4),
            key: row.get::<_, Option<i64>>(first + 5).map(KeyNid),
            room: RoomNid(row.get(first + 7)),
            sender_nid,
            flags: row.get(first + 9),
            event_id: parse(row.get(first + 10))?,
            room_id: parse(row.get(first + 11))?,
            sender: parse(row.get(first + 12))?,
            kind: Arc::from(row.get::<_, &str>(first + 13)),
            state_key: text(14),
            content: raw(row.get(first + 15))?,
            redacted_by: row.get::<_, Option<i64>>(first + 16).map(EventNid),
            redacts: row.get::<_, Option<&[u8]>>(first + 17).and_then(redacts_of),
            replaced,
            txn,
        })
    }
}

/// `redacts` in the remainder of an event's federation format.
fn redacts_of(rest: &[u8]) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Rest {
        redacts: Option<OwnedEventId>,
    }
    serde_json::from_slice::<Rest>(rest).ok()?.redacts
}

fn parse<T: std::str::FromStr>(id: &str) -> Result<T> {
    id.parse().map_err(|_| Error::Corrupt(format!("{id} is not a valid identifier")))
}

fn raw(text: &str) -> Result<Arc<RawValue>> {
    RawValue::from_string(text.to_owned())
        .map(Arc::from)
        .map_err(|error| Error::Corrupt(format!("the content of an event is not JSON: {error}")))
}

pub(crate) fn all(rows: &[Row]) -> Result<Vec<Arc<StoredEvent>>> {
    rows.iter().map(|row| StoredEvent::from_row_at(row, 0).map(Arc::new)).collect()
}

/// The event with this id, whatever its flags.
pub async fn get_by_id(pool: &Pool, event_id: &str) -> Result<Option<Arc<StoredEvent>>> {
    Ok(list_by_ids(pool, &[event_id]).await?.into_iter().next())
}

/// Those of `nids` that exist, in no order.
pub async fn list_by_nids(pool: &Pool, nids: &[EventNid]) -> Result<Vec<Arc<StoredEvent>>> {
    if nids.is_empty() {
        return Ok(Vec::new());
    }
    let nids: Vec<i64> = nids.iter().map(|nid| nid.0).collect();
    all(&pool.query(&LIST_EVENTS_BY_NIDS, &[&nids]).await?)
}

/// Those of `ids` that exist, in no order.
pub async fn list_by_ids(pool: &Pool, ids: &[&str]) -> Result<Vec<Arc<StoredEvent>>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    all(&pool.query(&LIST_EVENTS_BY_IDS, &[&ids]).await?)
}

/// What the federation format of an event has and its other columns do not.
#[derive(Clone, Debug)]
pub struct FederationRow {
    pub nid: EventNid,
    /// JSON object.
    pub rest: Vec<u8>,
    pub prev_events: Vec<String>,
    pub auth_events: Vec<String>,
}

/// The federation parts of those of `nids` that exist, in no order.
pub async fn list_federation(pool: &Pool, nids: &[EventNid]) -> Result<Vec<FederationRow>> {
    if nids.is_empty() {
        return Ok(Vec::new());
    }
    let nids: Vec<i64> = nids.iter().map(|nid| nid.0).collect();
    let row = |row: &Row| FederationRow {
        nid: EventNid(row.get(0)),
        rest: row.get(1),
        prev_events: row.get(2),
        auth_events: row.get(3),
    };
    Ok(pool.query(&LIST_FEDERATION, &[&nids]).await?.iter().map(row).collect())
}

/// A part of one room's timeline: after `low`, up to and with `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub room: RoomNid,
    pub low: Position,
    pub high: Position,
}

/// Which events of a span are wanted. Outliers, rejected and soft-failed ones are in no timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    /// Without what was fetched from other servers later, to fill gaps: no sync tells it.
    Streamed,
}

impl Which {
    /// Flags of events that are not wanted.
    fn without(self) -> i16 {
        let hidden = flags::OUTLIER | flags::REJECTED | flags::SOFT_FAILED;
        match self {
            Self::All => hidden,
            Self::Streamed => hidden | flags::BACKFILLED,
        }
    }
}

/// Which end of a span is wanted when it holds more than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The newest events, newest first.
    Newest,
    /// The oldest events, oldest first.
    Oldest,
}

/// A client's filter of events, as far as the database applies it. `None` lets everything pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Patterns of event types, see [`like_pattern`].
    pub types: Option<Vec<String>>,
    pub not_types: Option<Vec<String>>,
    pub senders: Option<Vec<String>>,
    pub not_senders: Option<Vec<String>>,
    /// Only events whose content has a `url`, or only those without. Redacted ones have none.
    pub with_url: Option<bool>,
    pub related_by_rel_types: Option<Vec<String>>,
    pub related_by_senders: Option<Vec<String>>,
}

/// The `LIKE` pattern for an event type of a filter, in which `*` stands for anything.
pub fn like_pattern(kind: &str) -> String {
    let mut pattern = String::with_capacity(kind.len());
    for letter in kind.chars() {
        match letter {
            '*' => pattern.push('%'),
            '%' | '_' | '\\' => pattern.extend(['\\', letter]),
            other => pattern.push(other),
        }
    }
    pattern
}

/// Where a token is in one room's timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Every event of the room at or below it is covered.
    pub low: Position,
    /// No event of the room above it is covered.
    pub high: Position,
}

/// Where in the timeline of `room` a token is that covers everything up to `min`, and what the
/// writers in `ahead` have written up to their positions.
pub async fn locate(
    pool: &Pool,
    room: RoomNid,
    min: Position,
    ahead: &[(WriterId, Position)],
) -> Result<Location> {
    let max = ahead.iter().map(|(_, position)| *position).max().unwrap_or(min);
    let writers: Vec<i16> = ahead.iter().map(|(writer, _)| writer.0).collect();
    let positions: Vec<i64> = ahead.iter().map(|(_, position)| position.0).collect();
    let rows = pool.query(&LOCATE, &[&room.0, &min.0, &max.0, &writers, &positions]).await?;
    let row = rows.first();
    let of = |column: usize| row.and_then(|row| row.get::<_, Option<i64>>(column));
    Ok(Location {
        low: of(0).map_or(max, |first| Position(first - 1)),
        high: of(1).map_or(min, Position),
    })
}

/// What lies between two tokens, where writers are at different positions.
#[derive(Clone, Debug, Default)]
pub struct Between {
    /// Writers that are not at the least position of both tokens.
    pub writers: Vec<i16>,
    /// Where the earlier token has each of `writers`.
    pub lows: Vec<i64>,
    /// Where the later token has each of them.
    pub highs: Vec<i64>,
    /// Where the earlier token has all others; spans that begin below it are of rooms of which
    /// nothing has been seen.
    pub low: i64,
    /// Where the later token has all others.
    pub high: i64,
}

/// Up to `limit` events of each span that pass `filter`, rooms one after the other, in the order
/// that `end` says; with `between`, those that lie there too.
pub async fn list_timelines(
    pool: &Pool,
    spans: &[Span],
    which: Which,
    end: End,
    limit: usize,
    filter: &EventFilter,
    between: Option<&Between>,
) -> Result<Vec<Arc<StoredEvent>>> {
    if spans.is_empty() || limit == 0 {
        return Ok(Vec::new());
    }
    let rooms: Vec<i32> = spans.iter().map(|span| span.room.0).collect();
    let lows: Vec<i64> = spans.iter().map(|span| span.low.0).collect();
    let highs: Vec<i64> = spans.iter().map(|span| span.high.0).collect();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let without = which.without();
    let writers = between.map(|between| &between.writers);
    let (lows_of, highs_of) = between.map(|between| (&between.lows, &between.highs)).unzip();
    let (low, high) = between.map(|between| (between.low, between.high)).unzip();
    let values: [&(dyn ToSql + Sync); 17] = [
        &rooms,
        &lows,
        &highs,
        &limit,
        &without,
        &writers,
        &lows_of,
        &highs_of,
        &low,
        &high,
        &filter.types,
        &filter.not_types,
        &filter.senders,
        &filter.not_senders,
        &filter.with_url,
        &filter.related_by_rel_types,
        &filter.related_by_senders,
    ];
    // What the values switch off would be planned anew each time.
    let (newest, oldest, count) = match (*filter == EventFilter::default(), between) {
        (true, None) => (&LIST_NEWEST, &LIST_OLDEST, 5),
        (true, Some(_)) => (&LIST_NEWEST_BETWEEN, &LIST_OLDEST_BETWEEN, 10),
        (false, _) => (&LIST_NEWEST_FILTERED, &LIST_OLDEST_FILTERED, 17),
    };
    let statement = match end {
        End::Newest => newest,
        End::Oldest => oldest,
    };
    let rows = pool.query(statement, &values[..count]).await?;
    all(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_anything_and_the_rest_is_literal() {
        assert_eq!(like_pattern("m.room.*"), "m.room.%");
        assert_eq!(like_pattern("m.a_b%\\"), "m.a\\_b\\%\\\\");
    }
}
