//! Where an event stands in a room's graph: the state before it, whatever its predecessors are,
//! and the state of the room with it. Reads a constant number of times, arrays in and out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{Error, EventNid, KeyNid, Result, RoomNid, SnapshotId};
use chatd_storage::{
    graph,
    snapshots::{self, NewSnapshot, SnapshotHead, StateMap},
};
use ruma_common::{OwnedRoomId, room_version_rules::RoomVersionRules};

use crate::{
    owner::RoomOwner,
    pdu::Pdu,
    resolve::{self, Material, Split},
};

/// The state at a point of the graph, and the snapshot that stands for it.
#[derive(Clone, Debug)]
pub struct StateAt {
    pub state: Arc<StateMap>,
    pub head: SnapshotHead,
}

/// The snapshot before an event, and the entry that the event itself sets.
pub type After = (SnapshotId, Option<(KeyNid, EventNid)>);

/// What is known of a room's graph while one event finds its place in it.
pub struct Scene<'a> {
    owner: &'a RoomOwner,
    pub room: RoomNid,
    room_id: OwnedRoomId,
    pub rules: RoomVersionRules,
    /// Events that have been read.
    pub pdus: HashMap<EventNid, Arc<Pdu>>,
    /// The event that finds its place, if it is not in the tables, with its auth events.
    newcomer: Option<(EventNid, Vec<EventNid>)>,
    /// Snapshots that have been made on the way and are to be written.
    pub made: Vec<NewSnapshot>,
    /// The state of the room now, which is in memory.
    current: StateAt,
}

impl<'a> Scene<'a> {
    /// The room with a new event in it.
    pub fn new(
        owner: &'a RoomOwner,
        (room, room_id): (RoomNid, OwnedRoomId),
        rules: RoomVersionRules,
        newcomer: &Arc<Pdu>,
        auth: Vec<EventNid>,
        current: StateAt,
    ) -> Self {
        Self {
            current,
            owner,
            room,
            room_id,
            rules,
            pdus: HashMap::from([(newcomer.nid, newcomer.clone())]),
            newcomer: Some((newcomer.nid, auth)),
            made: Vec::new(),
        }
    }

    /// The room as the tables have it, for events that are in them.
    pub fn of_known(
        owner: &'a RoomOwner,
        (room, room_id): (RoomNid, OwnedRoomId),
        rules: RoomVersionRules,
        current: StateAt,
    ) -> Self {
        let (pdus, made) = (HashMap::new(), Vec::new());
        Self { owner, room, room_id, rules, pdus, newcomer: None, made, current }
    }

    /// Auth events of the new event.
    pub fn newcomer_auth(&self) -> Vec<EventNid> {
        self.newcomer.as_ref().map(|(_, auth)| auth.clone()).unwrap_or_default()
    }

