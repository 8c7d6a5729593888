//! Devices of users of other servers, as far as they are followed. They are in the tables that this
//! server's own are in; what is here is how they get there, and how far they are known.

use chatd_base::UserNid;

use crate::{Batch, Pool, Result, Row, params, statement::statements};

statements! {
    LIST_FOLLOWED = "SELECT user_nid, stream_id, is_stale FROM remote_device_lists
                     WHERE user_nid = ANY($1::int4[])";
    /// Users who have more devices than that.
    LIST_LONG_LISTS = "SELECT user_nid FROM devices WHERE user_nid = ANY($1::int4[])
                       GROUP BY user_nid HAVING count(*) > $2";
    LIST_STALE_LISTS = "SELECT l.user_nid, u.user_id, l.xmin::text FROM remote_device_lists l
                        JOIN users_nid u ON u.nid = l.user_nid
                        WHERE l.is_stale AND l.user_nid > $1 ORDER BY l.user_nid LIMIT $2";
    /// Users whose servers tell of their devices, because somebody here is in a room with them.
    LIST_CURRENT_LISTS = "SELECT u.nid, u.user_id FROM users_nid u
                          JOIN remote_device_lists l ON l.user_nid = u.nid AND NOT l.is_stale
                          WHERE u.user_id = ANY($1::text[]) AND EXISTS (
                              SELECT 1 FROM memberships theirs
                              JOIN memberships ours ON ours.room = theirs.room AND ours.is_local
                                                    AND ours.membership = 'j'
                              WHERE theirs.user_nid = u.nid AND theirs.membership = 'j')";
    UPSERT_LISTS = "INSERT INTO remote_device_lists (user_nid, stream_id, is_stale)
                    SELECT * FROM unnest($1::int4[], $2::int8[], $3::bool[])
                    ON CONFLICT (user_nid)
                    DO UPDATE SET stream_id = excluded.stream_id, is_stale = excluded.is_stale";
    /// Unless something has been written of them since they had that version.
    SETTLE_LISTS = "UPDATE remote_device_lists l SET stream_id = t.stream_id, is_stale = false
                    FROM unnest($1::int4[], $2::int8[], $3::text[]) AS t(user_nid, stream_id, version)
                    WHERE l.user_nid = t.user_nid AND l.xmin::text = t.version";
    /// Whose rooms with this server's users have all gone: nobody tells of their devices any more.
    DELETE_LISTS = "DELETE FROM remote_device_lists WHERE user_nid = ANY($1::int4[])";
    UPSERT_REMOTE_DEVICES = "INSERT INTO devices (user_nid, device_id, display_name)
                             SELECT * FROM unnest($1::int4[], $2::text[], $3::text[])
                             ON CONFLICT (user_nid, device_id)
                             DO UPDATE SET display_name = excluded.display_name";
    UPSERT_REMOTE_KEYS = "INSERT INTO device_keys (user_nid, device_id, keys)
                          SELECT * FROM unnest($1::int4[], $2::text[], $3::text[])
                          ON CONFLICT (user_nid, device_id) DO UPDATE SET keys = excluded.keys";
    DELETE_REMOTE_DEVICES = "DELETE FROM devices d USING unnest($1::int4[], $2::text[]) AS t(u, id)
                             WHERE d.user_nid = t.u AND d.device_id = t.id";
    DELETE_REMOTE_KEYS = "DELETE FROM device_keys d USING unnest($1::int4[], $2::text[]) AS t(u, id)
                          WHERE d.user_nid = t.u AND d.device_id = t.id";
    UPSERT_REMOTE_CROSS_SIGNING = "INSERT INTO cross_signing_keys (user_nid, kind, key)
                                   SELECT * FROM unnest($1::int4[], $2::\"char\"[], $3::text[])
                                   ON CONFLICT (user_nid, kind) DO UPDATE SET key = excluded.key";
}

/// How far the devices of a user are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Of the last update that was taken in.
    pub stream_id: i64,
    /// An update was missed.
    pub is_stale: bool,
}

/// A list that has to be fetched as a whole.
#[derive(Clone, Debug)]
pub struct Stale {
    pub user: UserNid,
    pub user_id: String,
    /// Another one as soon as anything is told of the list.
    pub version: String,
}

/// Which of the users are followed, and how far.
pub async fn list(pool: &Pool, users: &[UserNid]) -> Result<Vec<(UserNid, Followed)>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_FOLLOWED, &[&users]).await?;
    let followed =
        |row: &Row| (UserNid(row.get(0)), Followed { stream_id: row.get(1), is_stale: row.get(2) });
    Ok(rows.iter().map(followed).collect())
}

