//! Rooms that were joined without their members. What is known of them is enough for whoever has
//! joined to speak; the rest is fetched meanwhile, and becomes part of the room in one commit.
//!
//! Until then the state knows few members, and what other servers say waits
//! ([`crate::Door::is_partial`]): so nothing is judged by a state that is not whole, and what there
//! is since the join was made here, or was let in by a server that knows the members.
//!
//! Once another server has told the state before the join, the members of other servers are written
//! into the first state of the room, as they would have been at the join, in a transaction of their
//! own that can be made again (R7). Then one commit gives each event since the join the state that
//! it would have had, and says that the room is whole, by an event that is shown to nobody.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chatd_base::{Cache, Error, EventNid, KeyNid, Refusal, Result, RoomNid, SnapshotId};
use chatd_storage::{
    Pool, import,
    lane::flags,
    partial::{self, Partial, Rebase, Wholeness},
    rooms,
    snapshots::{self, NewSnapshot, SnapshotHead, StateMap},
};
use ruma_common::{OwnedEventId, RoomId, RoomVersionId};
use tokio::time::Instant;

use crate::{
    Rooms,
    effect::{self, Effect},
    import::Told,
    incoming::Incoming,
    live::Head,
    outliers::Site,
    owner::{Hold, RoomOwner, Slot, UNSETTLED, away, lock},
    place::{Scene, difference},
    receive::current,
};

/// How long a request waits for the members of a room, and one of another server, which can ask
/// somebody else.
const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_OF_SERVERS: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Rooms of which it is remembered that they are whole (R8).
const MOST_ROOMS: usize = 100_000;
/// How often the commit is made anew because the room was loaded again.
const ATTEMPTS: usize = 16;

/// Knows which rooms are whole. One that is stays so.
pub struct Wholes {
    pool: Pool,
    known: Cache<RoomNid, ()>,
}

impl Wholes {
    pub(crate) fn new(pool: &Pool) -> Self {
        Self { pool: pool.clone(), known: Cache::new("whole_rooms", MOST_ROOMS) }
    }

    /// Waits until the members of the room are known; refuses when that takes too long. No query
    /// for a room that is known to be whole.
    pub async fn wait(&self, room: RoomNid) -> Result<()> {
        match self.wait_for(room, PATIENCE).await? {
            true => Ok(()),
            false => Err(not_yet(503).into()),
        }
    }

