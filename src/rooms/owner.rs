//! The room owner: it alone extends the rooms of its shards, holds the hot ones in memory, and
//! puts what it has sealed on the lane (R6, R9).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chatd_base::{Clock, EventNid, Position, Refusal, Result, RoomNid, SnapshotId};
use chatd_storage::{Pool, events, rooms};
use chatd_streams::{Owners, shard_of};
use chatd_users::Users;
use parking_lot::Mutex;
use ruma_common::{OwnedEventId, OwnedRoomId, RoomId, UserId};
use ruma_events::TimelineEventType;
use ruma_state_res::auth_types_for_event;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};
use uuid::Uuid;

use crate::{
    compose::{Composed, Prepared, compose},
    import::Importing,
    lane::{Job, Lane, Outcome, Permit, SealedEvent},
    live::{Live, Member},
    on_the_way::OnTheWay,
    places::PlaceReader,
    push::Rules,
    seal::{Draft, Signer},
};

/// A hot room, or one that is being loaded.
pub struct Slot {
    live: OnceCell<Mutex<Live>>,
    dead: AtomicBool,
    /// Jobs on the lane; a room that has some is not dropped from memory.
    pending: AtomicUsize,
    used: AtomicU64,
    /// Held by every event that is on its way, and alone by one that came from elsewhere.
    pub gate: Arc<RwLock<()>>,
}

/// A room's gate, for as long as an event is on its way.
#[expect(dead_code, reason = "guards are held, not read")]
pub enum Hold {
    Shared(OwnedRwLockReadGuard<()>),
    Alone(OwnedRwLockWriteGuard<()>),
}

impl Slot {
    /// A slot for a room that is not loaded.
    pub fn new() -> Self {
        Self {
            live: OnceCell::new(),
            dead: AtomicBool::new(false),
            pending: AtomicUsize::new(0),
            used: AtomicU64::new(0),
            gate: Arc::default(),
        }
    }

    /// A slot for a room that has just been made.
    pub fn with(live: Live) -> Self {
        Self { live: OnceCell::new_with(Some(Mutex::new(live))), ..Self::new() }
    }

    /// Whether its memory has run ahead of tables that did not follow.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Throws the memory away: whoever comes next loads the room again.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// A job has left the lane.
    pub fn committed(&self) {
        self.pending.fetch_sub(1, Ordering::AcqRel);
    }

    /// A job is about to be put on the lane.
    pub fn queued(&self) {
        self.pending.fetch_add(1, Ordering::AcqRel);
    }

    /// Puts events of this room, which the room's memory has in it already, on the lane; they
    /// become durable together.
    pub fn enqueue(
        self: &Arc<Self>,
        permit: Permit<'_>,
        live: &Live,
        events: Vec<SealedEvent>,
        hold: Hold,
    ) -> watch::Receiver<Outcome> {
        let (outcome, waits) = watch::channel(Outcome::Waiting);
        self.queued();
        permit.send(Job {
            slot: self.clone(),
            room: live.room,
            shard: live.shard,
            epoch: live.epoch,
            new_room: None,
            events,
            outcome,
            place: None,
            hold: Some(hold),
        });
        waits
    }
}

/// The hot rooms.
type Slots = Mutex<HashMap<OwnedRoomId, Arc<Slot>>>;

/// Numbers that were reserved in blocks.
#[derive(Default)]
struct Block {
    next: i64,
    end: i64,
}

/// What a request with an effect on a room has done.
#[derive(Clone, Debug)]
pub struct Sent {
    pub event_id: OwnedEventId,
    /// 0 for repeats and for state that was like that already.
    pub position: Position,
}

/// The owner's side of all rooms.
pub struct RoomOwner {
    pub(crate) pool: Pool,
    pub(crate) users: Arc<Users>,
    pub(crate) signer: Arc<Signer>,
    pub(crate) owners: Arc<Owners>,
    clock: Clock,
    lane: Lane,
    slots: Arc<Slots>,
    uses: AtomicU64,
    event_nids: Mutex<Block>,
    snapshot_ids: Mutex<Block>,
    /// Hot rooms that may be in memory (R8).
    most_rooms: usize,
    /// When the newest room was made.
    newest_room_ms: AtomicI64,
    pub(crate) importing: Importing,
    pub(crate) on_the_way: OnTheWay,
    pub(crate) places: PlaceReader,
}

