//! What a sync reads that no other topic has: memberships and how they changed, the state of many
//! rooms at a point of their timelines, room summaries, unread counts, and how far a device's
//! inbox has been delivered. Each function is one statement whatever the number of rooms.

use chatd_base::{EventNid, Position, RoomNid, UserNid, WriterId};

use crate::{Pool, Result, Row, events::writer_at, statement::statements};

statements! {
    LIST_MEMBERSHIPS = concat!("SELECT m.user_nid, m.room, r.room_id, m.membership, m.event, m.pos,
                               CASE WHEN m.membership = 'i' THEN
                                    (SELECT s.user_id FROM users_nid s WHERE s.nid = m.sender) END,
                               p.room IS NOT NULL, p.whole_pos, p.whole_writer, ", writer_at!("m"), "
                        FROM memberships m JOIN rooms r ON r.nid = m.room
                        LEFT JOIN partial_rooms p ON p.room = m.room AND m.membership = 'j'
                        WHERE m.user_nid = ANY($1::int4[]) AND m.membership IN ('j', 'i', 'k')");
    LIST_LEFT_ROOMS = "SELECT m.user_nid, m.room, r.room_id, m.membership, m.event, m.pos,
                              NULL::text, false, NULL::int8, NULL::int2, NULL::int2
                       FROM memberships m JOIN rooms r ON r.nid = m.room
                       WHERE m.user_nid = $1 AND m.membership IN ('l', 'b') AND NOT m.forgotten";
    /// Where the last time that a user was joined ended.
    LIST_ENDS = "SELECT w.room, ended.pos
                 FROM unnest($2::int4[]) AS w(room)
                 CROSS JOIN LATERAL (
                     SELECT max(pos) AS pos FROM membership_history
                     WHERE user_nid = $1 AND room = w.room AND membership = 'j') AS joined
                 CROSS JOIN LATERAL (
                     SELECT min(pos) AS pos FROM membership_history
                     WHERE user_nid = $1 AND room = w.room AND pos > joined.pos) AS ended
                 WHERE ended.pos IS NOT NULL";
    LIST_FORGOTTEN = "SELECT room FROM memberships
                      WHERE user_nid = $1 AND room = ANY($2::int4[]) AND forgotten";
    LIST_MEMBERSHIP_CHANGES =
        concat!("SELECT h.room, r.room_id, h.pos, coalesce(", writer_at!("h"), ", e.writer),
                h.membership, h.event,
                (SELECT b.membership FROM membership_history b
                 WHERE b.user_nid = h.user_nid AND b.room = h.room AND b.pos < h.pos
                 ORDER BY b.pos DESC LIMIT 1),
                CASE WHEN h.membership = 'i' THEN
                     (SELECT s.user_id FROM users_nid s WHERE s.nid = e.sender) END
         FROM membership_history h
         JOIN rooms r ON r.nid = h.room
         JOIN events e ON e.nid = h.event
         WHERE h.user_nid = $1 AND h.pos > $2 AND h.pos <= $3
         ORDER BY h.pos");
    LIST_INVITE_STATE = "SELECT room, state FROM invite_state
                         WHERE user_nid = $1 AND room = ANY($2::int4[])";
    /// The current state with all later changes undone. `$3`: whether to include every member;
    /// else only those of (`$4`, `$5`).
    LIST_STATE_AT =
        "WITH wanted AS (SELECT * FROM unnest($1::int4[], $2::int8[]) AS w(room, at)),
         undone AS (SELECT DISTINCT ON (d.room, d.key) d.room, d.key, d.previous
                    FROM wanted w JOIN state_delta d ON d.room = w.room AND d.pos > w.at
                    ORDER BY d.room, d.key, d.pos),
         entries AS (SELECT c.room, c.key, c.event
                     FROM wanted w JOIN current_state c ON c.room = w.room
                     LEFT JOIN undone u ON u.room = c.room AND u.key = c.key
                     WHERE u.room IS NULL
                     UNION ALL
                     SELECT room, key, previous FROM undone WHERE previous IS NOT NULL),
         members AS (SELECT * FROM unnest($4::int4[], $5::text[]) AS m(room, user_id))
         SELECT n.room, n.event FROM entries n JOIN state_keys k ON k.nid = n.key
         WHERE $3 OR k.type <> 'm.room.member'
               OR (n.room, k.state_key) IN (SELECT room, user_id FROM members)";
    /// The last change of each entry in (low, high].
    LIST_STATE_CHANGES =
        "SELECT room, event
         FROM (SELECT DISTINCT ON (d.room, d.key) d.room, d.event
               FROM unnest($1::int4[], $2::int8[], $3::int8[]) AS w(room, low, high)
               JOIN state_delta d ON d.room = w.room AND d.pos > w.low AND d.pos <= w.high
               ORDER BY d.room, d.key, d.pos DESC) AS last
         WHERE event IS NOT NULL";
    LIST_MEMBERS_AT =
        "SELECT w.room, CASE WHEN d.found THEN d.previous ELSE c.event END
         FROM unnest($1::int4[], $2::text[], $3::int8[]) AS w(room, user_id, at)
         JOIN state_keys k ON k.type = 'm.room.member' AND k.state_key = w.user_id
         LEFT JOIN LATERAL (SELECT previous, true AS found FROM state_delta s
                            WHERE s.room = w.room AND s.key = k.nid AND s.pos > w.at
                            ORDER BY s.pos LIMIT 1) AS d ON true
         LEFT JOIN current_state c ON c.room = w.room AND c.key = k.nid
         WHERE CASE WHEN d.found THEN d.previous ELSE c.event END IS NOT NULL";
    LIST_SUMMARIES =
        "SELECT w.room,
                (SELECT count(*) FROM memberships m WHERE m.room = w.room AND m.membership = 'j'),
                (SELECT count(*) FROM memberships m WHERE m.room = w.room AND m.membership = 'i'),
                ARRAY(SELECT u.user_id
                      FROM (SELECT m.user_nid, m.pos FROM memberships m
                            WHERE m.room = w.room AND m.membership IN ('j', 'i')
                            ORDER BY m.pos LIMIT 6) AS first
                      JOIN users_nid u ON u.nid = first.user_nid ORDER BY first.pos),
                ARRAY(SELECT u.user_id
                      FROM (SELECT m.user_nid, m.pos FROM memberships m
                            WHERE m.room = w.room AND m.membership IN ('l', 'b')
                            ORDER BY m.pos LIMIT 6) AS first
                      JOIN users_nid u ON u.nid = first.user_nid ORDER BY first.pos),
                EXISTS (SELECT 1 FROM state_keys k
                        JOIN current_state c ON c.room = w.room AND c.key = k.nid
                        JOIN event_json j ON j.nid = c.event
                        WHERE k.state_key = ''
                              AND (k.type = 'm.room.name' AND j.content ~ '\"name\"\\s*:\\s*\"[^\"]'
                                   OR k.type = 'm.room.canonical_alias'
                                      AND j.content ~ '\"alias\"\\s*:\\s*\"[^\"]'))
         FROM unnest($1::int4[]) AS w(room)";
    /// What is unread since the user came into the room, per thread.
    LIST_UNREAD =
        "SELECT n.room, n.thread, count(*), count(*) FILTER (WHERE $1 = ANY(n.highlight))
         FROM unnest($2::int4[]) AS w(room)
         CROSS JOIN LATERAL (
             SELECT greatest(
                 (SELECT max(h.pos) FROM membership_history h
                  WHERE h.user_nid = $1 AND h.room = w.room AND h.membership <> 'j'),
                 (SELECT max(r.event_pos) FROM receipts r
                  WHERE r.room = w.room AND r.user_nid = $1 AND r.thread = ''), 0) AS pos) AS low
         JOIN event_notifications n ON n.room = w.room AND n.pos > low.pos AND n.pos <= $3
         WHERE $1 = ANY(n.notify)
               AND NOT EXISTS (SELECT 1 FROM receipts r
                               WHERE r.room = n.room AND r.user_nid = $1 AND r.event_pos >= n.pos
                                     AND r.thread = coalesce(nullif(n.thread, ''), 'main'))
         GROUP BY n.room, n.thread";
    LIST_JOINED_USERS = "SELECT DISTINCT m.user_nid, u.user_id
                         FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
                         WHERE m.room = ANY($1::int4[]) AND m.membership = 'j'";
    LIST_PRESENCE_IN = "SELECT p.user_nid, u.user_id, p.state, p.currently_active, p.last_active_ts,
                               p.status_msg
                        FROM presence p JOIN users_nid u ON u.nid = p.user_nid
                        WHERE p.pos > $3 AND ($4 OR p.state <> 'f')
                              AND (p.user_nid = $1
                                   OR p.user_nid IN (SELECT m.user_nid FROM memberships m
                                                     WHERE m.room = ANY($2::int4[])
                                                           AND m.membership = 'j'))
                        ORDER BY p.pos DESC LIMIT $5";
    LIST_DEVICE_CHANGES_IN = "SELECT DISTINCT c.user_nid, u.user_id
                              FROM device_list_changes c JOIN users_nid u ON u.nid = c.user_nid
                              WHERE c.pos > $3 AND c.pos <= $4
                                    AND (c.user_nid = $1
                                         OR c.user_nid IN (SELECT m.user_nid FROM memberships m
                                                           WHERE m.room = ANY($2::int4[])
                                                                 AND m.membership = 'j'))";
    /// Users whose last change in ($2, $3] was to go, and who were joined before.
    LIST_PARTED_USERS = "SELECT DISTINCT m.user_nid, u.user_id
                         FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
                         WHERE m.room = ANY($1::int4[]) AND m.membership IN ('l', 'b')
                               AND m.pos > $2 AND m.pos <= $3";
    /// Users whose last change after $2 made or left them joined, and who were not at $2.
    LIST_ARRIVED_USERS = "SELECT DISTINCT m.user_nid, u.user_id
                          FROM memberships m JOIN users_nid u ON u.nid = m.user_nid
                          WHERE m.room = ANY($1::int4[]) AND m.membership = 'j' AND m.pos > $2
                                AND 'j' IS DISTINCT FROM
                                    (SELECT h.membership FROM membership_history h
                                     WHERE h.user_nid = m.user_nid AND h.room = m.room
                                           AND h.pos <= $2 ORDER BY h.pos DESC LIMIT 1)";
    GET_DELIVERED = "SELECT pos, removed FROM to_device_delivered
                     WHERE user_nid = $1 AND device_id = $2";
    /// Returns what was there before; that is looked at in what is inserted, since whatever only
    /// `RETURNING` asks for is read when it is too late.
    SET_DELIVERED = "WITH before AS MATERIALIZED (SELECT pos, removed FROM to_device_delivered
                                                  WHERE user_nid = $1 AND device_id = $2
                                                  FOR UPDATE)
                     INSERT INTO to_device_delivered (user_nid, device_id, pos)
                     SELECT $1, $2, greatest($3::int8, (SELECT before.pos FROM before))
                     ON CONFLICT (user_nid, device_id)
                     DO UPDATE SET pos = greatest(to_device_delivered.pos, excluded.pos)
                     RETURNING (SELECT before.pos FROM before),
                               (SELECT before.removed FROM before)";
}

/// What a user is in a room.
#[derive(Clone, Debug)]
pub struct MembershipRow {
    pub user: UserNid,
    pub room: RoomNid,
    pub room_id: String,
    pub membership: i8,
    pub event: EventNid,
    pub pos: Position,
    /// Who has written at that position; not known of rooms that the user has left.
    pub writer: Option<WriterId>,
    /// Who has invited the user, if it is invited.
    pub inviter: Option<String>,
    /// If the user is in the room, and it was joined without its members.
    pub extent: Option<Extent>,
}

/// How much of a room is here that was joined without its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Partial,
    /// All of it, since then.
    WholeSince(WriterId, Position),
}