    /// Whether the members of the room are known, at last after `patience`.
    async fn wait_for(&self, room: RoomNid, patience: Duration) -> Result<bool> {
        let until = Instant::now() + patience;
        while self.known.get(&room).is_none() {
            match partial::get_wholeness(&self.pool, room).await? {
                Wholeness::Whole => self.known.insert(room, ()),
                Wholeness::Nothing => break,
                Wholeness::Partial if Instant::now() >= until => return Ok(false),
                Wholeness::Partial => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
        Ok(true)
    }
}

/// What is told to those who have waited in vain. A server that is told 404 asks another one, and
/// does not take this one for broken.
fn not_yet(status: u16) -> Refusal {
    let message = "the members of this room are still being fetched from other servers; try again";
    Refusal::new(status, "M_UNABLE_DUE_TO_PARTIAL_STATE", message)
}

impl Rooms {
    /// Waits until the members of the room are known, if it is known itself; refuses when that
    /// takes too long.
    pub async fn whole(&self, room_id: &RoomId) -> Result<()> {
        match self.users.room_nids.find(room_id).await? {
            Some(room) => self.wholes.wait(room).await,
            None => Ok(()),
        }
    }

    /// The same for a request of another server.
    pub async fn whole_for_server(&self, room_id: &RoomId) -> Result<()> {
        let Some(room) = self.users.room_nids.find(room_id).await? else { return Ok(()) };
        match self.wholes.wait_for(room, PATIENCE_OF_SERVERS).await? {
            true => Ok(()),
            false => Err(not_yet(404).into()),
        }
    }
}

/// How snapshots of a room become whole.
struct Rebased {
    /// The state after all of it, and what stands for it.
    current: (StateMap, SnapshotHead),
    heads: Vec<Head>,
    made: Vec<NewSnapshot>,
    rebase: Rebase,
}

impl RoomOwner {
    /// Rooms without their members in which somebody here is, and which this instance may extend.
    pub async fn list_partial(&self, most: i64) -> Result<Vec<Partial>> {
        let all = partial::list(&self.pool, most).await?;
        let is_here = |partial: &Partial| {
            let room_id = <&RoomId>::try_from(partial.room_id.as_str());
            room_id.is_ok_and(|id| matches!(self.whose(id), chatd_streams::Owner::Here { .. }))
        };
        Ok(all.into_iter().filter(is_here).collect())
    }

    /// Whether the members of the room are not known. Of a room that is not known itself, false.
    pub async fn is_partial(&self, room_id: &RoomId) -> Result<bool> {
        match self.slot(room_id).await {
            Ok(slot) => Ok(lock(&slot).lock().is_partial),
            Err(Error::Refused(refusal)) if refusal.errcode != Refusal::NOT_OWNER => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether members may be left out of what is told of a room to somebody who joins it: not
    /// where this server has been, and has nobody to wait for them.
    pub async fn may_omit(&self, room_id: &RoomId) -> Result<bool> {
        match self.slot(room_id).await {
            Ok(slot) => {
                let live = lock(&slot).lock();
                Ok(live.is_partial && !live.members.is_empty())
            }
            Err(Error::Refused(refusal)) if refusal.errcode != Refusal::NOT_OWNER => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Makes a room whole by the state before the join, as another server tells it. On return this
    /// is durable. Signatures and hashes have been checked. Refuses what is no state of the room;
    /// a repeat has no effect.
    pub async fn complete(
        &self,
        room_id: &RoomId,
        state: Vec<Incoming>,
        auth_chain: Vec<Incoming>,
    ) -> Result<()> {
        let _one = self.importing.of(room_id).await;
        let Some((site, version, partial)) = self.partial_site(room_id).await? else {
            return Ok(());
        };
        let told = self.take_in(&site, &version, state, auth_chain, false).await?;
        self.complete_with(&site, &partial, &told).await
    }

    /// The same by the ids of the state, whose events have been stored. Refuses if too many of them
    /// have not.
    pub async fn complete_by_ids(&self, room_id: &RoomId, state: &[OwnedEventId]) -> Result<()> {
        let _one = self.importing.of(room_id).await;
        let Some((site, version, partial)) = self.partial_site(room_id).await? else {
            return Ok(());
        };
        let told = self.stored_state(&site, &version, state).await?;
        self.complete_with(&site, &partial, &told).await
    }

    /// A room whose members are not known; `None` if it is whole.
    async fn partial_site(
        &self,
        room_id: &RoomId,
    ) -> Result<Option<(Site, RoomVersionId, Partial)>> {
        let Some(row) = rooms::get(&self.pool, room_id.as_str()).await? else { return Ok(None) };
        let Some(partial) = partial::get(&self.pool, row.nid).await? else { return Ok(None) };
        let version = RoomVersionId::try_from(row.version.as_str()).map_err(Error::internal)?;
        let rules = version.rules().ok_or_else(|| Error::internal("a room of no known version"))?;
        let site = Site { room: row.nid, room_id: room_id.to_owned(), rules: Arc::new(rules) };
        Ok(Some((site, version, partial)))
    }

    async fn complete_with(&self, site: &Site, partial: &Partial, told: &Told) -> Result<()> {
        let added = self.add_members(site, told).await?;
        for _ in 0..ATTEMPTS {
            let (slot, alone) = self.alone(&site.room_id).await?;
            if self.complete_once(&slot, alone, partial, (told, &added)).await? {
                return Ok(());
            }
        }
        Err(away(UNSETTLED).into())
    }

    /// Writes the members of other servers into the first state of the room; its entries.
    async fn add_members(&self, site: &Site, told: &Told) -> Result<HashSet<KeyNid>> {
        let members = self.remote_members(told).await?;
        let entries: Vec<(KeyNid, EventNid)> =
            self.remote(told).filter_map(|(pdu, _)| Some((pdu.key?, pdu.nid))).collect();
        let fence = self.owners.own(&site.room_id).await?;
        import::add(&self.pool, fence, site.room, &entries, &members).await?;
        Ok(entries.into_iter().map(|(key, _)| key).collect())
    }

    /// False if the room has to be loaded again.
    async fn complete_once(
        &self,
        slot: &Arc<Slot>,
        alone: Hold,
        partial: &Partial,
        (told, added): (&Told, &HashSet<KeyNid>),
    ) -> Result<bool> {
        if !lock(slot).lock().is_partial {
            return Ok(true);
        }
        let note = self.dummy(slot).await?;
        let note = note.ok_or_else(|| away("nobody here is in the room any more"))?;
        let with = self.prepare(slot, &note.draft, None).await?;
        let (at, heads, rules, room_id) = {
            let live = lock(slot).lock();
            (current(&live), live.heads.clone(), live.rules.clone(), live.room_id.clone())
        };
        let pdu = Arc::new(note.pdu(with.nid, with.key, &rules, &room_id)?);
        let prev_ids = heads.iter().map(|head| head.nid).collect();
        let Rebased { current, heads, made, rebase } =
            self.rebase(partial, told, at.head.id, heads).await?;
        let mut scene = Scene::new(self, (partial.room, room_id), rules, &pdu, Vec::new(), at);
        scene.pdus.extend(told.pdus.iter().map(|(nid, pdu)| (*nid, pdu.clone())));
        let (mut state, head) = current;
        {
            // Members who have been added are there already.
            let live = lock(slot).lock();
            state.retain(|key, _| !added.contains(key) || live.state.contains_key(key));
        }
        let effect = Effect {
            flags: flags::SOFT_FAILED,
            prev_ids,
            auth_ids: Vec::new(),
            before: head.id,
            snapshots: made,
            heads,
            snapshot: head,
            changes: self.changes(slot, &mut scene, &with, &state).await?,
            redaction: None,
            gaps: None,
            rebase: Some(rebase),
        };
        let permit = self.reserve(true).await?;
        let waits = {
            let mut live = lock(slot).lock();
            let sealed = note.stored(true)?;
            let event =
                effect::apply(&mut live, &self.signer, &note.draft, &with, pdu, sealed, effect)?;
            slot.enqueue(permit, &live, vec![event], alone)
        };
        let settled = self.settled(waits).await;
        // Its memory holds more of the state than it needs to: whoever comes next loads it.
        slot.kill();
        Ok(settled?.is_some())
    }

    /// The snapshots since the join, each with the members that it lacks. What is known goes
    /// before what is told: it has been shown already.
    async fn rebase(
        &self,
        partial: &Partial,
        told: &Told,
        now: SnapshotId,
        mut heads: Vec<Head>,
    ) -> Result<Rebased> {
        let since = partial::list_snapshots_since(&self.pool, partial.room, &partial.joined);
        let since = since.await?.into_iter().chain(heads.iter().map(|head| head.snapshot));
        let ids: BTreeSet<SnapshotId> = since.chain([now]).collect();
        let ids: Vec<SnapshotId> = ids.into_iter().collect();
        let mut known = snapshots::load_many(&self.pool, partial.room, &ids).await?;
        let mut rebase = Rebase::default();
        let mut made = Vec::with_capacity(ids.len());
        let mut by_id: HashMap<SnapshotId, SnapshotHead> = HashMap::with_capacity(ids.len());
        let mut last = (StateMap::new(), SnapshotHead::default());
        let mut current = None;
        for id in ids {
            let Some((known, _)) = known.remove(&id) else {
                return Err(Error::internal("a snapshot is missing"));
            };
            let mut whole = (*told.state).clone();
            whole.extend(known);
            let changes = difference(&last.0, &whole);
            if made.is_empty() || !changes.is_empty() {
                let next = self.next_snapshot().await?;
                let state = || whole.clone();
                let (new, head) = snapshots::next(partial.room, next, &last.1, &changes, state);
                made.push(new);
                last = (whole, head);
            }
            rebase.snapshots.push((id, last.1.id));
            by_id.insert(id, last.1.clone());
            if id == now {
                current = Some(last.clone());
            }
        }
        for head in &mut heads {
            let whole = by_id.get(&head.snapshot);
            head.snapshot = whole.ok_or_else(|| Error::internal("a snapshot is missing"))?.id;
        }
        let current = current.ok_or_else(|| Error::internal("a snapshot is missing"))?;
        Ok(Rebased { current, heads, made, rebase })
    }
}
