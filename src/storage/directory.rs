//! Room aliases and the published rooms.

use chatd_base::{RoomNid, UserNid};

use crate::{Batch, Pool, Result, Row, params, statement::statements};

/// A room with the state of the types $1; what a [`Described`] is read from.
macro_rules! described {
    () => {
        "r.room_id,
         (SELECT count(*) FROM memberships m WHERE m.room = r.nid AND m.membership = 'j'),
         s.types, s.contents, r.version
         FROM rooms r
         CROSS JOIN LATERAL (
             SELECT coalesce(array_agg(k.type ORDER BY k.nid), '{}') AS types,
                    coalesce(array_agg(j.content ORDER BY k.nid), '{}') AS contents
             FROM state_keys k
             JOIN current_state c ON c.room = r.nid AND c.key = k.nid
             JOIN event_json j ON j.nid = c.event
             WHERE k.state_key = '' AND k.type = ANY($1::text[])) AS s"
    };
}

/// Whether users of the server $1 have one of the memberships in the room `r`.
macro_rules! has_users {
    ($letters:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
                     WHERE m.room = r.nid AND m.membership IN (",
            $letters,
            ") AND substr(u.user_id, strpos(u.user_id, ':') + 1) = $1)"
        )
    };
}

statements! {
    GET_ALIAS_OWNER = "SELECT r.room_id, a.creator FROM room_aliases a JOIN rooms r ON r.nid = a.room
                       WHERE a.alias = $1";
    INSERT_ALIAS = "INSERT INTO room_aliases (alias, room, creator) VALUES ($1, $2, $3)
                    ON CONFLICT DO NOTHING";
    DELETE_ALIAS = "DELETE FROM room_aliases WHERE alias = $1";
    MOVE_ALIASES = "UPDATE room_aliases a SET room = new.nid FROM rooms old, rooms new
                    WHERE old.room_id = $1 AND new.room_id = $2 AND a.room = old.nid";
    LIST_ALIASES = "SELECT alias FROM room_aliases WHERE room = $1 ORDER BY alias";
    GET_PUBLISHED = "SELECT is_public FROM rooms WHERE room_id = $1";
    SET_PUBLISHED = "UPDATE rooms SET is_public = $2 WHERE room_id = $1";
    LIST_PUBLISHED = concat!("SELECT ", described!(), " WHERE r.is_public");
    LIST_DESCRIBED = concat!("SELECT ", described!(), " WHERE r.room_id = ANY($2::text[])
                             AND EXISTS (SELECT 1 FROM memberships m
                                         WHERE m.room = r.nid AND m.membership = 'j' AND m.is_local)");
    /// Spaces are not large; $2 is for those that are.
    LIST_SPACE_CHILDREN = "
        SELECT r.room_id, k.state_key, u.user_id, j.content, e.origin_ts
        FROM rooms r
        JOIN current_state c ON c.room = r.nid
        JOIN state_keys k ON k.nid = c.key
        JOIN events e ON e.nid = c.event
        JOIN event_json j ON j.nid = c.event
        JOIN users_nid u ON u.nid = e.sender
        WHERE r.room_id = ANY($1::text[]) AND k.type = 'm.space.child'
        LIMIT $2";
    LIST_MEMBERSHIPS = "SELECT r.room_id, m.membership FROM rooms r
                        JOIN memberships m ON m.room = r.nid AND m.user_nid = $1
                        WHERE r.room_id = ANY($2::text[])";
    /// A server is joined to a room if one of its users is, else invited if one of them is.
    LIST_SERVER_MEMBERSHIPS = concat!("
        SELECT r.room_id, ", has_users!("'j'"), "
        FROM rooms r
        WHERE r.room_id = ANY($2::text[]) AND (", has_users!("'j'"), " OR ", has_users!("'i'"), ")");
}

/// A room: its joined members, and (type, content) of the state that was asked for.
#[derive(Clone, Debug)]
pub struct Described {
    pub room_id: String,
    pub version: String,
    pub joined: i64,
    pub state: Vec<(String, String)>,
}

/// An `m.space.child` event of a room.
#[derive(Clone, Debug)]
pub struct SpaceChild {
    pub room_id: String,
    pub state_key: String,
    pub sender: String,
    pub content: String,
    pub origin_ts: i64,
}

/// Children that are read at a time (R8).
const MOST_CHILDREN: i64 = 20_000;

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

/// Lets all aliases of a room point to another one; does nothing if that is not known.
pub async fn move_aliases(pool: &Pool, old: &str, new: &str) -> Result<()> {
    pool.execute(&MOVE_ALIASES, &[&old, &new]).await?;
    Ok(())
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
pub async fn list_published(pool: &Pool, types: &[&str]) -> Result<Vec<Described>> {
    Ok(pool.query(&LIST_PUBLISHED, &[&types]).await?.iter().map(described).collect())
}

/// Those of `rooms` that users of this server are in, with the state of these types.
pub async fn list_described(pool: &Pool, types: &[&str], rooms: &[&str]) -> Result<Vec<Described>> {
    Ok(pool.query(&LIST_DESCRIBED, &[&types, &rooms]).await?.iter().map(described).collect())
}

fn described(row: &Row) -> Described {
    let state = row.get::<_, Vec<String>>(2).into_iter().zip(row.get::<_, Vec<String>>(3));
    Described {
        room_id: row.get(0),
        version: row.get(4),
        joined: row.get(1),
        state: state.collect(),
    }
}

/// The `m.space.child` events of `rooms`, in no order.
pub async fn list_space_children(pool: &Pool, rooms: &[&str]) -> Result<Vec<SpaceChild>> {
    let rows = pool.query(&LIST_SPACE_CHILDREN, &[&rooms, &MOST_CHILDREN]).await?;
    let child = |row: &Row| SpaceChild {
        room_id: row.get(0),
        state_key: row.get(1),
        sender: row.get(2),
        content: row.get(3),
        origin_ts: row.get(4),
    };
    Ok(rows.iter().map(child).collect())
}

/// What `user` is in each of `rooms`, as letters; rooms of which nothing is known are left out.
pub async fn list_memberships(
    pool: &Pool,
    user: UserNid,
    rooms: &[&str],
) -> Result<Vec<(String, i8)>> {
    let rows = pool.query(&LIST_MEMBERSHIPS, &[&user.0, &rooms]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Those of `rooms` in which users of `server` are (true), or to which they are invited.
pub async fn list_server_memberships(
    pool: &Pool,
    server: &str,
    rooms: &[&str],
) -> Result<Vec<(String, bool)>> {
    let rows = pool.query(&LIST_SERVER_MEMBERSHIPS, &[&server, &rooms]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