fn extent(row: &Row) -> Option<Extent> {
    let is_or_was_partial: bool = row.get(7);
    let since: (Option<i64>, Option<i16>) = (row.get(8), row.get(9));
    is_or_was_partial.then_some(match since {
        (Some(at), Some(writer)) => Extent::WholeSince(WriterId(writer), Position(at)),
        _ => Extent::Partial,
    })
}

fn membership(row: &Row) -> MembershipRow {
    MembershipRow {
        user: UserNid(row.get(0)),
        room: RoomNid(row.get(1)),
        room_id: row.get(2),
        membership: row.get(3),
        event: EventNid(row.get(4)),
        pos: Position(row.get(5)),
        writer: row.get::<_, Option<i16>>(10).map(WriterId),
        inviter: row.get(6),
        extent: extent(row),
    }
}

fn user_numbers(users: &[UserNid]) -> Vec<i32> {
    users.iter().map(|user| user.0).collect()
}

fn room_numbers(rooms: &[RoomNid]) -> Vec<i32> {
    rooms.iter().map(|room| room.0).collect()
}

/// Rooms that `users` are joined or invited to, or knock at.
pub async fn list_memberships(pool: &Pool, users: &[UserNid]) -> Result<Vec<MembershipRow>> {
    let rows = pool.query(&LIST_MEMBERSHIPS, &[&user_numbers(users)]).await?;
    Ok(rows.iter().map(membership).collect())
}