    /// Reads those of the events that have not been read.
    pub async fn read(&mut self, events: impl IntoIterator<Item = EventNid>) -> Result<()> {
        let missing: BTreeSet<EventNid> =
            events.into_iter().filter(|nid| !self.pdus.contains_key(nid)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<EventNid> = missing.into_iter().collect();
        let has_hash_id = self.rules.authorization.room_create_event_id_as_room_id;
        for event in graph::list_events(&self.owner.pool, &missing).await? {
            let pdu =
                Pdu::from_graph(event, &self.room_id, has_hash_id).map_err(Error::internal)?;
            self.pdus.insert(pdu.nid, Arc::new(pdu));
        }
        Ok(())
    }

    /// Events of `state` that decide whether the event is allowed, by name.
    pub async fn deciding(
        &mut self,
        event: &Arc<Pdu>,
        state: &StateMap,
    ) -> Result<HashMap<(String, String), Arc<Pdu>>> {
        let events = self.entries(resolve::deciding_keys(&self.rules, [event].into_iter()), state);
        let events = events.await?;
        self.read(events.values().copied()).await?;
        let found = events.into_iter().filter_map(|(name, nid)| Some((name, self.pdus.get(&nid)?)));
        Ok(found.map(|(name, pdu)| (name, pdu.clone())).collect())
    }

    /// The entries of `state` with these names.
    async fn entries(
        &self,
        names: BTreeSet<(String, String)>,
        state: &StateMap,
    ) -> Result<BTreeMap<(String, String), EventNid>> {
        let pairs: Vec<(&str, &str)> =
            names.iter().map(|(kind, key)| (kind.as_str(), key.as_str())).collect();
        let keys = self.owner.users.deps.interner.known_keys(&pairs).await?;
        let found = names.iter().zip(&keys).filter_map(|(name, key)| {
            let event = state.get(key.as_ref()?)?;
            Some((name.clone(), *event))
        });
        Ok(found.collect())
    }

    /// The states after events that are in the tables.
    pub async fn states_after(&mut self, places: &[After]) -> Result<Vec<StateAt>> {
        let ids = places.iter().map(|(id, _)| *id).filter(|id| *id != self.current.head.id);
        let ids: Vec<SnapshotId> = ids.collect();
        let loaded = snapshots::load_many(&self.owner.pool, self.room, &ids).await?;
        let loaded: HashMap<SnapshotId, StateAt> = loaded
            .into_iter()
            .map(|(id, (state, head))| (id, StateAt { state: Arc::new(state), head }))
            .chain([(self.current.head.id, self.current.clone())])
            .collect();
        let mut states = Vec::with_capacity(places.len());
        for (id, entry) in places {
            let before = loaded.get(id).ok_or_else(|| Error::internal("a snapshot is missing"))?;
            states.push(match entry {
                Some((key, event)) => self.follow(before, *key, *event).await?,
                None => before.clone(),
            });
        }
        Ok(states)
    }

    /// The state that differs from `before` by one entry.
    pub async fn follow(
        &mut self,
        before: &StateAt,
        key: KeyNid,
        event: EventNid,
    ) -> Result<StateAt> {
        if before.state.get(&key) == Some(&event) {
            return Ok(before.clone());
        }
        let mut state = (*before.state).clone();
        state.insert(key, event);
        self.make(before, &[(key, Some(event))], state).await
    }

    /// A state that was not made of others here.
    pub async fn stand(&mut self, state: StateMap) -> Result<StateAt> {
        let base = self.current.clone();
        match difference(&base.state, &state) {
            changes if changes.is_empty() => Ok(base),
            changes => self.make(&base, &changes, state).await,
        }
    }

    async fn make(
        &mut self,
        base: &StateAt,
        changes: &[(KeyNid, Option<EventNid>)],
        state: StateMap,
    ) -> Result<StateAt> {
        let id = self.owner.next_snapshot().await?;
        let (new, head) = snapshots::next(self.room, id, &base.head, changes, || state.clone());
        self.made.push(new);
        Ok(StateAt { state: Arc::new(state), head })
    }

    /// What the state is where several branches meet.
    pub async fn merge(&mut self, mut states: Vec<StateAt>) -> Result<StateAt> {
        let mut distinct: Vec<StateAt> = Vec::new();
        for state in states.drain(..) {
            if !distinct.iter().any(|other| other.state == state.state) {
                distinct.push(state);
            }
        }
        if let [only] = distinct.as_slice() {
            return Ok(only.clone());
        }
        let maps: Vec<StateMap> = distinct.iter().map(|at| (*at.state).clone()).collect();
        let split = Split::of(&maps);
        let material = self.material(&split).await?;
        let rules = self.rules.clone();
        let work = move || resolve::resolve(&rules, &split, &material);
        let resolved = tokio::task::spawn_blocking(work).await.map_err(Error::internal)?;
        let resolved = resolved.map_err(Error::internal)?;
        let base = distinct
            .iter()
            .map(|at| (difference(&at.state, &resolved), at))
            .min_by_key(|(changes, _)| changes.len());
        match base {
            Some((changes, at)) if changes.is_empty() => Ok(at.clone()),
            Some((changes, at)) => self.make(at, &changes, resolved).await,
            None => Err(Error::internal("an event without predecessors")),
        }
    }

    /// Reads what state resolution needs to know.
    async fn material(&mut self, split: &Split) -> Result<Material> {
        let disputed = split.events();
        // Power levels that nobody disputes are the start of a walk through older ones.
        let levels = BTreeSet::from([("m.room.power_levels".to_owned(), String::new())]);
        let levels = self.entries(levels, &split.agreed).await?;
        let edges = self.edges(disputed.iter().chain(levels.values()).copied()).await?;
        self.read(edges.keys().copied()).await?;
        let concerned = edges.keys().filter_map(|nid| self.pdus.get(nid));
        let names = resolve::deciding_keys(&self.rules, concerned);
        let deciding = self.entries(names, &split.agreed).await?;
        self.read(deciding.values().copied()).await?;

        let chains: Vec<HashSet<EventNid>> = split
            .disputed
            .iter()
            .map(|disputed| resolve::auth_chain(&edges, disputed.values().copied()))
            .collect();
        let differ = chains.windows(2).any(|pair| pair[0] != pair[1]);
        let common = if differ {
            let edges = self.edges(split.agreed.values().copied()).await?;
            resolve::common_chain(&edges, &split.agreed)
        } else {
            HashSet::new()
        };
        Ok(Material { pdus: self.pdus.clone(), edges, common })
    }

    /// Auth events of `seeds`, of those, and so on.
    async fn edges(&self, seeds: impl Iterator<Item = EventNid>) -> Result<resolve::AuthEdges> {
        let mut seeds: BTreeSet<EventNid> = seeds.collect();
        let newcomer = self.newcomer.as_ref().filter(|(newcomer, _)| seeds.remove(newcomer));
        if let Some((_, auth)) = newcomer {
            seeds.extend(auth);
        }
        let seeds: Vec<EventNid> = seeds.into_iter().collect();
        let mut edges = graph::list_auth_edges(&self.owner.pool, &seeds).await?;
        if let Some((newcomer, auth)) = newcomer {
            edges.insert(*newcomer, auth.clone());
        }
        Ok(edges)
    }
}

/// The entries in which `to` differs from `from`.
pub fn difference(from: &StateMap, to: &StateMap) -> Vec<(KeyNid, Option<EventNid>)> {
    let set = to.iter().filter(|(key, event)| from.get(key) != Some(event));
    let gone = from.keys().filter(|key| !to.contains_key(key));
    set.map(|(key, event)| (*key, Some(*event))).chain(gone.map(|key| (*key, None))).collect()
}