/// How long a request waits for its commit. What it asked for may still happen; a repeat with the
/// same transaction id finds out.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a draft is sealed again because what it was sealed on has failed.
const ATTEMPTS: usize = 8;

impl RoomOwner {
    pub(crate) fn new(
        users: &Arc<Users>,
        signer: Arc<Signer>,
        owners: Arc<Owners>,
        lane: Lane,
        most_rooms: usize,
    ) -> Self {
        let slots: Arc<Slots> = Arc::default();
        let held = slots.clone();
        owners.on_lost(move |lost| drop_lost(&held, |room| lost.contains(&shard_of(room))));
        Self {
            pool: users.deps.pool.clone(),
            users: users.clone(),
            signer,
            owners,
            clock: users.deps.clock.clone(),
            lane,
            slots,
            uses: AtomicU64::new(0),
            event_nids: Mutex::default(),
            snapshot_ids: Mutex::default(),
            most_rooms,
            newest_room_ms: AtomicI64::new(0),
            importing: Importing::default(),
            on_the_way: OnTheWay::default(),
            places: PlaceReader::new(&users.deps.pool),
        }
    }

    /// Appends a draft to a room that this instance owns. On return the event is durable (R1).
    pub async fn append(&self, room_id: &RoomId, draft: &Draft) -> Result<Sent> {
        let by_client =
            |(device, id): &(String, String)| digest(room_id, &draft.sender, device, id);
        let txn = draft.key.or_else(|| draft.txn.as_ref().map(by_client));
        let appended = self.append_new(room_id, draft, txn).await;
        // What was allowed the first time may not be any more; a repeat is told what it was told.
        if let (Err(chatd_base::Error::Refused(_)), Some(txn)) = (&appended, txn)
            && let Some(event_id) = rooms::get_txn_event(&self.pool, txn).await?
        {
            let event_id = OwnedEventId::try_from(event_id).map_err(chatd_base::Error::internal)?;
            return Ok(Sent { event_id, position: Position(0) });
        }
        appended
    }

    async fn append_new(&self, room_id: &RoomId, draft: &Draft, txn: Option<Uuid>) -> Result<Sent> {
        for _ in 0..ATTEMPTS {
            let slot = self.slot(room_id).await?;
            let here = Hold::Shared(slot.gate.clone().read_owned().await);
            let room = lock(&slot).lock().room;
            self.check_relation(room, draft).await?;
            let prepared = self.prepare(&slot, draft, txn).await?;
            let permit = self.reserve(draft.is_bulk).await?;
            let step = {
                let mut live = lock(&slot).lock();
                if slot.is_dead() {
                    continue;
                }
                if let Some(earlier) = txn.and_then(|txn| live.txn(&txn)) {
                    Err(earlier)
                } else {
                    match compose(&mut live, &self.signer, draft, &prepared)? {
                        Composed::Unchanged(event_id) => {
                            return Ok(Sent { event_id, position: Position(0) });
                        }
                        Composed::Event(event) => {
                            let waits = slot.enqueue(permit, &live, vec![*event], here);
                            if let Some(txn) = txn {
                                live.remember_txn(txn, waits.clone());
                            }
                            Ok(waits)
                        }
                    }
                }
            };
            let waits = match step {
                Ok(own) => own,
                Err(earlier) => earlier,
            };
            match settle(waits).await? {
                Settled::Sent(sent) => return Ok(sent),
                Settled::Again => {}
                Settled::Moved => self.owners.refresh().await?,
            }
        }
        tracing::warn!(room.id = %room_id, "a room could not be extended; its client may try again");
        Err(away(UNSETTLED).into())
    }

    /// Makes the events of a new room durable, all or none.
    pub(crate) async fn commit_new(
        &self,
        slot: Arc<Slot>,
        is_bulk: bool,
        job: impl FnOnce(watch::Sender<Outcome>) -> Job,
    ) -> Result<()> {
        let permit = self.reserve(is_bulk).await?;
        let (outcome, waits) = watch::channel(Outcome::Waiting);
        slot.queued();
        permit.send(job(outcome));
        match settle(waits).await? {
            Settled::Sent(_) => {
                let room_id = lock(&slot).lock().room_id.clone();
                self.slots.lock().insert(room_id, slot);
                Ok(())
            }
            Settled::Again => Err(away(UNSETTLED).into()),
            Settled::Moved => {
                self.owners.refresh().await?;
                Err(Refusal::not_owner(String::new()).into())
            }
        }
    }