/// Rooms that `user` has left or was banned from, and has not forgotten.
pub async fn list_left_rooms(pool: &Pool, user: UserNid) -> Result<Vec<MembershipRow>> {
    Ok(pool.query(&LIST_LEFT_ROOMS, &[&user.0]).await?.iter().map(membership).collect())
}

/// Where `user`'s last time in each of `rooms` ended; nothing for rooms that it never joined.
pub async fn list_ends(
    pool: &Pool,
    user: UserNid,
    rooms: &[RoomNid],
) -> Result<Vec<(RoomNid, Position)>> {
    let rows = pool.query(&LIST_ENDS, &[&user.0, &room_numbers(rooms)]).await?;
    Ok(rows.iter().map(|row| (RoomNid(row.get(0)), Position(row.get(1)))).collect())
}

/// Those of `rooms` that `user` has forgotten.
pub async fn list_forgotten(pool: &Pool, user: UserNid, rooms: &[RoomNid]) -> Result<Vec<RoomNid>> {
    let rows = pool.query(&LIST_FORGOTTEN, &[&user.0, &room_numbers(rooms)]).await?;
    Ok(rows.iter().map(|row| RoomNid(row.get(0))).collect())
}

/// One change of a user's membership.
#[derive(Clone, Debug)]
pub struct MembershipChangeRow {
    pub room: RoomNid,
    pub room_id: String,
    pub pos: Position,
    pub writer: WriterId,
    pub membership: i8,
    pub event: EventNid,
    pub before: Option<i8>,
    /// Who has invited the user, if this was an invite.
    pub inviter: Option<String>,
}

