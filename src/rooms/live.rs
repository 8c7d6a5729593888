//! A hot room in the memory of its owner: heads, current state, members, recent transactions.
//! It runs ahead of the database by what waits on the lane; if a commit fails it is thrown away
//! and loaded again (R7).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use chatd_base::{EventNid, KeyNid, Position, Result, RoomNid, ShardId, SnapshotId, UserNid};
use chatd_storage::{
    Pool, partial,
    rooms::{self, RoomRow},
    snapshots::{self, SnapshotHead},
};
use chatd_streams::events::Visibility;
use ruma_common::{
    EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId,
    room_version_rules::RoomVersionRules,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{lane::Outcome, pdu::Pdu, power::Powers, seal::HASH_KEY};

/// A forward extremity.
#[derive(Clone, Debug)]
pub struct Head {
    pub nid: EventNid,
    pub event_id: OwnedEventId,
    pub depth: i64,
    /// Reference hash, in rooms that need it.
    pub hash: Option<String>,
    /// Snapshot of the state after it.
    pub snapshot: SnapshotId,
}

/// A local user who is joined.
#[derive(Clone, Debug)]
pub struct Member {
    pub user: UserNid,
    pub user_id: OwnedUserId,
    pub display_name: String,
}

/// Transactions that a hot room remembers.
const RECENT_TXNS: usize = 512;

/// A room with everything that the next event needs.
pub struct Live {
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub rules: RoomVersionRules,
    pub shard: ShardId,
    pub epoch: i64,
    pub heads: Vec<Head>,
    /// Snapshot of the state that the next event finds.
    pub snapshot: SnapshotHead,
    pub state: HashMap<KeyNid, EventNid>,
    /// Bodies of state events by type and state key: all but memberships of users who are not
    /// local and joined, which are added when they are needed.
    bodies: HashMap<String, HashMap<String, Arc<Pdu>>>,
    pub members: Arc<Vec<Member>>,
    /// Joined users of all servers.
    pub joined: i64,
    /// The members of the room are not known yet, but for a few.
    pub is_partial: bool,
    /// There may be redactions that wait for events which have not come.
    pub redactions_wait: bool,
    txns: HashMap<Uuid, watch::Receiver<Outcome>>,
    txn_order: VecDeque<Uuid>,
}

impl Live {
    /// A room that has no events yet.
    pub fn new(
        room: RoomNid,
        room_id: OwnedRoomId,
        rules: RoomVersionRules,
        shard: ShardId,
        epoch: i64,
    ) -> Self {
        Self {
            room,
            room_id,
            rules,
            shard,
            epoch,
            heads: Vec::new(),
            snapshot: SnapshotHead::default(),
            state: HashMap::new(),
            bodies: HashMap::new(),
            members: Arc::default(),
            joined: 0,
            is_partial: false,
            redactions_wait: false,
            txns: HashMap::new(),
            txn_order: VecDeque::new(),
        }
    }

    /// Reads a room from the tables; `None` if this server has not been in it. A constant number
    /// of queries.
    pub async fn load(
        pool: &Pool,
        room_id: &RoomId,
        shard: ShardId,
        epoch: i64,
    ) -> Result<Option<Self>> {
        match rooms::get(pool, room_id.as_str()).await? {
            Some(row) if !row.heads.is_empty() => {
                Ok(Some(Self::read(pool, room_id, row, (shard, epoch)).await?))
            }
            // It is known, if at all, because somebody was invited.
            _ => Ok(None),
        }
    }

    /// Reads what the tables have of a room beside its row.
    pub async fn read(
        pool: &Pool,
        room_id: &RoomId,
        row: RoomRow,
        (shard, epoch): (ShardId, i64),
    ) -> Result<Self> {
        let version =
            RoomVersionId::try_from(row.version.as_str()).map_err(chatd_base::Error::internal)?;
        let rules = version.rules().ok_or_else(|| {
            chatd_base::Error::internal(format!("room {room_id} has the unknown version {version}"))
        })?;
        let mut live = Self::new(row.nid, room_id.to_owned(), rules, shard, epoch);
        let heads: Vec<EventNid> = row.heads.iter().map(|(event, _)| *event).collect();
        let (state, bodies, heads, members, joined, snapshot, txns, is_partial) = futures::try_join!(
            rooms::list_current_state(pool, row.nid),
            rooms::list_state_bodies(pool, row.nid),
            rooms::list_heads(pool, &heads),
            rooms::list_local_members(pool, row.nid),
            rooms::count_joined(pool, row.nid),
            snapshots::get_head(pool, row.nid, row.state),
            rooms::list_recent_txns(pool, row.nid),
            partial::get(pool, row.nid),
        )?;
        live.state = state.into_iter().collect();
        live.joined = joined;
        live.is_partial = is_partial.is_some();
        live.redactions_wait = row.redactions_wait;
        live.snapshot = snapshot;
        let after: HashMap<EventNid, SnapshotId> = row.heads.into_iter().collect();
        live.heads = heads
            .into_iter()
            .map(|row| head(after.get(&row.0).copied().unwrap_or_default(), row))
            .collect::<Result<_>>()?;
        live.add_bodies(bodies)?;
        live.members = Arc::new(
            members
                .into_iter()
                .map(|(user, id)| live.member(user, &id))
                .collect::<Result<Vec<_>>>()?,
        );
        live.add_txns(txns)?;
        Ok(live)
    }

    /// Takes in the latest transactions, so that requests which are repeated after a restart find
    /// their events without trying to make them again.
    fn add_txns(&mut self, txns: Vec<(Uuid, String, Position)>) -> Result<()> {
        for (digest, event_id, position) in txns {
            let event_id = OwnedEventId::try_from(event_id).map_err(chatd_base::Error::internal)?;
            let done = Outcome::Done([event_id].into(), position);
            self.remember_txn(digest, watch::channel(done).1);
        }
        Ok(())
    }

    fn member(&self, user: UserNid, user_id: &str) -> Result<Member> {
        let display_name = self
            .body("m.room.member", user_id)
            .and_then(|body| body.content_str("displayname"))
            .unwrap_or_default();
        let user_id = OwnedUserId::try_from(user_id).map_err(chatd_base::Error::internal)?;
        Ok(Member { user, user_id, display_name })
    }

    /// Takes in bodies that were read for this room.
    pub fn add_bodies(&mut self, bodies: Vec<rooms::StateBody>) -> Result<()> {
        let has_hash_id = self.rules.authorization.room_create_event_id_as_room_id;
        for body in bodies {
            let pdu = Pdu::from_body(body, &self.room_id, has_hash_id)
                .map_err(chatd_base::Error::internal)?;
            self.set_body(Arc::new(pdu));
        }
        Ok(())
    }

    /// The state event of a type and key, if it is set and in memory.
    pub fn body(&self, kind: &str, state_key: &str) -> Option<&Arc<Pdu>> {
        self.bodies.get(kind)?.get(state_key)
    }

    /// Makes `pdu`, a state event, the one of its type and key.
    pub fn set_body(&mut self, pdu: Arc<Pdu>) {
        let kind = pdu.kind.to_string();
        let state_key = pdu.state_key.clone().unwrap_or_default();
        self.bodies.entry(kind).or_default().insert(state_key, pdu);
    }

    /// Forgets the state event of a type and key that is no longer set.
    pub fn remove_body(&mut self, pdu: &Pdu) {
        if let Some(of_kind) = self.bodies.get_mut(&pdu.kind.to_string()) {
            of_kind.remove(pdu.state_key.as_deref().unwrap_or_default());
        }
    }

    /// Which state event a redaction has changed, if it is a current one.
    pub fn body_of_event(&self, event_id: &EventId) -> Option<&Arc<Pdu>> {
        self.bodies.values().flat_map(HashMap::values).find(|body| *body.event_id == *event_id)
    }

    /// Power levels of this moment.
    pub fn powers(&self) -> Powers<'_> {
        Powers::of(
            &self.rules,
            self.body("m.room.create", "").map(|body| &**body),
            self.body("m.room.power_levels", "").map(|body| &**body),
        )
    }

    /// Setting of `m.room.history_visibility` of this moment.
    pub fn visibility(&self) -> Visibility {
        let setting = self
            .body("m.room.history_visibility", "")
            .and_then(|body| body.content_str("history_visibility"));
        visibility_of(setting.as_deref())
    }

    /// The outcome of an earlier request with this transaction digest.
    pub fn txn(&self, digest: &Uuid) -> Option<watch::Receiver<Outcome>> {
        self.txns.get(digest).cloned()
    }

    /// Remembers a request; forgets the oldest when there are too many (R8).
    pub fn remember_txn(&mut self, digest: Uuid, outcome: watch::Receiver<Outcome>) {
        if self.txn_order.len() >= RECENT_TXNS
            && let Some(oldest) = self.txn_order.pop_front()
        {
            self.txns.remove(&oldest);
        }
        self.txn_order.push_back(digest);
        self.txns.insert(digest, outcome);
    }

    /// Depth of the next event.
    pub fn next_depth(&self) -> i64 {
        let deepest = self.heads.iter().map(|head| head.depth).max();
        deepest.map_or(1, |depth| (depth + 1).min(chatd_base::json::MAX_INTEGER))
    }
}

/// The setting that a word stands for; what is absent or unknown counts as `shared`.
pub fn visibility_of(word: Option<&str>) -> Visibility {
    match word {
        Some("world_readable") => Visibility::WorldReadable,
        Some("invited") => Visibility::Invited,
        Some("joined") => Visibility::Joined,
        _ => Visibility::Shared,
    }
}

fn head(
    snapshot: SnapshotId,
    (nid, event_id, depth, rest): (EventNid, String, i64, Vec<u8>),
) -> Result<Head> {
    let event_id = OwnedEventId::try_from(event_id).map_err(chatd_base::Error::internal)?;
    Ok(Head { nid, event_id, depth, hash: stored_hash(&rest), snapshot })
}

/// The reference hash in the `rest` of an event of room versions 1 and 2.
pub fn stored_hash(rest: &[u8]) -> Option<String> {
    let rest: serde_json::Value = serde_json::from_slice(rest).ok()?;
    Some(rest.get(HASH_KEY)?.as_str()?.to_owned())
}
