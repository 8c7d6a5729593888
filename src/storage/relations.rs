//! What relates to an event: edits, threads, references, and the redaction that pruned it.

use std::sync::Arc;

use chatd_base::{EventNid, Position, RoomNid, UserNid};
use ruma_common::OwnedEventId;

use crate::{
    Error, Pool, Result,
    events::{End, StoredEvent, all, columns, joins},
    statement::statements,
};

/// Events that relate to `$2` in the room `$1`, up to `$8` steps away, and its end.
macro_rules! related {
    ($order:literal) => {
        concat!(
            "WITH RECURSIVE related(nid, rel_type, depth) AS (
                 SELECT x.child, x.rel_type, 1 FROM event_relations x
                 WHERE x.room = $1 AND x.parent = $2::text
                 UNION
                 SELECT x.child, x.rel_type, related.depth + 1
                 FROM related JOIN events p ON p.nid = related.nid
                 JOIN event_relations x ON x.room = $1 AND x.parent = p.event_id
                 WHERE related.depth < $8::int4)
             SELECT ",
            columns!(),
            " FROM related JOIN events e ON e.nid = related.nid",
            joins!(),
            "WHERE ($3::text IS NULL OR related.rel_type = $3)
               AND ($4::text IS NULL OR t.type = $4)
               AND e.pos > $5 AND e.pos <= $6 AND e.flags & 15 = 0
             ORDER BY e.pos ",
            $order,
            " LIMIT $7"
        )
    };
}

statements! {
    IS_PARENT = "SELECT 1 FROM event_relations WHERE room = $1 AND parent = $2 LIMIT 1";
    LIST_OWN_ANNOTATIONS = "
        SELECT j.content FROM event_relations x
        JOIN events c ON c.nid = x.child AND c.sender = $3 AND c.flags & 15 = 0
        JOIN event_types t ON t.nid = c.type AND t.type = $4
        JOIN event_json j ON j.nid = c.nid
        WHERE x.room = $1 AND x.parent = $2 AND x.rel_type = 'm.annotation' LIMIT 1000";
    /// One row for each thing that is bundled with one of the events `$1`: its latest edit ('e'),
    /// its thread ('t', with the latest event; and 'e' for that event too), references to it
    /// ('r'), its redaction ('d'); and, if `$3` is a position, once for each sender the member
    /// event that was in force there ('m').
    LIST_BUNDLED = concat!("
        WITH parents AS (
            SELECT nid, room, event_id, sender, type, key FROM events WHERE nid = ANY($1::int8[])),
        children AS (
            SELECT p.nid AS parent, x.rel_type, c.nid, c.pos, c.sender, c.event_id
            FROM parents p
            JOIN event_relations x ON x.room = p.room AND x.parent = p.event_id
                 AND x.rel_type IN ('m.thread', 'm.reference')
            JOIN events c ON c.nid = x.child AND c.flags & 15 = 0),
        threads AS (
            SELECT parent, count(*) AS n, bool_or(sender = $2) AS mine,
                   (array_agg(nid ORDER BY pos DESC))[1] AS latest
            FROM children WHERE rel_type = 'm.thread' GROUP BY parent),
        editable AS (
            SELECT nid, room, event_id, sender, type FROM parents WHERE key IS NULL
            UNION
            SELECT l.nid, l.room, l.event_id, l.sender, l.type
            FROM threads JOIN events l ON l.nid = threads.latest WHERE l.key IS NULL),
        edits AS (
            SELECT DISTINCT ON (p.nid) p.nid AS parent, c.nid
            FROM editable p
            JOIN event_relations x ON x.room = p.room AND x.parent = p.event_id
                 AND x.rel_type = 'm.replace'
            JOIN events c ON c.nid = x.child AND c.flags & 15 = 0
                 AND c.sender = p.sender AND c.type = p.type AND c.key IS NULL
            ORDER BY p.nid, c.origin_ts DESC, c.event_id DESC),
        found(parent, what, child, n, mine, ids) AS (
            SELECT parent, 'e'::\"char\", nid, 0::int8, false, '{}'::text[] FROM edits
            UNION ALL
            SELECT t.parent, 't', t.latest, t.n, t.mine OR p.sender = $2, '{}'
            FROM threads t JOIN parents p ON p.nid = t.parent
            UNION ALL
            SELECT parent, 'r', min(nid), count(*), false, array_agg(event_id ORDER BY pos)
            FROM children WHERE rel_type = 'm.reference' GROUP BY parent
            UNION ALL
            SELECT j.nid, 'd', j.redacted_by, 0, false, '{}'
            FROM event_json j WHERE j.nid = ANY($1) AND j.redacted_by IS NOT NULL
            UNION ALL
            SELECT s.nid, 'm', d.event, 0, false, '{}'
            FROM (SELECT DISTINCT ON (sender) nid, room, sender FROM parents
                  WHERE $3::int8 IS NOT NULL) s
            JOIN users_nid su ON su.nid = s.sender
            JOIN state_keys sk ON sk.type = 'm.room.member' AND sk.state_key = su.user_id
            CROSS JOIN LATERAL (
                SELECT event FROM state_delta c
                WHERE c.room = s.room AND c.key = sk.nid AND c.pos <= $3::int8
                ORDER BY c.pos DESC LIMIT 1) d
            WHERE d.event IS NOT NULL)
        SELECT found.parent, found.what, found.n, found.mine, found.ids, ", columns!(),
        " FROM found JOIN events e ON e.nid = found.child", joins!());
    LIST_RELATED_NEWEST = related!("DESC");
    LIST_RELATED_OLDEST = related!("ASC");
    /// Roots of threads by the latest event in each.
    LIST_THREADS = concat!("
        SELECT h.pos, ", columns!(), "
        FROM (SELECT x.parent, max(c.pos) AS pos, bool_or(c.sender = $2) AS mine
              FROM event_relations x JOIN events c ON c.nid = x.child AND c.flags & 15 = 0
              WHERE x.room = $1 AND x.rel_type = 'm.thread' GROUP BY x.parent) AS h
        JOIN events e ON e.event_id = h.parent AND e.room = $1", joins!(),
        "WHERE h.pos <= $3 AND e.flags & 7 = 0 AND (NOT $4::bool OR h.mine OR e.sender = $2)
         ORDER BY h.pos DESC LIMIT $5");
}

/// Something that is told together with the event `parent`.
#[derive(Clone, Debug)]
pub struct Bundled {
    pub parent: EventNid,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// The latest valid edit of the parent.
    Edit(Arc<StoredEvent>),
    /// The parent is the root of a thread.
    Thread {
        latest: Arc<StoredEvent>,
        count: i64,
        participated: bool,
    },
    References(Vec<OwnedEventId>),
    /// The redaction that pruned the parent.
    Redaction(Arc<StoredEvent>),
    /// The member event of the parent's sender.
    Sender(Arc<StoredEvent>),
}

/// What is bundled with `events` for `user`. Edits of the latest event of a thread are included.
/// With `senders_at`, for events of one room, also what their senders were there.
pub async fn list_bundled(
    pool: &Pool,
    user: UserNid,
    events: &[EventNid],
    senders_at: Option<Position>,
) -> Result<Vec<Bundled>> {
    let nids: Vec<i64> = events.iter().map(|nid| nid.0).collect();
    let at = senders_at.map(|position| position.0);
    let rows = pool.query(&LIST_BUNDLED, &[&nids, &user.0, &at]).await?;
    rows.iter()
        .map(|row| {
            let child = || StoredEvent::from_row_at(row, 5).map(Arc::new);
            let what = match row.get::<_, i8>(1).cast_unsigned() {
                b'e' => What::Edit(child()?),
                b't' => {
                    What::Thread { latest: child()?, count: row.get(2), participated: row.get(3) }
                }
                b'r' => What::References(
                    row.get::<_, Vec<&str>>(4)
                        .into_iter()
                        .filter_map(|id| OwnedEventId::try_from(id).ok())
                        .collect(),
                ),
                b'd' => What::Redaction(child()?),
                b'm' => What::Sender(child()?),
                other => return Err(Error::Corrupt(format!("unknown kind of bundle {other}"))),
            };
            Ok(Bundled { parent: EventNid(row.get(0)), what })
        })
        .collect()
}

/// Which related events are wanted.
#[derive(Clone, Copy, Debug)]
pub struct RelatedTo<'a> {
    pub room: RoomNid,
    pub parent: &'a str,
    pub rel_type: Option<&'a str>,
    pub kind: Option<&'a str>,
    pub low: Position,
    pub high: Position,
    pub end: End,
    pub limit: usize,
    /// How many steps of relations are followed; 1 for direct relations only.
    pub depth: i32,
}