/// How `user`'s memberships changed in `(after, upto]`, in order.
pub async fn list_membership_changes(
    pool: &Pool,
    user: UserNid,
    after: Position,
    upto: Position,
) -> Result<Vec<MembershipChangeRow>> {
    let rows = pool.query(&LIST_MEMBERSHIP_CHANGES, &[&user.0, &after.0, &upto.0]).await?;
    let change = |row: &Row| MembershipChangeRow {
        room: RoomNid(row.get(0)),
        room_id: row.get(1),
        pos: Position(row.get(2)),
        writer: WriterId(row.get(3)),
        membership: row.get(4),
        event: EventNid(row.get(5)),
        before: row.get(6),
        inviter: row.get(7),
    };
    Ok(rows.iter().map(change).collect())
}

/// Stripped state of `rooms` that `user` is invited to or knocks at: JSON arrays.
pub async fn list_invite_state(
    pool: &Pool,
    user: UserNid,
    rooms: &[RoomNid],
) -> Result<Vec<(RoomNid, String)>> {
    let rows = pool.query(&LIST_INVITE_STATE, &[&user.0, &room_numbers(rooms)]).await?;
    Ok(rows.iter().map(|row| (RoomNid(row.get(0)), row.get(1))).collect())
}

/// Which members' events a state is to contain.
#[derive(Clone, Copy, Debug)]
pub enum Members<'a> {
    All,
    /// Only these users, by room.
    Only(&'a [(RoomNid, &'a str)]),
}

fn events_by_room(rows: &[Row]) -> Vec<(RoomNid, EventNid)> {
    rows.iter().map(|row| (RoomNid(row.get(0)), EventNid(row.get(1)))).collect()
}