    pub(crate) async fn reserve(&self, is_bulk: bool) -> Result<Permit<'_>> {
        let permit = tokio::time::timeout(PATIENCE, self.lane.reserve(is_bulk));
        let full = |_| {
            tracing::warn!("the lane of room events has been full for {PATIENCE:?}");
            away("too many events wait for the database")
        };
        Ok(permit.await.map_err(full)?.ok_or_else(|| away(STOPPING))?)
    }

    /// The hot room, loaded if need be. Refuses rooms of other instances
    /// ([`Refusal::not_owner`]) and those that this server does not know.
    pub(crate) async fn slot(&self, room_id: &RoomId) -> Result<Arc<Slot>> {
        let (shard, epoch) = self.owners.own(room_id).await?;
        let slot = self.entry(room_id);
        let loaded = slot
            .live
            .get_or_try_init(|| async {
                let live = Live::load(&self.pool, room_id, shard, epoch).await?;
                live.map(Mutex::new).ok_or_else(|| unknown_room(room_id).into())
            })
            .await;
        match loaded {
            Ok(_) => Ok(slot),
            Err(error) => {
                self.slots.lock().retain(|id, other| id != room_id || !Arc::ptr_eq(other, &slot));
                Err(error)
            }
        }
    }

    fn entry(&self, room_id: &RoomId) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let used = self.uses.fetch_add(1, Ordering::Relaxed);
        if slots.get(room_id).is_some_and(|slot| slot.is_dead()) {
            slots.remove(room_id);
        }
        if slots.len() >= self.most_rooms && !slots.contains_key(room_id) {
            evict(&mut slots);
        }
        let slot = slots.entry(room_id.to_owned()).or_insert_with(|| Arc::new(Slot::new()));
        slot.used.store(used, Ordering::Relaxed);
        slot.clone()
    }

    /// Looks up everything that the draft needs, so that nothing waits while the room is locked.
    /// No query once the room, its members and the names in the draft are warm.
    pub(crate) async fn prepare(
        &self,
        slot: &Slot,
        draft: &Draft,
        txn: Option<Uuid>,
    ) -> Result<Prepared> {
        let interner = &self.users.deps.interner;
        let kind = interner.types(&[&draft.kind]).await?[0];
        let sender = interner.user(draft.sender.as_str()).await?;
        let key = match &draft.state_key {
            Some(state_key) => Some(interner.keys(&[(&draft.kind, state_key)]).await?[0]),
            None => None,
        };
        let target = match &draft.state_key {
            Some(user) if draft.kind == "m.room.member" && UserId::parse(user).is_ok() => {
                Some(interner.user(user).await?)
            }
            _ => None,
        };
        self.load_members(slot, draft).await?;
        let members = lock(slot).lock().members.clone();
        let rules = self.rules_of(&members).await?;
        let users: Vec<_> = members.iter().map(|member| member.user).collect();
        let deaf = self.users.ignored.who_ignore(&users, &draft.sender).await?;
        let redacts = match &draft.redacts {
            Some(target) => events::get_by_id(&self.pool, target.as_str()).await?,
            None => None,
        };
        Ok(Prepared {
            nid: EventNid(self.next_number(&self.event_nids, true).await?),
            snapshot: match key {
                Some(_) => self.next_snapshot().await?,
                None => SnapshotId(0),
            },
            kind,
            sender,
            key,
            target,
            rules: Arc::new(rules),
            deaf,
            redacts,
            txn,
            now_ms: self.now_ms(),
        })
    }

    /// Gives numbers to all that the drafts of a new room name; two queries at most. Each draft
    /// finds them in memory then.
    pub(crate) async fn number_names(&self, drafts: &[Draft]) -> Result<()> {
        let interner = &self.users.deps.interner;
        let pairs = drafts
            .iter()
            .map(|draft| (draft.kind.as_str(), draft.state_key.as_deref().unwrap_or_default()));
        let pairs: BTreeSet<(&str, &str)> = pairs.collect();
        let users = pairs.iter().filter(|(kind, _)| *kind == "m.room.member");
        let users: Vec<&str> = users.map(|(_, user)| *user).collect();
        let pairs: Vec<(&str, &str)> = pairs.iter().copied().collect();
        interner.users(&users).await?;
        interner.keys(&pairs).await?;
        Ok(())
    }

    /// [`Prepared`] for an event of a room that is being made, which nobody else has joined.
    pub(crate) async fn prepare_new(&self, draft: &Draft) -> Result<Prepared> {
        let interner = &self.users.deps.interner;
        let state_key = draft.state_key.as_deref().unwrap_or_default();
        let target = match draft.kind == "m.room.member" {
            true => Some(interner.user(state_key).await?),
            false => None,
        };
        Ok(Prepared {
            nid: EventNid(self.next_number(&self.event_nids, true).await?),
            snapshot: self.next_snapshot().await?,
            kind: interner.types(&[&draft.kind]).await?[0],
            sender: interner.user(draft.sender.as_str()).await?,
            key: Some(interner.keys(&[(&draft.kind, state_key)]).await?[0]),
            target,
            rules: Arc::default(),
            deaf: HashSet::default(),
            redacts: None,
            txn: None,
            now_ms: self.now_ms(),
        })
    }

    /// Milliseconds since the epoch, as events have them.
    pub(crate) fn now_ms(&self) -> i64 {
        i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX)
    }

    /// The time of a new room, which no other room has: the id of a room of version 12 is the hash
    /// of its first event, so two of one user must not begin in the same millisecond.
    pub(crate) fn creation_ms(&self) -> i64 {
        let now = self.now_ms();
        let later = |newest: i64| Some(now.max(newest + 1));
        match self.newest_room_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, later) {
            Ok(newest) | Err(newest) => now.max(newest + 1),
        }
    }

    pub(crate) async fn next_room(&self) -> Result<RoomNid> {
        Ok(rooms::next_room(&self.pool).await?)
    }

    /// A number for a new event.
    pub(crate) async fn next_event(&self) -> Result<EventNid> {
        Ok(EventNid(self.next_number(&self.event_nids, true).await?))
    }

    /// A number for a new state snapshot.
    pub(crate) async fn next_snapshot(&self) -> Result<SnapshotId> {
        Ok(SnapshotId(self.next_number(&self.snapshot_ids, false).await?))
    }

    async fn rules_of(&self, members: &[Member]) -> Result<Rules> {
        let wanted: Vec<_> = members.iter().map(|m| (m.user, &*m.user_id)).collect();
        let rules = self.users.push_rules.rulesets(&wanted).await?;
        let own = members.iter().zip(rules).filter(|(_, rules)| !rules.is_default);
        Ok(own.map(|(member, rules)| (member.user, rules)).collect())
    }

    /// Reads memberships that the draft's authorisation needs and that are not in memory: those
    /// of users of other servers, and of users who are not joined.
    pub(crate) async fn load_members(&self, slot: &Slot, draft: &Draft) -> Result<()> {
        let missing: Vec<(String, String)> = {
            let live = lock(slot).lock();
            let content = serde_json::value::to_raw_value(&draft.content)
                .map_err(chatd_base::Error::internal)?;
            let kind = TimelineEventType::from(draft.kind.as_str());
            let rules = &live.rules.authorization;
            let state_key = draft.state_key.as_deref();
            auth_types_for_event(&kind, &draft.sender, state_key, &content, rules)
                .map_err(Refusal::bad_json)?
                .into_iter()
                .map(|(kind, key)| (kind.to_string(), key))
                .filter(|(kind, key)| kind == "m.room.member" && live.body(kind, key).is_none())
                .collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let pairs: Vec<_> =
            missing.iter().map(|(kind, key)| (kind.as_str(), key.as_str())).collect();
        let keys = self.users.deps.interner.known_keys(&pairs).await?;
        let nids: Vec<EventNid> = {
            let live = lock(slot).lock();
            keys.iter().flatten().filter_map(|key| live.state.get(key).copied()).collect()
        };
        if nids.is_empty() {
            return Ok(());
        }
        let bodies = rooms::list_bodies(&self.pool, &nids).await?;
        let mut live = lock(slot).lock();
        // A newer body may have come in meanwhile.
        let bodies = bodies.into_iter().filter(|body| live.state.get(&body.key) == Some(&body.nid));
        let bodies = bodies.collect();
        live.add_bodies(bodies)
    }

    async fn next_number(&self, block: &Mutex<Block>, is_event: bool) -> Result<i64> {
        loop {
            {
                let mut block = block.lock();
                if block.next < block.end {
                    block.next += 1;
                    return Ok(block.next - 1);
                }
            }
            let start = match is_event {
                true => rooms::next_events(&self.pool).await?,
                false => rooms::next_snapshots(&self.pool).await?,
            };
            *block.lock() = Block { next: start, end: start + rooms::NID_BLOCK };
        }
    }
}

