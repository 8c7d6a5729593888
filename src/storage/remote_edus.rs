//! What has to be known of users of other servers, for what they do in passing. Every function is
//! one statement, whatever the number of users.

use chatd_base::{Position, RoomNid, UserNid};

use crate::{Pool, Result, Row, statement::statements};

statements! {
    LIST_JOINED_PAIRS = "SELECT r.room_id, u.user_id, r.nid
                         FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[])) AS w(room, usr)
                         JOIN rooms r ON r.room_id = w.room
                         JOIN users_nid u ON u.user_id = w.usr
                         JOIN memberships m ON m.user_nid = u.nid AND m.room = r.nid
                         WHERE m.membership = 'j'";
    /// Where receipts are to go, and where they stand; those of users who are not in the room, and
    /// those for unknown events, have no row.
    LIST_RECEIPT_TARGETS = "SELECT w.n, r.nid, u.nid, e.pos, old.event_pos
                            FROM unnest($1::int8[], $2::text[], $3::text[], $4::text[], $5::text[])
                                 AS w(n, room, usr, event, thread)
                            JOIN rooms r ON r.room_id = w.room
                            JOIN users_nid u ON u.user_id = w.usr
                            JOIN memberships m ON m.user_nid = u.nid AND m.room = r.nid
                            JOIN events e ON e.event_id = w.event AND e.room = r.nid
                            LEFT JOIN receipts old ON old.room = r.nid AND old.user_nid = u.nid
                                                   AND old.kind = 'r' AND old.thread = w.thread
                            WHERE m.membership = 'j' AND e.pos > 0";
    LIST_ACLS = "SELECT r.room_id, j.content FROM rooms r
                 JOIN state_keys k ON k.type = 'm.room.server_acl' AND k.state_key = ''
                 JOIN current_state c ON c.room = r.nid AND c.key = k.nid
                 JOIN event_json j ON j.nid = c.event
                 WHERE r.room_id = ANY($1::text[])";
    /// Users who are in a room with somebody of this server.
    LIST_SEEN = "SELECT u.nid, u.user_id FROM users_nid u
                 WHERE u.user_id = ANY($1::text[]) AND EXISTS (
                     SELECT 1 FROM memberships theirs
                     JOIN memberships ours ON ours.room = theirs.room AND ours.is_local
                                           AND ours.membership = 'j'
                     WHERE theirs.user_nid = u.nid AND theirs.membership = 'j')";
}

/// Those (room, user) of the pairs that are joined, with the room's number.
pub async fn list_joined(
    pool: &Pool,
    rooms: &[&str],
    users: &[&str],
) -> Result<Vec<(String, String, RoomNid)>> {
    let rows = pool.query(&LIST_JOINED_PAIRS, &[&rooms, &users]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), RoomNid(row.get(2)))).collect())
}

/// A receipt of a user of another server, as it was sent.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub room_id: &'a str,
    pub user_id: &'a str,
    pub event_id: &'a str,
    /// Empty for an unthreaded receipt.
    pub thread: &'a str,
}

/// What is known of such a receipt.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its place among those that were asked for.
    pub index: usize,
    pub room: RoomNid,
    pub user: UserNid,
    pub event_pos: Position,
    /// Position of the event at which the receipt stands now.
    pub stands_at: Option<Position>,
}

/// Where the receipts are to go.
pub async fn list_targets(pool: &Pool, wanted: &[Wanted<'_>]) -> Result<Vec<Target>> {
    let numbers: Vec<i64> = (0..).take(wanted.len()).collect();
    let rooms: Vec<&str> = wanted.iter().map(|w| w.room_id).collect();
    let users: Vec<&str> = wanted.iter().map(|w| w.user_id).collect();
    let events: Vec<&str> = wanted.iter().map(|w| w.event_id).collect();
    let threads: Vec<&str> = wanted.iter().map(|w| w.thread).collect();
    let rows =
        pool.query(&LIST_RECEIPT_TARGETS, &[&numbers, &rooms, &users, &events, &threads]).await?;
    let target = |row: &Row| Target {
        index: usize::try_from(row.get::<_, i64>(0)).unwrap_or(usize::MAX),
        room: RoomNid(row.get(1)),
        user: UserNid(row.get(2)),
        event_pos: Position(row.get(3)),
        stands_at: row.get::<_, Option<i64>>(4).map(Position),
    };
    Ok(rows.iter().map(target).collect())
}

/// (room id, content) of the access control lists of rooms that have one.
pub async fn list_acls(pool: &Pool, rooms: &[&str]) -> Result<Vec<(String, String)>> {
    let rows = pool.query(&LIST_ACLS, &[&rooms]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Those of the users who are in a room with somebody of this server.
pub async fn list_seen(pool: &Pool, users: &[&str]) -> Result<Vec<(UserNid, String)>> {
    let rows = pool.query(&LIST_SEEN, &[&users]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}