/// The state of each room behind its position.
pub async fn list_state_at(
    pool: &Pool,
    rooms: &[(RoomNid, Position)],
    members: Members<'_>,
) -> Result<Vec<(RoomNid, EventNid)>> {
    let (nids, positions): (Vec<i32>, Vec<i64>) = rooms.iter().map(|(r, p)| (r.0, p.0)).unzip();
    let (all, only) = match members {
        Members::All => (true, &[][..]),
        Members::Only(members) => (false, members),
    };
    let (of, users): (Vec<i32>, Vec<&str>) = only.iter().map(|(r, u)| (r.0, *u)).unzip();
    let rows = pool.query(&LIST_STATE_AT, &[&nids, &positions, &all, &of, &users]).await?;
    Ok(events_by_room(&rows))
}

/// State events that came into force in `(low, high]` of each room and were not replaced there.
pub async fn list_state_changes(
    pool: &Pool,
    rooms: &[(RoomNid, Position, Position)],
) -> Result<Vec<(RoomNid, EventNid)>> {
    let nids: Vec<i32> = rooms.iter().map(|(room, ..)| room.0).collect();
    let lows: Vec<i64> = rooms.iter().map(|(_, low, _)| low.0).collect();
    let highs: Vec<i64> = rooms.iter().map(|(.., high)| high.0).collect();
    Ok(events_by_room(&pool.query(&LIST_STATE_CHANGES, &[&nids, &lows, &highs]).await?))
}

/// Member events of users, each in its room behind a position.
pub async fn list_members_at(
    pool: &Pool,
    members: &[(RoomNid, &str, Position)],
) -> Result<Vec<(RoomNid, EventNid)>> {
    let nids: Vec<i32> = members.iter().map(|(room, ..)| room.0).collect();
    let users: Vec<&str> = members.iter().map(|(_, user, _)| *user).collect();
    let ats: Vec<i64> = members.iter().map(|(.., at)| at.0).collect();
    Ok(events_by_room(&pool.query(&LIST_MEMBERS_AT, &[&nids, &users, &ats]).await?))
}

/// Who is in a room, in short.
#[derive(Clone, Debug)]
pub struct SummaryRow {
    pub room: RoomNid,
    pub joined: i64,
    pub invited: i64,
    /// The first six who are joined or invited.
    pub first_members: Vec<String>,
    /// The first six who were.
    pub first_gone: Vec<String>,
    /// Whether a name or an alias says what the room is.
    pub has_name: bool,
}

/// Summaries of `rooms` as they are now.
pub async fn list_summaries(pool: &Pool, rooms: &[RoomNid]) -> Result<Vec<SummaryRow>> {
    let rows = pool.query(&LIST_SUMMARIES, &[&room_numbers(rooms)]).await?;
    let summary = |row: &Row| SummaryRow {
        room: RoomNid(row.get(0)),
        joined: row.get(1),
        invited: row.get(2),
        first_members: row.get(3),
        first_gone: row.get(4),
        has_name: row.get(5),
    };
    Ok(rows.iter().map(summary).collect())
}

/// Unread events of one thread in a room.
#[derive(Clone, Debug)]
pub struct UnreadRow {
    pub room: RoomNid,
    /// Root of the thread; empty for the main timeline.
    pub thread: String,
    pub notifications: i64,
    pub highlights: i64,
}

/// What `user` has not read in `rooms`, up to and with `upto`.
pub async fn list_unread(
    pool: &Pool,
    user: UserNid,
    rooms: &[RoomNid],
    upto: Position,
) -> Result<Vec<UnreadRow>> {
    let rows = pool.query(&LIST_UNREAD, &[&user.0, &room_numbers(rooms), &upto.0]).await?;
    let unread = |row: &Row| UnreadRow {
        room: RoomNid(row.get(0)),
        thread: row.get(1),
        notifications: row.get(2),
        highlights: row.get(3),
    };
    Ok(rows.iter().map(unread).collect())
}

fn users(rows: &[Row]) -> Vec<(UserNid, String)> {
    rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect()
}