/// The room in a slot that [`RoomOwner::slot`] has returned.
pub(crate) fn lock(slot: &Slot) -> &Mutex<Live> {
    slot.live.get().expect("`slot` returns only slots that are loaded")
}

/// What a client is told of a room that this server does not know.
pub(crate) fn unknown_room(room_id: &RoomId) -> Refusal {
    Refusal::forbidden(format!("you are not in the room {room_id}, or it does not exist"))
}

/// Nothing can be written to a room at the moment; a repeat may well succeed.
pub(crate) fn away(why: &str) -> Refusal {
    Refusal::new(
        503,
        "M_UNKNOWN",
        format!("the server cannot write at the moment: {why}; try again"),
    )
}

/// What was sealed had to be sealed again too often.
pub(crate) const UNSETTLED: &str = "what the event builds on did not become durable";
const STOPPING: &str = "it is stopping";

/// What became of a job.
pub(crate) enum Settled {
    Sent(Sent),
    /// The draft has to be sealed again.
    Again,
    /// The same, if the room still belongs to this instance.
    Moved,
}

/// Waits for the end of a job.
pub(crate) async fn settle(mut waits: watch::Receiver<Outcome>) -> Result<Settled> {
    let ended = waits.wait_for(|outcome| !matches!(outcome, Outcome::Waiting));
    let outcome = match tokio::time::timeout(PATIENCE, ended).await {
        Ok(Ok(outcome)) => outcome.clone(),
        Ok(Err(_)) => {
            tracing::error!("an event has left the lane without an outcome");
            return Err(away(STOPPING).into());
        }
        Err(_) => {
            tracing::warn!("an event has waited for its commit for {PATIENCE:?}");
            return Err(away("the database has not confirmed the event in time").into());
        }
    };
    match outcome {
        Outcome::Done(ids, position) => {
            let event_id = ids.last().cloned().ok_or_else(|| away(UNSETTLED))?;
            Ok(Settled::Sent(Sent { event_id, position }))
        }
        Outcome::Repeat(event_id) => Ok(Settled::Sent(Sent { event_id, position: Position(0) })),
        Outcome::Failed(error) if matches!(*error, chatd_storage::Error::Lost(_)) => {
            Err(away("the database cannot be reached").into())
        }
        Outcome::Failed(error) => Err(chatd_base::Error::internal(error.to_string())),
        Outcome::Again | Outcome::Waiting => Ok(Settled::Again),
        Outcome::Moved => Ok(Settled::Moved),
    }
}

