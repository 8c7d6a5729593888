//! From a request to an answer: what the asker's view needs is loaded once, then each answer is
//! planned from memory, completed from the tables where memory does not reach, and written. A
//! sync with nothing to tell waits for the asker's view to be woken.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
    time::Duration,
};

use chatd_base::{Position, Result, RoomNid, Stop, UserNid, tasks};
use chatd_rooms::{
    client_event::Viewer,
    federation_event::{self, FederationParts},
};
use chatd_storage::{Pool, sync};
use chatd_streams::{StreamToken, events::Membership};
use chatd_users::{Deps, Users, keys::KeyCounts};
use metrics::Gauge;
use tokio::{sync::watch, time::Instant};

use crate::{
    account, ephemeral,
    filter::{EventFormat, Filter},
    inbox::Inboxes,
    index::{Index, Member, Step},
    lazy::GivenMembers,
    people,
    plan::{self, Asker, Plan},
    state::{self, States},
    summary,
    timeline::{self, Timelines},
    token::SyncToken,
    unread::Unread,
    v3::Parts,
};

/// How long a token that is ahead of this instance is waited for.
const WAIT_FOR_TOKEN: Duration = Duration::from_secs(10);
/// Devices whose inbox and lazily loaded members are remembered.
const MOST_DEVICES: usize = 20_000;
/// How often the metrics page is told how much memory holds.
const REPORT_SIZES: Duration = Duration::from_secs(15);

/// Answers syncs.
pub struct Sync {
    pub(crate) deps: Deps,
    pub(crate) users: Arc<Users>,
    index: Arc<Index>,
    given: GivenMembers,
    inboxes: Inboxes,
}

impl Sync {
    /// Must be made while the instance is wired, before anything is written: its memory is
    /// complete from then on.
    pub fn new(users: &Arc<Users>) -> Self {
        let deps = users.deps.clone();
        let index = Index::attach(&deps.streams, &deps.config);
        tasks::spawn("sync_sizes", report_sizes(index.clone(), deps.stop.clone()));
        Self {
            index,
            users: users.clone(),
            given: GivenMembers::new(MOST_DEVICES),
            inboxes: Inboxes::new(MOST_DEVICES),
            deps,
        }
    }

    fn pool(&self) -> &Pool {
        &self.deps.pool
    }

    /// The answer for `asker`: at once if there is something to tell, if it is the first one or
    /// the full state is wanted; else when there is, or with nothing after `timeout`.
    pub async fn answer(
        &self,
        asker: &Asker,
        since: Option<SyncToken>,
        timeout: Duration,
    ) -> Result<Vec<u8>> {
        let asker = &self.without_excluded_rooms(asker);
        let deadline = Instant::now() + timeout;
        let mut since = match since {
            Some(since) if self.has_reached(&since).await => Some(since),
            // Not a token of this server's history: the client starts again.
            _ => None,
        };
        let mut woken = self.load_view(asker.user).await?;
        loop {
            woken.borrow_and_update();
            let plan = self.plan(asker, since.as_ref()).await?;
            let parts = self.complete(asker, plan).await?;
            let is_late = Instant::now() >= deadline || self.deps.closing.is_triggered();
            let is_due = since.is_none() || asker.full_state || is_late;
            if is_due || !parts.is_empty() {
                return Ok(parts.write(&self.viewer(asker)));
            }
            // The interval held nothing, so the next one may begin at its end.
            since = Some(parts.next);
            self.park(&mut woken, deadline).await;
        }
    }

    /// Returns when something concerns the view, at the deadline, or when the server stops.
    async fn park(&self, woken: &mut watch::Receiver<u64>, deadline: Instant) {
        let _waiting = Waiting::begin();
        tokio::select! {
            _ = woken.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = self.deps.closing.triggered() => {}
        }
    }

