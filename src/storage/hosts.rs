//! Other servers in rooms, as far as the tables know: those of the users who are joined, and, as
//! long as the members of a room are not known, those that are said to be in it.

use chatd_base::{Position, RoomNid, UserNid};

use crate::{Pool, Result, Row, statement::statements};

/// The server of a user id in the column `u.user_id`.
macro_rules! server {
    () => {
        "substr(u.user_id, strpos(u.user_id, ':') + 1)"
    };
}

statements! {
    COUNT_HOSTS = concat!("
        SELECT m.room, ", server!(), ", count(*) FILTER (WHERE m.membership = 'j'), max(m.pos)
        FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
        WHERE m.room = ANY($1::int4[]) AND NOT m.is_local GROUP BY 1, 2
        UNION ALL
        SELECT p.room, s, 1, 0 FROM partial_rooms p CROSS JOIN unnest(p.servers) AS s
        WHERE p.room = ANY($1::int4[]) AND p.whole_pos IS NULL");
    /// Who is in the table has been in the room at some time; the history says when.
    LIST_HOSTS_BEFORE = concat!("
        SELECT DISTINCT at.room, at.pos, ", server!(), "
        FROM unnest($1::int4[], $2::int8[]) AS at(room, pos)
        JOIN memberships m ON m.room = at.room AND NOT m.is_local
        JOIN users_nid u ON u.nid = m.user_nid
        WHERE CASE WHEN m.pos < at.pos THEN m.membership ELSE
                  (SELECT h.membership FROM membership_history h
                   WHERE h.user_nid = m.user_nid AND h.room = m.room AND h.pos < at.pos
                   ORDER BY h.pos DESC LIMIT 1) END = 'j'
        UNION
        SELECT at.room, at.pos, s
        FROM unnest($1::int4[], $2::int8[]) AS at(room, pos)
        JOIN partial_rooms p ON p.room = at.room AND at.pos <= coalesce(p.whole_pos, at.pos)
        CROSS JOIN unnest(p.servers) AS s");
    /// As above, for one server.
    LIST_PRESENT_BEFORE = concat!("
        SELECT at.room, at.pos FROM unnest($1::int4[], $2::int8[]) AS at(room, pos)
        WHERE EXISTS (
            SELECT 1 FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
            WHERE m.room = at.room AND NOT m.is_local AND ", server!(), " = $3
                  AND CASE WHEN m.pos < at.pos THEN m.membership ELSE
                      (SELECT h.membership FROM membership_history h
                       WHERE h.user_nid = m.user_nid AND h.room = m.room AND h.pos < at.pos
                       ORDER BY h.pos DESC LIMIT 1) END = 'j')
           OR EXISTS (
            SELECT 1 FROM partial_rooms p
            WHERE p.room = at.room AND at.pos <= coalesce(p.whole_pos, at.pos)
                  AND $3 = ANY(p.servers))");
    LIST_ROOMS_OF = "SELECT user_nid, room FROM memberships
                     WHERE user_nid = ANY($1::int4[]) AND membership = 'j'";
}

/// Members of one room that a server has.
#[derive(Clone, Debug)]
pub struct HostCount {
    pub room: RoomNid,
    pub server: String,
    pub joined: i64,
    /// Position of the last change of any of its members.
    pub last: Position,
}

/// The other servers that are or were in these rooms.
pub async fn count(pool: &Pool, rooms: &[RoomNid]) -> Result<Vec<HostCount>> {
    let rooms: Vec<i32> = rooms.iter().map(|room| room.0).collect();
    let row = |row: &Row| HostCount {
        room: RoomNid(row.get(0)),
        server: row.get(1),
        joined: row.get(2),
        last: Position(row.get(3)),
    };
    Ok(pool.query(&COUNT_HOSTS, &[&rooms]).await?.iter().map(row).collect())
}

/// The other servers that were in each room just before that position.
pub async fn list_before(
    pool: &Pool,
    at: &[(RoomNid, Position)],
) -> Result<Vec<(RoomNid, Position, String)>> {
    let rooms: Vec<i32> = at.iter().map(|(room, _)| room.0).collect();
    let positions: Vec<i64> = at.iter().map(|(_, position)| position.0).collect();
    let rows = pool.query(&LIST_HOSTS_BEFORE, &[&rooms, &positions]).await?;
    Ok(rows.iter().map(|row| (RoomNid(row.get(0)), Position(row.get(1)), row.get(2))).collect())
}

/// Which of the users is joined where.
pub async fn list_rooms_of(pool: &Pool, users: &[UserNid]) -> Result<Vec<(UserNid, RoomNid)>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_ROOMS_OF, &[&users]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), RoomNid(row.get(1)))).collect())
}

/// Those of `at` at which the server was in the room.
pub async fn list_present_before(
    pool: &Pool,
    server: &str,
    at: &[(RoomNid, Position)],
) -> Result<Vec<(RoomNid, Position)>> {
    let (rooms, positions): (Vec<i32>, Vec<i64>) =
        at.iter().map(|(room, position)| (room.0, position.0)).unzip();
    let rows = pool.query(&LIST_PRESENT_BEFORE, &[&rooms, &positions, &server]).await?;
    Ok(rows.iter().map(|row| (RoomNid(row.get(0)), Position(row.get(1)))).collect())
}
