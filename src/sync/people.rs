//! Other users: whose devices changed, who is not met any more, and who is present.

use std::collections::{BTreeMap, BTreeSet};

use chatd_base::{Position, Result, RoomNid, UserNid};
use chatd_config::PresenceMode;
use chatd_storage::{Pool, memberships, presence, sync};
use chatd_streams::{
    StreamToken,
    presence::{PresenceRow, PresenceState},
};
use ruma_common::{OwnedUserId, UserId};

use crate::{
    index::Step,
    json::Object,
    plan::{Asker, Changed, Plan, Rows, ways},
    token::SyncToken,
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
    let mut travellers = Travellers::default();
    if let Some(since) = &plan.since {
        travellers = travellers_of(pool, asker, plan, &since.room).await?;
        people.changed = device_lists(pool, asker, plan, &since.device_lists).await?;
        people.changed.extend(travellers.came.values().cloned());
        people.left = travellers.gone.values().cloned().collect();
    }
    let wants_presence = rules.mode != PresenceMode::Disabled
        && asker.filter.presence.allows_type("m.presence")
        && asker.filter.presence.limit != Some(0);
    if wants_presence {
        people.presence = presence_of(pool, rules, asker, plan, &travellers.came).await?;
        people.presence.retain(|presence| {
            <&UserId>::try_from(presence.user_id.as_str())
                .is_ok_and(|user| asker.filter.presence.allows_sender(user))
        });
    }
    Ok(people)
}

/// Users whose devices changed between two tokens, and those who share no room any more, as a
/// sync would tell it; from the tables. `joined`: the rooms that the user is in; `completed`: those
/// whose members have come in between.
pub async fn changes_between(
    pool: &Pool,
    user: UserNid,
    (joined, completed): (&[RoomNid], &[RoomNid]),
    steps: &[Step],
    (from, to): (&SyncToken, &SyncToken),
) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (low, high) = (from.device_lists.min, to.device_lists.max());
    let changed = sync::list_device_changes_in(pool, user, joined, low, high).await?;
    let mut changed: BTreeSet<String> = changed.into_iter().map(|(_, user)| user).collect();
    let (mut arrived, parted) = ways(steps);
    arrived.extend(completed);
    let span = (from.room.min, to.room.max());
    let mut travellers = Travellers::default();
    travellers.add_from_tables(pool, joined, &parted, span).await?;
    travellers.add_rooms(pool, &arrived, &parted).await?;
    travellers.settle(pool, user).await?;
    changed.extend(travellers.came.into_values());
    Ok((changed, travellers.gone.into_values().collect()))
}

/// Users whom the asker has newly met, and whom it has stopped to meet.
#[derive(Debug, Default)]
struct Travellers {
    came: BTreeMap<UserNid, String>,
    gone: BTreeMap<UserNid, String>,
}

impl Travellers {
    /// Adds who came into and left rooms of the user while it was in them, in a span of positions.
    async fn add_from_tables(
        &mut self,
        pool: &Pool,
        joined: &[RoomNid],
        parted: &[RoomNid],
        (low, high): (Position, Position),
    ) -> Result<()> {
        self.came.extend(sync::list_arrived_users(pool, joined, low).await?);
        // Others may have gone before the user did.
        let rooms: Vec<RoomNid> = joined.iter().chain(parted).copied().collect();
        self.gone.extend(sync::list_parted_users(pool, &rooms, low, high).await?);
        Ok(())
    }

    /// Adds everybody in rooms that the user has come into or left.
    async fn add_rooms(
        &mut self,
        pool: &Pool,
        arrived: &[RoomNid],
        parted: &[RoomNid],
    ) -> Result<()> {
        if !arrived.is_empty() {
            self.came.extend(sync::list_joined_users(pool, arrived).await?);
        }
        if !parted.is_empty() {
            self.gone.extend(sync::list_joined_users(pool, parted).await?);
        }
        Ok(())
    }

    /// Leaves only those in `gone` who share no room with `user` now.
    async fn settle(&mut self, pool: &Pool, user: UserNid) -> Result<()> {
        self.came.remove(&user);
        self.gone.remove(&user);
        if !self.gone.is_empty() {
            let candidates: Vec<UserNid> = self.gone.keys().copied().collect();
            let still = memberships::list_sharing(pool, user, &candidates).await?;
            self.gone.retain(|user, _| !still.contains(user));
            self.came.retain(|user, _| !self.gone.contains_key(user));
        }
        Ok(())
    }
}

async fn travellers_of(
    pool: &Pool,
    asker: &Asker,
    plan: &Plan,
    since: &StreamToken,
) -> Result<Travellers> {
    let mut travellers = Travellers::default();
    let span = (since.min, plan.now.room.max());
    match &plan.arrivals {
        Rows::Memory(users) => {
            let person = |(user, id): &(UserNid, OwnedUserId)| (*user, id.to_string());
            travellers.came.extend(users.iter().map(person));
            travellers.gone.extend(plan.departures.iter().map(person));
            if !plan.parted_from.is_empty() {
                travellers.add_from_tables(pool, &[], &plan.parted_from, span).await?;
            }
        }
        Rows::Tables => {
            travellers.add_from_tables(pool, &plan.joined(), &plan.parted_from, span).await?;
        }
    }
    let come: Vec<RoomNid> = plan.arrived_in.iter().chain(&plan.completed).copied().collect();
    travellers.add_rooms(pool, &come, &plan.parted_from).await?;
    travellers.settle(pool, asker.user).await?;
    Ok(travellers)
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
    let mut told: BTreeMap<UserNid, Presence> = match &plan.presence {
        Rows::Tables => changed_presence(pool, rules, asker, plan).await?,
        Rows::Memory(rows) => {
            let sharing = sharing(pool, asker, rows).await?;
            let seen = rows.iter().filter(|row| sharing.contains(&row.user));
            let presence = |row: &PresenceRow| Presence {
                user_id: row.user_id.to_string(),
                state: row.state,
                status_msg: row.status_msg.clone(),
                currently_active: row.currently_active,
                last_active_ts: row.last_active_ts,
            };
            seen.map(|row| (row.user, presence(&row.value))).collect()
        }
    };
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

/// What the tables have of presence that has changed.
async fn changed_presence(
    pool: &Pool,
    rules: Rules,
    asker: &Asker,
    plan: &Plan,
) -> Result<BTreeMap<UserNid, Presence>> {
    let after = plan.since.as_ref().map_or(Position(0), |since| since.presence.min);
    let with_offline = plan.since.is_some() || rules.include_offline;
    let (user, joined) = (asker.user, plan.joined());
    let rows =
        sync::list_presence_in(pool, user, &joined, after, with_offline, MOST_PRESENCE).await?;
    let presence = |row: sync::PresenceRow| Presence {
        user_id: row.user_id,
        state: PresenceState::from_letter(row.state).unwrap_or(PresenceState::Offline),
        status_msg: row.status_msg,
        currently_active: row.currently_active,
        last_active_ts: row.last_active_ts,
    };
    Ok(rows.into_iter().map(|row| (row.user, presence(row))).collect())
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
