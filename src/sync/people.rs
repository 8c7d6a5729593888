//! Other users: whose devices changed, who is not met any more, and who is present.

use std::collections::{BTreeMap, BTreeSet};

use chatd_base::{Position, Result, RoomNid, UserNid};
use chatd_config::PresenceMode;
use chatd_storage::{Pool, memberships, presence, sync};
use chatd_streams::{StreamToken, presence::PresenceState};
use ruma_common::UserId;

use crate::{
    json::Object,
    plan::{Asker, Changed, Plan, Rows},
};

/// Presence changes in one answer.
const MOST_PRESENCE: i64 = 5_000;

/// What an answer tells of other users.
#[derive(Debug, Default)]
pub struct People {
    /// Users whose devices or keys the client must look at again.
    pub changed: BTreeSet<String>,
    /// Users who share no room with the client's user any more.
    pub left: BTreeSet<String>,
    pub presence: Vec<Presence>,
}

/// One user's presence, by numbers that do not depend on when it is told.
#[derive(Debug)]
pub struct Presence {
    pub user_id: String,
    pub state: PresenceState,
    pub status_msg: Option<String>,
    pub currently_active: bool,
    pub last_active_ts: i64,
}

/// How presence is to be told.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub mode: PresenceMode,
    pub include_offline: bool,
}

/// Reads what `plan` asks for. No query if memory knows everything.
pub async fn read(pool: &Pool, rules: Rules, asker: &Asker, plan: &Plan) -> Result<People> {
    let mut people = People::default();
    let mut came: BTreeMap<UserNid, String> = BTreeMap::new();
    let mut gone: BTreeMap<UserNid, String> = BTreeMap::new();
    if let Some(since) = &plan.since {
        travellers(pool, plan, &since.room, &mut came, &mut gone).await?;
        came.remove(&asker.user);
        gone.remove(&asker.user);
        people.changed = device_lists(pool, asker, plan, &since.device_lists).await?;
        people.changed.extend(came.values().cloned());
        if !gone.is_empty() {
            let candidates: Vec<UserNid> = gone.keys().copied().collect();
            let still = memberships::list_sharing(pool, asker.user, &candidates).await?;
            gone.retain(|user, _| !still.contains(user));
            people.left = gone.into_values().collect();
        }
    }
    let wants_presence = rules.mode != PresenceMode::Disabled
        && asker.filter.presence.allows_type("m.presence")
        && asker.filter.presence.limit != Some(0);
    if wants_presence {
        people.presence = presence_of(pool, rules, asker, plan, &came).await?;
        people.presence.retain(|presence| {
            <&UserId>::try_from(presence.user_id.as_str())
                .is_ok_and(|user| asker.filter.presence.allows_sender(user))
        });
    }
    Ok(people)
}

/// Users whom the asker has newly met, or may have stopped to meet.
async fn travellers(
    pool: &Pool,
    plan: &Plan,
    since: &StreamToken,
    came: &mut BTreeMap<UserNid, String>,
    gone: &mut BTreeMap<UserNid, String>,
) -> Result<()> {
    let (low, high) = (since.min, plan.now.room.max());
    match &plan.arrivals {
        Rows::Memory(users) => {
            came.extend(users.iter().map(|(user, id)| (*user, id.to_string())));
            gone.extend(plan.departures.iter().map(|(user, id)| (*user, id.to_string())));
        }
        Rows::Tables => {
            let joined = plan.joined();
            came.extend(sync::list_arrived_users(pool, &joined, low, high).await?);
            gone.extend(sync::list_parted_users(pool, &joined, low, high).await?);
        }
    }
    let users_of = async |rooms: &[RoomNid]| {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        sync::list_joined_users(pool, rooms).await
    };
    came.extend(users_of(&plan.arrived_in).await?);
    gone.extend(users_of(&plan.parted_from).await?);
    Ok(())
}

