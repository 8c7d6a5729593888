//! Room aliases and the published rooms.

use chatd_base::{RoomNid, UserNid};

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    GET_ALIAS_OWNER = "SELECT r.room_id, a.creator FROM room_aliases a JOIN rooms r ON r.nid = a.room
                       WHERE a.alias = $1";
    INSERT_ALIAS = "INSERT INTO room_aliases (alias, room, creator) VALUES ($1, $2, $3)
                    ON CONFLICT DO NOTHING";
    DELETE_ALIAS = "DELETE FROM room_aliases WHERE alias = $1";
    LIST_ALIASES = "SELECT alias FROM room_aliases WHERE room = $1 ORDER BY alias";
    GET_PUBLISHED = "SELECT is_public FROM rooms WHERE room_id = $1";
    SET_PUBLISHED = "UPDATE rooms SET is_public = $2 WHERE room_id = $1";
    LIST_PUBLISHED = "
        SELECT r.room_id,
               (SELECT count(*) FROM memberships m WHERE m.room = r.nid AND m.membership = 'j'),
               s.types, s.contents
        FROM rooms r
        CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(k.type ORDER BY k.nid), '{}') AS types,
                   coalesce(array_agg(j.content ORDER BY k.nid), '{}') AS contents
            FROM state_keys k
            JOIN current_state c ON c.room = r.nid AND c.key = k.nid
            JOIN event_json j ON j.nid = c.event
            WHERE k.state_key = '' AND k.type = ANY($1::text[])) AS s
        WHERE r.is_public";
}

/// A published room: its joined members, and (type, content) of the state that was asked for.
#[derive(Clone, Debug)]
pub struct Published {
    pub room_id: String,
    pub joined: i64,
    pub state: Vec<(String, String)>,
}

/// The room that a local alias points to, and who made the alias.
pub async fn get_alias_owner(pool: &Pool, alias: &str) -> Result<Option<(String, UserNid)>> {
    let row = pool.query_opt(&GET_ALIAS_OWNER, &[&alias]).await?;
    Ok(row.map(|row| (row.get(0), UserNid(row.get(1)))))
}

/// Adds an alias; false if it is taken.
pub async fn insert_alias(
    pool: &Pool,
    alias: &str,
    room: RoomNid,
    creator: UserNid,
) -> Result<bool> {
    Ok(pool.execute(&INSERT_ALIAS, &[&alias, &room.0, &creator.0]).await? > 0)
}

/// Removes an alias; false if there was none.
pub async fn delete_alias(pool: &Pool, alias: &str) -> Result<bool> {
    Ok(pool.execute(&DELETE_ALIAS, &[&alias]).await? > 0)
}

/// Local aliases of a room, sorted.
pub async fn list_aliases(pool: &Pool, room: RoomNid) -> Result<Vec<String>> {
    let rows = pool.query(&LIST_ALIASES, &[&room.0]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether a room is in the directory; `None` if it is not known.
pub async fn get_published(pool: &Pool, room_id: &str) -> Result<Option<bool>> {
    Ok(pool.query_opt(&GET_PUBLISHED, &[&room_id]).await?.map(|row| row.get(0)))
}

/// Puts a room into the directory or takes it out.
pub fn set_published(batch: &mut Batch, room_id: &str, is_public: bool) {
    batch.add(&SET_PUBLISHED, params![room_id.to_owned(), is_public]);
}

/// All rooms of the directory with the state of these types (and an empty state key).
pub async fn list_published(pool: &Pool, types: &[&str]) -> Result<Vec<Published>> {
    let rows = pool.query(&LIST_PUBLISHED, &[&types]).await?;
    Ok(rows
        .iter()
        .map(|row| Published {
            room_id: row.get(0),
            joined: row.get(1),
            state: row
                .get::<_, Vec<String>>(2)
                .into_iter()
                .zip(row.get::<_, Vec<String>>(3))
                .collect(),
        })
        .collect())
}
