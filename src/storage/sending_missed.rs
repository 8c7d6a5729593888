//! What a sender was not told while it happened: the newest of it, and only of this server's users
//! where others tell for theirs.

use chatd_base::{Position, RoomNid, UserNid, WriterId};

use crate::{Pool, Result, Row, events::writer_at, presence, receipts, statement::statements};

/// The condition that the user `u` is of the server `$3`.
macro_rules! ours {
    () => {
        "substr(u.user_id, strpos(u.user_id, ':') + 1) = $3"
    };
}

statements! {
    LIST_MISSED_RECEIPTS = concat!("
        SELECT c.room, c.user_nid, c.kind, c.thread, c.pos, c.event_id, c.event_pos, c.ts,
               r.room_id, u.user_id
        FROM receipts c JOIN users_nid u ON u.nid = c.user_nid JOIN rooms r ON r.nid = c.room
        WHERE c.kind = 'r' AND c.pos > $1 AND c.pos <= $2 AND ", ours!(), "
        ORDER BY c.pos DESC LIMIT $4");
    LIST_MISSED_PRESENCE = concat!("
        SELECT p.user_nid, p.pos, p.state, p.currently_active, p.last_active_ts, p.status_msg,
               u.user_id
        FROM presence p JOIN users_nid u ON u.nid = p.user_nid
        WHERE p.pos > $1 AND p.pos <= $2 AND ", ours!(), "
        ORDER BY p.pos DESC LIMIT $4");
    LIST_MISSED_JOINS = concat!("
        SELECT h.room, h.pos, coalesce(", writer_at!("h"), ", e.writer), h.user_nid, u.user_id
        FROM membership_history h
        JOIN events e ON e.nid = h.event JOIN users_nid u ON u.nid = h.user_nid
        WHERE h.membership = 'j' AND h.pos > $1 AND h.pos <= $2
        ORDER BY h.pos DESC LIMIT $3");
}

/// Positions after `low`, up to `high`.
#[derive(Clone, Copy, Debug)]
pub struct Between {
    pub low: Position,
    pub high: Position,
}

/// The newest `limit` receipts of users of `server` that everybody may see, each with the ids of
/// the room and of the user, newest first.
pub async fn list_receipts(
    pool: &Pool,
    between: Between,
    server: &str,
    limit: i64,
) -> Result<Vec<(receipts::Stored, String, String)>> {
    let Between { low, high } = between;
    let rows = pool.query(&LIST_MISSED_RECEIPTS, &[&low.0, &high.0, &server, &limit]).await?;
    Ok(rows.iter().map(|row| (receipts::stored(row), row.get(8), row.get(9))).collect())
}

/// The newest `limit` changes of the presence of users of `server`, each with the user's id,
/// newest first.
pub async fn list_presence(
    pool: &Pool,
    between: Between,
    server: &str,
    limit: i64,
) -> Result<Vec<(presence::Stored, String)>> {
    let Between { low, high } = between;
    let rows = pool.query(&LIST_MISSED_PRESENCE, &[&low.0, &high.0, &server, &limit]).await?;
    Ok(rows.iter().map(|row| (presence::stored(row), row.get(6))).collect())
}

/// Somebody, of any server, who has come into a room or is still in it.
#[derive(Clone, Debug)]
pub struct MissedJoin {
    pub room: RoomNid,
    pub pos: Position,
    pub writer: WriterId,
    pub user: UserNid,
    pub user_id: String,
}

/// The newest `limit` joins, newest first.
pub async fn list_joins(pool: &Pool, between: Between, limit: i64) -> Result<Vec<MissedJoin>> {
    let Between { low, high } = between;
    let rows = pool.query(&LIST_MISSED_JOINS, &[&low.0, &high.0, &limit]).await?;
    let join = |row: &Row| MissedJoin {
        room: RoomNid(row.get(0)),
        pos: Position(row.get(1)),
        writer: WriterId(row.get(2)),
        user: UserNid(row.get(3)),
        user_id: row.get(4),
    };
    Ok(rows.iter().map(join).collect())
}