async fn device_lists(
    pool: &Pool,
    asker: &Asker,
    plan: &Plan,
    since: &StreamToken,
) -> Result<BTreeSet<String>> {
    let rows = match &plan.device_lists {
        Rows::Memory(rows) => rows,
        Rows::Tables => {
            let upto = plan.now.device_lists.max();
            let joined = plan.joined();
            let found = sync::list_device_changes_in(pool, asker.user, &joined, since.min, upto);
            return Ok(found.await?.into_iter().map(|(_, user)| user).collect());
        }
    };
    let sharing = sharing(pool, asker, rows).await?;
    let met = rows.iter().filter(|row| sharing.contains(&row.user));
    Ok(met.map(|row| row.value.to_string()).collect())
}

/// Those of `rows` who share a room with the asker. No query if memory knows.
async fn sharing<T>(pool: &Pool, asker: &Asker, rows: &[Changed<T>]) -> Result<BTreeSet<UserNid>> {
    let mut sharing: BTreeSet<UserNid> =
        rows.iter().filter(|row| row.shares == Some(true)).map(|row| row.user).collect();
    let unknown: Vec<UserNid> =
        rows.iter().filter(|row| row.shares.is_none()).map(|row| row.user).collect();
    if !unknown.is_empty() {
        sharing.extend(memberships::list_sharing(pool, asker.user, &unknown).await?);
    }
    Ok(sharing)
}

async fn presence_of(
    pool: &Pool,
    rules: Rules,
    asker: &Asker,
    plan: &Plan,
    came: &BTreeMap<UserNid, String>,
) -> Result<Vec<Presence>> {
    let mut told: BTreeMap<UserNid, Presence> = BTreeMap::new();
    match &plan.presence {
        Rows::Tables => {
            let after = plan.since.as_ref().map_or(Position(0), |since| since.presence.min);
            let span = (after, plan.now.presence.max());
            let with_offline = plan.since.is_some() || rules.include_offline;
            let joined = plan.joined();
            let rows = sync::list_presence_in(
                pool,
                asker.user,
                &joined,
                span,
                with_offline,
                MOST_PRESENCE,
            );
            for row in rows.await? {
                let state = PresenceState::from_letter(row.state).unwrap_or(PresenceState::Offline);
                told.insert(
                    row.user,
                    Presence {
                        user_id: row.user_id,
                        state,
                        status_msg: row.status_msg,
                        currently_active: row.currently_active,
                        last_active_ts: row.last_active_ts,
                    },
                );
            }
        }
        Rows::Memory(rows) => {
            let sharing = sharing(pool, asker, rows).await?;
            for row in rows.iter().filter(|row| sharing.contains(&row.user)) {
                told.insert(
                    row.user,
                    Presence {
                        user_id: row.value.user_id.to_string(),
                        state: row.value.state,
                        status_msg: row.value.status_msg.clone(),
                        currently_active: row.value.currently_active,
                        last_active_ts: row.value.last_active_ts,
                    },
                );
            }
        }
    }
    let newly_met: Vec<UserNid> = came.keys().filter(|u| !told.contains_key(u)).copied().collect();
    if !newly_met.is_empty() {
        for row in presence::list(pool, &newly_met).await? {
            let Some(state) = PresenceState::from_letter(row.state) else { continue };
            let presence = Presence {
                user_id: came[&row.user].clone(),
                state,
                status_msg: row.status_msg,
                currently_active: row.currently_active,
                last_active_ts: row.last_active_ts,
            };
            told.insert(row.user, presence);
        }
    }
    Ok(told.into_values().collect())
}

/// Appends the event `m.presence`.
pub fn write_presence(out: &mut Vec<u8>, presence: &Presence, now_ms: u64) {
    let mut event = Object::begin(out);
    let mut content = event.object("content");
    if presence.state != PresenceState::Offline {
        content.value("currently_active", &presence.currently_active);
    }
    if presence.last_active_ts > 0 {
        let now = i64::try_from(now_ms).unwrap_or(i64::MAX);
        content.value("last_active_ago", &now.saturating_sub(presence.last_active_ts).max(0));
    }
    content.value("presence", presence.state.as_str());
    if let Some(status) = &presence.status_msg {
        content.value("status_msg", status);
    }
    content.end();
    event.value("sender", &presence.user_id);
    event.value("type", "m.presence");
    event.end();
}