/// Everybody who is joined to at least one of `rooms`.
pub async fn list_joined_users(pool: &Pool, rooms: &[RoomNid]) -> Result<Vec<(UserNid, String)>> {
    Ok(users(&pool.query(&LIST_JOINED_USERS, &[&room_numbers(rooms)]).await?))
}

/// Presence of a user who shares a room with the reader.
#[derive(Clone, Debug)]
pub struct PresenceRow {
    pub user: UserNid,
    pub user_id: String,
    pub state: i8,
    pub currently_active: bool,
    pub last_active_ts: i64,
    pub status_msg: Option<String>,
}

/// Presence, of `user` and of everybody in `rooms`, that changed after `after`: the newest `limit`.
/// There is no upper bound: presence is overwritten, so that one which has changed since the
/// reader's position would be missing, not old.
pub async fn list_presence_in(
    pool: &Pool,
    user: UserNid,
    rooms: &[RoomNid],
    after: Position,
    with_offline: bool,
    limit: i64,
) -> Result<Vec<PresenceRow>> {
    let rooms = room_numbers(rooms);
    let rows =
        pool.query(&LIST_PRESENCE_IN, &[&user.0, &rooms, &after.0, &with_offline, &limit]).await?;
    let presence = |row: &Row| PresenceRow {
        user: UserNid(row.get(0)),
        user_id: row.get(1),
        state: row.get(2),
        currently_active: row.get(3),
        last_active_ts: row.get(4),
        status_msg: row.get(5),
    };
    Ok(rows.iter().map(presence).collect())
}

/// Of `user` and everybody in `rooms`: whose devices or keys changed in `(after, upto]`.
pub async fn list_device_changes_in(
    pool: &Pool,
    user: UserNid,
    rooms: &[RoomNid],
    after: Position,
    upto: Position,
) -> Result<Vec<(UserNid, String)>> {
    let rooms = room_numbers(rooms);
    let params: [&(dyn crate::ToSql + Sync); 4] = [&user.0, &rooms, &after.0, &upto.0];
    Ok(users(&pool.query(&LIST_DEVICE_CHANGES_IN, &params).await?))
}

/// Who left or was banned from one of `rooms` in `(after, upto]` and is not back there.
pub async fn list_parted_users(
    pool: &Pool,
    rooms: &[RoomNid],
    after: Position,
    upto: Position,
) -> Result<Vec<(UserNid, String)>> {
    let rooms = room_numbers(rooms);
    Ok(users(&pool.query(&LIST_PARTED_USERS, &[&rooms, &after.0, &upto.0]).await?))
}

/// Who came into one of `rooms` after `after` and is still there. There is no upper bound: who came
/// and has changed the own profile since the reader's position has the position of that change.
pub async fn list_arrived_users(
    pool: &Pool,
    rooms: &[RoomNid],
    after: Position,
) -> Result<Vec<(UserNid, String)>> {
    let rooms = room_numbers(rooms);
    Ok(users(&pool.query(&LIST_ARRIVED_USERS, &[&rooms, &after.0]).await?))
}

/// What has become of a device's inbox, for all instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Up to where it has been put into responses made for the device; 0 if never.
    pub delivered: Position,
    /// Up to where confirmed messages have been removed.
    pub removed: Position,
}

/// What has become of a device's inbox.
pub async fn get_delivered(pool: &Pool, user: UserNid, device: &str) -> Result<Delivered> {
    let row = pool.query_opt(&GET_DELIVERED, &[&user.0, &device]).await?;
    Ok(row.as_ref().map(delivered).unwrap_or_default())
}

/// Notes that a response made for the device holds its inbox up to `upto`; returns what was known
/// before.
pub async fn set_delivered(
    pool: &Pool,
    user: UserNid,
    device: &str,
    upto: Position,
) -> Result<Delivered> {
    let row = pool.query_opt(&SET_DELIVERED, &[&user.0, &device, &upto.0]).await?;
    Ok(row.as_ref().map(delivered).unwrap_or_default())
}

fn delivered(row: &Row) -> Delivered {
    let position = |column| Position(row.get::<_, Option<i64>>(column).unwrap_or_default());
    Delivered { delivered: position(0), removed: position(1) }
}