/// Events that relate to another one, in the order that `end` says.
pub async fn list_related(pool: &Pool, wanted: &RelatedTo<'_>) -> Result<Vec<Arc<StoredEvent>>> {
    let statement = match wanted.end {
        End::Newest => &LIST_RELATED_NEWEST,
        End::Oldest => &LIST_RELATED_OLDEST,
    };
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
    let rows = pool
        .query(
            statement,
            &[
                &wanted.room.0,
                &wanted.parent,
                &wanted.rel_type,
                &wanted.kind,
                &wanted.low.0,
                &wanted.high.0,
                &limit,
                &wanted.depth,
            ],
        )
        .await?;
    all(&rows)
}

/// Roots of threads with the position of the latest event in each, the most recent first; only
/// those whose latest event is at or below `high`.
pub async fn list_threads(
    pool: &Pool,
    room: RoomNid,
    user: UserNid,
    only_participated: bool,
    high: Position,
    limit: usize,
) -> Result<Vec<(Position, Arc<StoredEvent>)>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows =
        pool.query(&LIST_THREADS, &[&room.0, &user.0, &high.0, &only_participated, &limit]).await?;
    rows.iter()
        .map(|row| Ok((Position(row.get(0)), Arc::new(StoredEvent::from_row_at(row, 1)?))))
        .collect()
}

/// Whether an event of the room relates to the one with this id, known or not.
pub async fn is_parent(pool: &Pool, room: RoomNid, event_id: &str) -> Result<bool> {
    Ok(pool.query_opt(&IS_PARENT, &[&room.0, &event_id]).await?.is_some())
}

/// Contents of the annotations of one type that a user has made of an event.
pub async fn list_own_annotations(
    pool: &Pool,
    room: RoomNid,
    event_id: &str,
    sender: UserNid,
    kind: &str,
) -> Result<Vec<String>> {
    let rows = pool.query(&LIST_OWN_ANNOTATIONS, &[&room.0, &event_id, &sender.0, &kind]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
