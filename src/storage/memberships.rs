//! Who is in which room now.

use chatd_base::{RoomNid, UserNid};

use crate::{Pool, Result, statement::statements};

statements! {
    GET_ROOM_NID = "SELECT nid FROM rooms WHERE room_id = $1";
    IS_JOINED = "SELECT 1 FROM memberships
                 WHERE user_nid = $1 AND room = $2 AND membership = 'j'";
    /// Those of $2 who are in a room that $1 is in too.
    LIST_SHARING = "SELECT DISTINCT theirs.user_nid FROM memberships mine
                    JOIN memberships theirs ON theirs.room = mine.room AND theirs.membership = 'j'
                    WHERE mine.user_nid = $1 AND mine.membership = 'j'
                          AND theirs.user_nid = ANY($2::int4[])";
}

/// The number of a room.
pub async fn get_room_nid(pool: &Pool, room_id: &str) -> Result<Option<RoomNid>> {
    let row = pool.query_opt(&GET_ROOM_NID, &[&room_id]).await?;
    Ok(row.map(|row| RoomNid(row.get(0))))
}

/// Whether `user` is in `room`.
pub async fn is_joined(pool: &Pool, user: UserNid, room: RoomNid) -> Result<bool> {
    Ok(pool.query_opt(&IS_JOINED, &[&user.0, &room.0]).await?.is_some())
}

/// Those of `others` who are in a room that `user` is in too.
pub async fn list_sharing(pool: &Pool, user: UserNid, others: &[UserNid]) -> Result<Vec<UserNid>> {
    let others: Vec<i32> = others.iter().map(|other| other.0).collect();
    let rows = pool.query(&LIST_SHARING, &[&user.0, &others]).await?;
    Ok(rows.iter().map(|row| UserNid(row.get(0))).collect())
}
