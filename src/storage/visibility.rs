//! When a user was what in a room, and when its history was visible to whom.

use chatd_base::{Position, RoomNid, UserNid};
use tokio_postgres::Row;

use crate::{Pool, Result, statement::statements};

/// One row a room: its changes of visibility and of the user's membership, in order.
macro_rules! past {
    () => {
        "SELECT r.nid, r.room_id, r.version, coalesce(m.forgotten, false), h.pos, h.membership,
                v.pos, v.content
         FROM rooms r
         LEFT JOIN memberships m ON m.user_nid = $1 AND m.room = r.nid
         CROSS JOIN LATERAL (
             SELECT coalesce(array_agg(h.pos ORDER BY h.pos), '{}') AS pos,
                    coalesce(array_agg(h.membership ORDER BY h.pos), '{}') AS membership
             FROM membership_history h WHERE h.user_nid = $1 AND h.room = r.nid) AS h
         CROSS JOIN LATERAL (
             SELECT coalesce(array_agg(d.pos ORDER BY d.pos), '{}') AS pos,
                    coalesce(array_agg(coalesce(j.content, '{}') ORDER BY d.pos), '{}') AS content
             FROM state_delta d LEFT JOIN event_json j ON j.nid = d.event
             WHERE d.room = r.nid
               AND d.key = (SELECT nid FROM state_keys
                            WHERE type = 'm.room.history_visibility' AND state_key = '')) AS v "
    };
}

statements! {
    GET_PAST = concat!(past!(), "WHERE r.room_id = $2");
    LIST_PASTS = concat!(past!(), "WHERE r.nid = ANY($2::int4[])");
}

/// What decides how much of a room a user sees.
#[derive(Clone, Debug)]
pub struct Past {
    pub room: RoomNid,
    pub room_id: String,
    pub version: String,
    /// The user has forgotten the room.
    pub forgotten: bool,
    /// The user's memberships as letters, each from its position on.
    pub memberships: Vec<(Position, i8)>,
    /// Contents of `m.room.history_visibility`, each from its position on.
    pub visibility: Vec<(Position, String)>,
}

fn past(row: &Row) -> Past {
    let pairs = |index: usize| row.get::<_, Vec<i64>>(index).into_iter().map(Position);
    Past {
        room: RoomNid(row.get(0)),
        room_id: row.get(1),
        version: row.get(2),
        forgotten: row.get(3),
        memberships: pairs(4).zip(row.get::<_, Vec<i8>>(5)).collect(),
        visibility: pairs(6).zip(row.get::<_, Vec<String>>(7)).collect(),
    }
}

/// The past of `user` in one room; `None` if the room is not known here.
pub async fn get(pool: &Pool, user: UserNid, room_id: &str) -> Result<Option<Past>> {
    Ok(pool.query_opt(&GET_PAST, &[&user.0, &room_id]).await?.as_ref().map(past))
}

/// The past of `user` in many rooms, in no order.
pub async fn list(pool: &Pool, user: UserNid, rooms: &[RoomNid]) -> Result<Vec<Past>> {
    let rooms: Vec<i32> = rooms.iter().map(|room| room.0).collect();
    Ok(pool.query(&LIST_PASTS, &[&user.0, &rooms]).await?.iter().map(past).collect())
}