/// Throws away what is in memory of rooms that belong to others now.
fn drop_lost(slots: &Slots, is_lost: impl Fn(&RoomId) -> bool) {
    slots.lock().retain(|room, slot| {
        let keep = !is_lost(room);
        if !keep {
            slot.kill();
        }
        keep
    });
}

/// Drops the quarter of the rooms that was not used for longest and has nothing on the lane.
fn evict(slots: &mut HashMap<OwnedRoomId, Arc<Slot>>) {
    let mut idle: Vec<(u64, OwnedRoomId)> = slots
        .iter()
        .filter(|(_, slot)| {
            slot.pending.load(Ordering::Acquire) == 0 && Arc::strong_count(slot) == 1
        })
        .map(|(id, slot)| (slot.used.load(Ordering::Relaxed), id.clone()))
        .collect();
    idle.sort_unstable();
    for (_, id) in idle.iter().take(slots.len() / 4 + 1) {
        slots.remove(id);
    }
}

/// The key of what a user has asked for once: by a transaction id, or by what the request is.
pub(crate) fn digest(room: &RoomId, user: &UserId, device: &str, txn_id: &str) -> Uuid {
    let mut hash = Sha256::new();
    for part in [room.as_str(), user.as_str(), device, txn_id] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Uuid::from_slice(&hash.finalize()[..16]).expect("half of a SHA-256 hash has 16 bytes")
}
