//! Devices of this server's users, when they were last seen, and when their keys changed.

use std::collections::BTreeMap;

use chatd_base::UserNid;

use crate::{Batch, Pool, Result, Row, params, statement::statements};

statements! {
    /// `previous` is the user's newest change before this one, of devices only.
    UPSERT_CHANGES = "INSERT INTO device_list_changes (user_nid, device_id, pos, previous)
                      SELECT u, d, currval('stream_device_lists') + o,
                             coalesce(
                                 currval('stream_device_lists')
                                     + max(o) FILTER (WHERE d <> '') OVER before,
                                 (SELECT max(c.pos) FROM device_list_changes c
                                  WHERE c.user_nid = u AND c.device_id <> ''), 0)
                      FROM unnest($1::int4[], $2::text[], $3::int8[]) AS rows(u, d, o)
                      WINDOW before AS (PARTITION BY u ORDER BY o
                                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                      ON CONFLICT (user_nid, device_id)
                      DO UPDATE SET pos = excluded.pos, previous = excluded.previous";
    LIST_DEVICES = "SELECT device_id, display_name, last_seen_ts, last_seen_ip, last_seen_user_agent
                    FROM devices WHERE user_nid = $1 ORDER BY device_id";
    GET_DEVICE = "SELECT device_id, display_name, last_seen_ts, last_seen_ip, last_seen_user_agent
                  FROM devices WHERE user_nid = $1 AND device_id = $2";
    /// Changes without a device are of cross-signing keys.
    GET_LAST_CHANGE = "SELECT coalesce(max(pos), 0) FROM device_list_changes
                       WHERE user_nid = $1 AND device_id <> ''";
    SET_DISPLAY_NAME = "UPDATE devices SET display_name = $3
                        WHERE user_nid = $1 AND device_id = $2";
    /// Devices first: a login of the same device holds its row and is waited for.
    DELETE_DEVICES = "DELETE FROM devices WHERE user_nid = $1 AND device_id = ANY($2::text[])";
    DELETE_ACCESS_TOKENS = "DELETE FROM access_tokens
                            WHERE user_nid = $1 AND device_id = ANY($2::text[])";
    DELETE_REFRESH_TOKENS = "DELETE FROM refresh_tokens
                             WHERE user_nid = $1 AND device_id = ANY($2::text[])";
    DELETE_INBOXES = "DELETE FROM to_device_inbox
                      WHERE user_nid = $1 AND device_id = ANY($2::text[])";
    /// Tokens without a device, such as an admin has made for a user.
    DELETE_LOOSE_TOKENS = "DELETE FROM access_tokens WHERE user_nid = $1 AND device_id IS NULL
                           AND id <> $2";
    NOTE_SEEN = "UPDATE devices d
                 SET last_seen_ts = s.ts, last_seen_ip = coalesce(s.ip, d.last_seen_ip),
                     last_seen_user_agent = coalesce(s.agent, d.last_seen_user_agent)
                 FROM unnest($1::int4[], $2::text[], $3::int8[], $4::text[], $5::text[])
                      AS s(user_nid, device_id, ts, ip, agent)
                 WHERE d.user_nid = s.user_nid AND d.device_id = s.device_id";
}

/// One device.
#[derive(Clone, Debug)]
pub struct Device {
    pub device_id: String,
    pub display_name: Option<String>,
    pub last_seen_ts: Option<i64>,
    pub last_seen_ip: Option<String>,
    pub last_seen_user_agent: Option<String>,
}

fn device(row: &Row) -> Device {
    Device {
        device_id: row.get(0),
        display_name: row.get(1),
        last_seen_ts: row.get(2),
        last_seen_ip: row.get(3),
        last_seen_user_agent: row.get(4),
    }
}

/// All devices of a user, by id.
pub async fn list(pool: &Pool, user: UserNid) -> Result<Vec<Device>> {
    Ok(pool.query(&LIST_DEVICES, &[&user.0]).await?.iter().map(device).collect())
}

/// Position of the newest change of a user's devices; 0 if there was none.
pub async fn get_last_change(pool: &Pool, user: UserNid) -> Result<i64> {
    let row = pool.query_opt(&GET_LAST_CHANGE, &[&user.0]).await?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// One device of a user.
pub async fn get(pool: &Pool, user: UserNid, device_id: &str) -> Result<Option<Device>> {
    Ok(pool.query_opt(&GET_DEVICE, &[&user.0, &device_id]).await?.as_ref().map(device))
}

/// Gives a device another display name, or none.
pub fn set_display_name(batch: &mut Batch, user: UserNid, device_id: &str, name: Option<&str>) {
    let name = name.map(str::to_owned);
    batch.add(&SET_DISPLAY_NAME, params![user.0, device_id.to_owned(), name]);
}

/// Removes devices with everything that belongs to them.
pub fn delete(batch: &mut Batch, user: UserNid, device_ids: &[String]) {
    for statement in
        [&DELETE_DEVICES, &DELETE_ACCESS_TOKENS, &DELETE_REFRESH_TOKENS, &DELETE_INBOXES]
    {
        batch.add(statement, params![user.0, device_ids.to_vec()]);
    }
    crate::keys::delete_devices(batch, user, device_ids);
}

/// Removes the user's access tokens that belong to no device, but for the token `except`.
pub fn delete_loose_tokens(batch: &mut Batch, user: UserNid, except: i64) {
    batch.add(&DELETE_LOOSE_TOKENS, params![user.0, except]);
}

/// When and from where devices were last seen, as columns.
#[derive(Default)]
pub struct SeenColumns {
    pub users: Vec<i32>,
    pub device_ids: Vec<String>,
    pub times: Vec<i64>,
    pub addresses: Vec<Option<String>>,
    pub user_agents: Vec<Option<String>>,
}

/// Notes when the devices were last seen.
pub async fn note_seen(pool: &Pool, seen: &SeenColumns) -> Result<()> {
    pool.execute(
        &NOTE_SEEN,
        &[&seen.users, &seen.device_ids, &seen.times, &seen.addresses, &seen.user_agents],
    )
    .await?;
    Ok(())
}

/// Changes of a commit; of several for the same device the last counts.
#[derive(Default)]
pub struct ChangeColumns(BTreeMap<(i32, String), i64>);

impl ChangeColumns {
    /// `device` is empty for a change of cross-signing keys.
    pub fn push(&mut self, user: UserNid, device: &str, offset: i64) {
        self.0.insert((user.0, device.to_owned()), offset);
    }
}

/// Notes the changes at `currval + offset`.
pub fn upsert_changes(batch: &mut Batch, rows: ChangeColumns) {
    let offsets: Vec<i64> = rows.0.values().copied().collect();
    let (users, devices): (Vec<i32>, Vec<String>) = rows.0.into_keys().unzip();
    batch.add(&UPSERT_CHANGES, params![users, devices, offsets]);
}