    /// The asker as if its filter left out the rooms that the admin has excluded.
    fn without_excluded_rooms<'a>(&self, asker: &'a Asker) -> Cow<'a, Asker> {
        let excluded = &self.deps.config.rooms.exclude_rooms_from_sync;
        if excluded.is_empty() {
            return Cow::Borrowed(asker);
        }
        let mut filter = Filter::clone(&asker.filter);
        filter.room.not_rooms.extend(excluded.iter().map(ToString::to_string));
        Cow::Owned(Asker { filter: Arc::new(filter), ..asker.clone() })
    }

    fn viewer<'a>(&self, asker: &'a Asker) -> Viewer<'a> {
        Viewer {
            user: asker.user,
            device: asker.device.as_deref(),
            now_ms: self.deps.clock.now_ms(),
            with_room_id: false,
        }
    }

    /// Waits until this instance has folded all that `since` covers; false if it does not come.
    async fn has_reached(&self, since: &SyncToken) -> bool {
        if self.index.lock().now.is_at_least(since) {
            return true;
        }
        let streams = &self.deps.streams;
        let all = async {
            tokio::join!(
                streams.events.wait_for(&since.room, WAIT_FOR_TOKEN),
                streams.presence.wait_for(&since.presence, WAIT_FOR_TOKEN),
                streams.receipts.wait_for(&since.receipts, WAIT_FOR_TOKEN),
                streams.account_data.wait_for(&since.account_data, WAIT_FOR_TOKEN),
                streams.push_rules.wait_for(&since.push_rules, WAIT_FOR_TOKEN),
                streams.to_device.wait_for(&since.to_device, WAIT_FOR_TOKEN),
                streams.device_lists.wait_for(&since.device_lists, WAIT_FOR_TOKEN),
            )
        };
        tokio::select! {
            reached = all => reached == (true, true, true, true, true, true, true),
            () = self.deps.closing.triggered() => false,
        }
    }

    /// Makes sure that the asker's memberships and ignored users are known, and says how to wait
    /// for what concerns it.
    async fn load_view(&self, user: UserNid) -> Result<watch::Receiver<u64>> {
        loop {
            if let Some(view) = self.index.lock().view_mut(user) {
                return Ok(view.wake.subscribe());
            }
            self.read_view(user).await?;
        }
    }

    /// Loads a view, unless it turns out at the end that rows were missed meanwhile.
    async fn read_view(&self, user: UserNid) -> Result<()> {
        // The receiver is held, so that the view stays while the tables are read.
        let (_held, misses) = {
            let mut state = self.index.lock();
            (state.begin_view(user), state.misses)
        };
        let rows = sync::list_memberships(self.pool(), &[user]).await?;
        let ignored = self.users.ignored.of(user).await?;
        self.reach_memberships(&rows).await;
        let rooms = rows.into_iter().filter_map(|row| {
            let member = Member {
                room_id: row.room_id.try_into().ok()?,
                membership: Membership::from_letter(row.membership)?,
                event: row.event,
                pos: row.pos,
                inviter: row.inviter.and_then(|user| user.try_into().ok()),
            };
            Some((row.room, member, row.extent))
        });
        let mut state = self.index.lock();
        if state.misses == misses {
            state.complete_view(user, rooms.collect(), ignored);
        }
        Ok(())
    }

    /// Users whose devices `user` must look at again, and whose it may forget, because of what
    /// happened between two tokens.
    pub async fn device_changes(
        &self,
        user: UserNid,
        from: &SyncToken,
        to: &SyncToken,
    ) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
        self.load_view(user).await?;
        let (joined, completed) = match self.index.lock().view(user) {
            Some(view) => (view.joined(), view.extents.completed_since(&from.room)),
            None => (Vec::new(), Vec::new()),
        };
        let mut steps = self.read_steps(user, from).await?;
        steps.retain(|step| to.room.covers(step.writer, step.at));
        let rooms = (&*joined, &*completed);
        people::changes_between(self.pool(), user, rooms, &steps, (from, to)).await
    }

    /// Returns when what the tables have of memberships is known here: they may be a moment ahead.
    /// A room that is told before its join is covered by the token is new again in the next answer.
    async fn reach_memberships(&self, rows: &[sync::MembershipRow]) {
        let whole = rows.iter().filter_map(|row| match row.extent {
            Some(sync::Extent::WholeSince(writer, at)) => Some((writer, at)),
            _ => None,
        });
        let changed = rows.iter().filter_map(|row| Some((row.writer?, row.pos)));
        let nothing = StreamToken::default();
        let told = changed.chain(whole).fold(nothing, |told, (writer, at)| told.raised(writer, at));
        self.deps.streams.events.reach_all(&told).await;
    }

    /// What memory knows of the interval from `since` until now.
    async fn plan(&self, asker: &Asker, since: Option<&SyncToken>) -> Result<Plan> {
        let mut steps = None;
        loop {
            if let Some(since) = since.filter(|_| steps.is_none()) {
                let is_known = {
                    let state = self.index.lock();
                    state.view(asker.user).is_some_and(|v| v.steps_since(&since.room).is_some())
                };
                if !is_known {
                    steps = Some(self.read_steps(asker.user, since).await?);
                }
            }
            let planned = plan::make(&self.index.lock(), asker, since, steps.clone());
            if let Some(plan) = planned {
                return Ok(plan);
            }
            // The view was dropped for want of room meanwhile.
            self.load_view(asker.user).await?;
        }
    }

    async fn read_steps(&self, user: UserNid, since: &SyncToken) -> Result<Vec<Step>> {
        let all = Position(i64::MAX);
        let rows = sync::list_membership_changes(self.pool(), user, since.room.min, all).await?;
        let steps = rows.into_iter().filter_map(|row| {
            Some(Step {
                room: row.room,
                room_id: row.room_id.try_into().ok()?,
                writer: row.writer,
                at: row.pos,
                before: row.before.and_then(Membership::from_letter),
                now: Membership::from_letter(row.membership)?,
                event: row.event,
                inviter: row.inviter.and_then(|user| user.try_into().ok()),
                stripped: None,
                is_partial: false,
            })
        });
        Ok(steps.collect())
    }

    /// Adds what only the tables know.
    async fn complete(&self, asker: &Asker, mut plan: Plan) -> Result<Parts> {
        let (pool, config) = (self.pool(), &self.deps.config);
        let global = account::read(pool, &self.users, asker, &mut plan).await?;
        ephemeral::read(pool, &self.deps.interner, asker, &mut plan).await?;
        let previews = self.previews(asker, &mut plan).await?;
        self.drop_forgotten(asker, &mut plan).await?;
        let limit = asker.filter.timeline_limit(config.rooms.filter_timeline_limit);
        let timelines = timeline::read(pool, asker, &plan, limit).await?;
        let summaries = summary::read(pool, &self.index, asker, &plan, &timelines).await?;
        let states = state::read(pool, &self.given, asker, &plan, &timelines, &summaries).await?;
        let federation = self.federation_parts(asker, &timelines, &states).await?;
        let rules = people::Rules {
            mode: config.presence.enabled,
            include_offline: config.presence.include_offline_users_on_sync,
        };
        let people = people::read(pool, rules, asker, &plan).await?;
        let delivery = self.inboxes.read(pool, &self.index, asker, &plan).await?;
        let keys = self.key_counts(asker).await?;
        self.count_unread(asker, &mut plan).await?;
        let mut next = plan.now.clone();
        next.to_device = delivery.upto;
        if let Some(since) = &plan.since {
            // Typing starts again with the server, and must not make tokens go back.
            if since.typing.min > next.typing.max() {
                next.typing = since.typing.clone();
            }
            next.others = since.others.clone();
        }
        Ok(Parts {
            asker: asker.clone(),
            next,
            plan,
            timelines,
            summaries,
            states,
            federation,
            global,
            previews,
            people,
            to_device: delivery.messages,
            keys,
        })
    }

    /// What the federation format needs, if the client wants that.
    async fn federation_parts(
        &self,
        asker: &Asker,
        timelines: &Timelines,
        states: &States,
    ) -> Result<FederationParts> {
        if asker.filter.event_format == EventFormat::Client {
            return Ok(FederationParts::default());
        }
        let shown = timelines.by_room.values().flat_map(|timeline| &timeline.events);
        let state = states.values().flatten().map(|event| &**event);
        federation_event::load(self.pool(), shown.map(|shown| &*shown.event).chain(state)).await
    }

    async fn key_counts(&self, asker: &Asker) -> Result<Arc<KeyCounts>> {
        match &asker.device {
            Some(device) => self.users.keys.counts(asker.user, device).await,
            None => Ok(Arc::default()),
        }
    }

    /// Stripped state of rooms that the asker is invited to or knocks at, by room.
    async fn previews(&self, asker: &Asker, plan: &mut Plan) -> Result<BTreeMap<RoomNid, String>> {
        let unknown: Vec<RoomNid> =
            plan.previews.iter().filter(|p| p.stripped.is_none()).map(|p| p.room).collect();
        if unknown.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows = sync::list_invite_state(self.pool(), asker.user, &unknown).await?;
        Ok(rows.into_iter().collect())
    }

    /// Rooms that the asker has left and forgotten are not told of. An initial sync that wants
    /// them adds the rooms that were left and not forgotten.
    async fn drop_forgotten(&self, asker: &Asker, plan: &mut Plan) -> Result<()> {
        if plan.since.is_none() && asker.filter.room.include_leave {
            let left = sync::list_left_rooms(self.pool(), asker.user).await?;
            let parted = sync::list_ends(self.pool(), asker.user, &left_rooms(&left)).await?;
            for row in left {
                let Ok(room_id) = row.room_id.as_str().try_into() else { continue };
                let end = parted.iter().find(|(room, _)| *room == row.room);
                plan.add_left(asker, row.room, room_id, end.map_or(row.pos, |(_, at)| *at));
            }
            return Ok(());
        }
        let left: Vec<RoomNid> = plan.left().collect();
        if !left.is_empty() {
            for room in sync::list_forgotten(self.pool(), asker.user, &left).await? {
                plan.rooms.remove(&room);
            }
        }
        Ok(())
    }

    /// Fills in the unread counts; reads those that memory does not have, with one query for all
    /// rooms.
    async fn count_unread(&self, asker: &Asker, plan: &mut Plan) -> Result<()> {
        const ATTEMPTS: usize = 3;
        for _ in 0..ATTEMPTS {
            let (unknown, upto) = self.begin_unread(asker, plan);
            if unknown.is_empty() {
                break;
            }
            let rows = sync::list_unread(self.pool(), asker.user, &unknown, upto).await?;
            let mut by_room: BTreeMap<RoomNid, Vec<_>> = BTreeMap::new();
            for row in rows {
                by_room.entry(row.room).or_default().push(row);
            }
            let mut state = self.index.lock();
            let Some(view) = state.view_mut(asker.user) else { break };
            for room in unknown {
                if let Some(unread) = view.unread.get_mut(&room) {
                    unread.complete(by_room.remove(&room).unwrap_or_default().into_iter());
                }
            }
        }
        let state = self.index.lock();
        if let Some(view) = state.view(asker.user) {
            for room in plan.rooms.values_mut() {
                if let Some(unread) = view.unread.get(&room.room) {
                    room.unread = unread.by_thread();
                }
            }
        }
        Ok(())
    }

    /// Rooms of the plan whose counts are not known; they are recorded from the position on that
    /// is returned.
    fn begin_unread(&self, asker: &Asker, plan: &Plan) -> (Vec<RoomNid>, Position) {
        let mut state = self.index.lock();
        let now = state.now.room.max();
        let Some(view) = state.view_mut(asker.user) else { return (Vec::new(), now) };
        let mut unknown = Vec::new();
        for room in plan.joined_in_answer() {
            let is_known = view.unread.get(&room).is_some_and(Unread::is_known);
            if !is_known && view.is_joined(room) {
                view.unread.insert(room, Unread::begin(now));
                unknown.push(room);
            }
        }
        (unknown, now)
    }
}

/// Puts the sizes of the index on the metrics page, until `stop`.
async fn report_sizes(index: Arc<Index>, stop: Stop) {
    loop {
        let sizes = index.lock().sizes();
        for (part, rows) in sizes {
            let rows = u32::try_from(rows).unwrap_or(u32::MAX);
            metrics::gauge!("chatd_sync_index_rows", "part" => part).set(f64::from(rows));
        }
        if !stop.sleep(REPORT_SIZES).await {
            return;
        }
    }
}

/// Syncs that wait for something new.
static WAITING: LazyLock<Gauge> = LazyLock::new(|| metrics::gauge!("synapse_notifier_listeners"));

/// Counts a waiting sync for as long as it lives: clients go away while they wait.
struct Waiting;

impl Waiting {
    fn begin() -> Self {
        WAITING.increment(1.0);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.decrement(1.0);
    }
}

fn left_rooms(rows: &[sync::MembershipRow]) -> Vec<RoomNid> {
    rows.iter().map(|row| row.room).collect()
}