/// Those of the users who have more than `most` devices.
pub async fn list_longer(pool: &Pool, users: &[UserNid], most: i64) -> Result<Vec<UserNid>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_LONG_LISTS, &[&users, &most]).await?;
    Ok(rows.iter().map(|row| UserNid(row.get(0))).collect())
}

/// The first `limit` lists of users above `after` that have to be fetched as a whole.
pub async fn list_stale(pool: &Pool, after: UserNid, limit: i64) -> Result<Vec<Stale>> {
    let rows = pool.query(&LIST_STALE_LISTS, &[&after.0, &limit]).await?;
    let stale =
        |row: &Row| Stale { user: UserNid(row.get(0)), user_id: row.get(1), version: row.get(2) };
    Ok(rows.iter().map(stale).collect())
}

/// Those of the users whose devices are known as they are now.
pub async fn list_current(pool: &Pool, users: &[&str]) -> Result<Vec<(UserNid, String)>> {
    let rows = pool.query(&LIST_CURRENT_LISTS, &[&users]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}

/// Forgets that users are followed.
pub fn forget(batch: &mut Batch, users: &[UserNid]) {
    batch.add(&DELETE_LISTS, params![users.iter().map(|user| user.0).collect::<Vec<_>>()]);
}

/// What updates of device lists change, as columns. Each (user, device) is in it once.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Devices, with what they are called and their keys.
    pub devices: Vec<(UserNid, String, Option<String>, Option<String>)>,
    pub gone: Vec<(UserNid, String)>,
    /// 'm' and 's', with the key.
    pub cross_signing: Vec<(UserNid, i8, String)>,
    pub lists: Vec<(UserNid, Followed)>,
    /// Lists that have been fetched: what they were when that began, and up to which update they
    /// go. One of which something has been told since stays stale.
    pub fetched: Vec<(Stale, i64)>,
}

/// Writes the changes.
pub fn write(batch: &mut Batch, changes: &Changes) {
    let Changes { devices, gone, cross_signing, lists, fetched } = changes;
    if !gone.is_empty() {
        let users: Vec<i32> = gone.iter().map(|(user, _)| user.0).collect();
        let ids: Vec<String> = gone.iter().map(|(_, id)| id.clone()).collect();
        batch.add(&DELETE_REMOTE_DEVICES, params![users.clone(), ids.clone()]);
        batch.add(&DELETE_REMOTE_KEYS, params![users, ids]);
    }
    if !devices.is_empty() {
        batch.add(
            &UPSERT_REMOTE_DEVICES,
            params![
                devices.iter().map(|d| d.0.0).collect::<Vec<_>>(),
                devices.iter().map(|d| d.1.clone()).collect::<Vec<_>>(),
                devices.iter().map(|d| d.2.clone()).collect::<Vec<_>>(),
            ],
        );
        let keys = || devices.iter().filter_map(|d| Some((d.0.0, d.1.clone(), d.3.clone()?)));
        batch.add(
            &UPSERT_REMOTE_KEYS,
            params![
                keys().map(|k| k.0).collect::<Vec<_>>(),
                keys().map(|k| k.1).collect::<Vec<_>>(),
                keys().map(|k| k.2).collect::<Vec<_>>(),
            ],
        );
    }
    if !cross_signing.is_empty() {
        batch.add(
            &UPSERT_REMOTE_CROSS_SIGNING,
            params![
                cross_signing.iter().map(|k| k.0.0).collect::<Vec<_>>(),
                cross_signing.iter().map(|k| k.1).collect::<Vec<_>>(),
                cross_signing.iter().map(|k| k.2.clone()).collect::<Vec<_>>(),
            ],
        );
    }
    if !lists.is_empty() {
        batch.add(
            &UPSERT_LISTS,
            params![
                lists.iter().map(|l| l.0.0).collect::<Vec<_>>(),
                lists.iter().map(|l| l.1.stream_id).collect::<Vec<_>>(),
                lists.iter().map(|l| l.1.is_stale).collect::<Vec<_>>(),
            ],
        );
    }
    if !fetched.is_empty() {
        batch.add(
            &SETTLE_LISTS,
            params![
                fetched.iter().map(|(stale, _)| stale.user.0).collect::<Vec<_>>(),
                fetched.iter().map(|(_, upto)| *upto).collect::<Vec<_>>(),
                fetched.iter().map(|(stale, _)| stale.version.clone()).collect::<Vec<_>>(),
            ],
        );
    }
}
