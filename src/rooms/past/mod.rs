//! Events from before this server came into a room, or from when it could not hear the others, when
//! somebody wants to read them. They are known as outliers by then; here they are judged by the
//! state before them, and get their place before what has come since. Nothing of that concerns the
//! room as it is now: neither its state nor its newest events, no sync and nobody's counts.
//!
//! The state before the oldest of them is what another server tells; from there on it follows
//! from the events themselves, and is resolved where branches meet. What decides who sees them is
//! noted with them (`notes`).

mod notes;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chatd_base::{EventNid, KeyNid, Position, Result, RoomNid, UserNid};
use chatd_storage::{
    events,
    graph::{self, Place},
    history::{self, Above, Piece, Placed, Setting as Entry, Space},
    lane::{NewRedaction, flags},
    notices::Notice,
    snapshots::{self, StateMap},
};
use ruma_common::{
    CanonicalJsonObject, OwnedEventId, RoomId, UserId, room_version_rules::RoomVersionRules,
};
use ruma_events::TimelineEventType;
use serde_json::{Map, Value};

use crate::{
    incoming,
    judge::Waiting,
    judge::{allowed, may_redact},
    live::Live,
    owner::{RoomOwner, Slot, lock},
    parallel,
    pdu::Pdu,
    place::{After, Scene, StateAt},
    places::Places,
    push,
    receive::{Before, current},
    seal,
};

/// Positions of one event: its own, and the one below.
const STRIDE: i64 = 2;

/// The positions of so many events, the highest of the space, in order; `None` if it is too small.
fn positions(space: Space, count: usize) -> Option<Vec<Position>> {
    let count = i64::try_from(count).ok()?;
    let lowest = space.top.0.checked_sub(STRIDE * count)?;
    (lowest - 1 > space.floor.0)
        .then(|| (0..count).map(|n| Position(lowest + STRIDE * n)).collect())
}

/// An event that gets its place.
struct Step {
    pdu: Arc<Pdu>,
    before: StateAt,
    after: StateAt,
    /// Why it is not allowed, if so.
    refused: Option<String>,
    prev_ids: Vec<EventNid>,
    gaps: Vec<String>,
}

/// What decides who sees what, around positions that are to be taken.
#[derive(Default)]
struct Around {
    /// What counts below them; `None` at the beginning of what is known.
    standing: Option<notes::Standing>,
    /// What has to count behind them, of these keys.
    keys: Vec<KeyNid>,
    behind: notes::Standing,
}

/// Events of the past, with what is known of those that they name.
struct Walk<'a> {
    places: &'a Places,
    states: &'a HashMap<OwnedEventId, Before>,
    /// Of events that have got their place in this walk.
    after: HashMap<EventNid, StateAt>,
}

impl RoomOwner {
    /// Gives events their place: before all others of the room, or before the event at `behind`.
    /// Each comes after those of its predecessors that are among them; all are known at least as
    /// outliers. `states` has the state before those that have a predecessor without a place. An
    /// event without that, or of which an auth event is not known, is left alone. On return the
    /// others are durable; how many there are.
    pub async fn place_past(
        &self,
        room_id: &RoomId,
        events: Vec<CanonicalJsonObject>,
        states: &HashMap<OwnedEventId, Before>,
        behind: Option<Position>,
    ) -> Result<usize> {
        let (slot, _alone) = self.alone(room_id).await?;
        let fence = self.owners.own(room_id).await?;
        let (room, rules, now) = {
            let live = lock(&slot).lock();
            (live.room, live.rules.clone(), current(&live))
        };
        let pdus = read(events, &rules, room_id).await?;
        let places = self.places_of_past(room, &pdus, states).await?;
        let mut scene = Scene::of_known(self, (room, room_id.to_owned()), rules, now);
        let auth = pdus.iter().flat_map(|pdu| &pdu.auth_events);
        scene.read(auth.filter_map(|id| Some(places.get(id.as_str())?.nid))).await?;
        let mut walk = Walk { places: &places, states, after: HashMap::new() };
        let mut steps = Vec::with_capacity(pdus.len());
        for pdu in pdus {
            steps.extend(walk.step(&mut scene, pdu).await?);
        }
        if steps.is_empty() {
            return Ok(0);
        }
        let count = steps.len();
        let space = self.space(room, &steps, behind).await?;
        let Some(positions) = positions(space, count) else {
            tracing::warn!(room.id = %room_id, count, "there is no place for events of the past");
            return Ok(0);
        };
        let piece = self.piece(&slot, scene, steps, space, positions).await?;
        let mut batch = history::batch(fence, piece);
        let notice = Notice::History { room_id: room_id.to_string() };
        self.users.deps.notices.tell(&mut batch, notice);
        self.pool.commit(batch).await?;
        Ok(count)
    }

    /// What is known of the events, and of all that they name; one query.
    async fn places_of_past(
        &self,
        room: RoomNid,
        pdus: &[Pdu],
        states: &HashMap<OwnedEventId, Before>,
    ) -> Result<Places> {
        let named = pdus
            .iter()
            .flat_map(|pdu| pdu.prev_events.iter().chain(&pdu.auth_events).chain([&pdu.event_id]));
        let named: BTreeSet<&str> =
            named.chain(states.values().flatten()).map(|id| id.as_str()).collect();
        let named: Vec<&str> = named.into_iter().collect();
        let mut places = graph::list_places(&self.pool, &named).await?;
        places.retain(|_, place| place.room == room);
        Ok(places)
    }

    async fn space(
        &self,
        room: RoomNid,
        steps: &[Step],
        behind: Option<Position>,
    ) -> Result<Space> {
        let depth = steps.iter().map(|step| step.pdu.depth).max().unwrap_or_default();
        let space = match behind {
            Some(pos) => history::get_space(&self.pool, room, pos, depth).await?,
            None => None,
        };
        match space {
            Some(space) => Ok(space),
            None => Ok(history::get_beginning(&self.pool, room).await?),
        }
    }

    /// All that is written of the steps, which are in order, the oldest first.
    async fn piece(
        &self,
        slot: &Slot,
        mut scene: Scene<'_>,
        steps: Vec<Step>,
        space: Space,
        positions: Vec<Position>,
    ) -> Result<Piece> {
        let room = scene.room;
        let users = self.local_keys(room).await?;
        let setting = [("m.room.history_visibility", "")];
        let setting = self.users.deps.interner.keys(&setting).await?[0];
        let around = self.around(room, setting, &users, space).await?;
        let keys: Vec<KeyNid> = users.keys().copied().chain([setting]).collect();
        let states = steps.iter().zip(&positions);
        let states = states.map(|(step, pos)| (*pos, &step.before.state, &step.after.state));
        let behind = (space.top, (&*around.keys, &around.behind));
        let noted = notes::entries(states, &keys, around.standing.as_ref(), behind);
        let (settings, entries): (Vec<Entry>, Vec<Entry>) =
            noted.into_iter().partition(|entry| entry.key == setting);
        let memberships = notes::memberships(&mut scene, &users, &entries).await?;
        let redactions = self.past_redactions(slot, &steps).await?;
        let events = steps.into_iter().zip(positions).zip(redactions);
        Ok(Piece {
            room,
            events: events.map(|((step, pos), redaction)| placed(step, pos, redaction)).collect(),
            snapshots: std::mem::take(&mut scene.made),
            settings,
            memberships,
        })
    }

    /// What counts of these keys around free positions.
    async fn around(
        &self,
        room: RoomNid,
        setting: KeyNid,
        users: &HashMap<KeyNid, UserNid>,
        space: Space,
    ) -> Result<Around> {
        let members = || users.iter().map(|(key, user)| (*key, *user));
        let keys = || users.keys().copied().chain([setting]);
        let below = match space.above {
            Above::Everything => return Ok(Around::default()),
            Above::Stream => space.top,
            Above::Told(_) => Position(space.top.0 - 1),
        };
        let (settings, pool) = ([setting], &self.pool);
        let standing = history::list_standing(pool, room, &settings, members(), below).await?;
        let Above::Told(snapshot) = space.above else {
            let behind = standing.clone();
            return Ok(Around { standing: Some(standing), keys: keys().collect(), behind });
        };
        let (wanted, snapshot): (BTreeSet<KeyNid>, _) = (keys().collect(), [snapshot]);
        let (noted, told) = futures::try_join!(
            history::list_noted(pool, room, &settings, members(), below),
            snapshots::load_entries(pool, room, &snapshot, &wanted),
        )?;
        Ok(Around {
            standing: Some(standing),
            keys: keys().filter(|key| !noted.contains(key)).collect(),
            behind: told.into_values().flatten().collect(),
        })
    }

    /// Keys of the member events of this server's users.
    async fn local_keys(&self, room: RoomNid) -> Result<HashMap<KeyNid, UserNid>> {
        let users = history::list_local_users(&self.pool, room).await?;
        let pairs: Vec<(&str, &str)> =
            users.iter().map(|(_, user)| ("m.room.member", user.as_str())).collect();
        let keys = self.users.deps.interner.known_keys(&pairs).await?;
        Ok(keys
            .into_iter()
            .zip(&users)
            .filter_map(|(key, (user, _))| Some((key?, *user)))
            .collect())
    }

    /// What each of the steps has to do with redactions.
    async fn past_redactions(
        &self,
        slot: &Slot,
        steps: &[Step],
    ) -> Result<Vec<Option<NewRedaction>>> {
        let ids: Vec<&str> = steps.iter().map(|step| step.pdu.event_id.as_str()).collect();
        let waiting = self.waiting_redactions(slot, &ids).await?;
        let targets = steps.iter().filter(|step| {
            step.redacts().is_some() || { waiting.contains_key(step.pdu.event_id.as_str()) }
        });
        let targets: Vec<&str> =
            targets.map(|step| step.redacts().unwrap_or(&step.pdu.event_id).as_str()).collect();
        let targets = events::list_by_ids(&self.pool, &targets).await?;
        let targets: HashMap<&str, &events::StoredEvent> =
            targets.iter().map(|target| (target.event_id.as_str(), &**target)).collect();
        let mut live = lock(slot).lock();
        let redactions = steps.iter().map(|step| step.redaction(&live, &waiting, &targets));
        let redactions: Vec<Option<NewRedaction>> = redactions.collect::<Result<_>>()?;
        let waits = |redaction: &Option<NewRedaction>| {
            matches!(redaction, Some(NewRedaction::Pending { .. }))
        };
        live.redactions_wait |= redactions.iter().any(waits);
        Ok(redactions)
    }
}

impl Walk<'_> {
    /// Judges an event by the state before it. `None` if it is left alone.
    async fn step(&mut self, scene: &mut Scene<'_>, mut pdu: Pdu) -> Result<Option<Step>> {
        let Some(place) = self.place(&pdu.event_id) else { return Ok(None) };
        let auth: Option<Vec<EventNid>> =
            pdu.auth_events.iter().map(|id| Some(self.place(id)?.nid)).collect();
        let (Some(auth), true) = (auth, place.flags & flags::OUTLIER != 0) else {
            return Ok(None);
        };
        (pdu.nid, pdu.key) = (place.nid, place.key);
        let Some(before) = self.before(scene, &pdu).await? else { return Ok(None) };
        pdu.rejected = place.flags & flags::REJECTED != 0;
        let was_rejected = pdu.rejected.then(|| "its auth events do not allow it".to_owned());
        let pdu = Arc::new(pdu);
        let refused = match was_rejected {
            Some(why) => Some(why),
            None => judge(scene, &pdu, &auth, &before).await?,
        };
        if let Some(why) = &refused {
            tracing::info!(event.id = %pdu.event_id, why, "an event of the past is not allowed");
        }
        let after = match pdu.key.filter(|_| refused.is_none()) {
            Some(key) => scene.follow(&before, key, pdu.nid).await?,
            None => before.clone(),
        };
        self.after.insert(pdu.nid, after.clone());
        let prev = || pdu.prev_events.iter().map(|id| (id, self.place(id)));
        let prev_ids = prev().filter_map(|(_, place)| Some(place?.nid)).collect();
        let gaps = prev().filter(|(_, place)| !place.is_some_and(|place| self.is_placed(place)));
        let gaps = gaps.map(|(id, _)| id.to_string()).collect();
        Ok(Some(Step { pdu, before, after, refused, prev_ids, gaps }))
    }

    fn place(&self, id: &OwnedEventId) -> Option<&Place> {
        self.places.get(id.as_str())
    }

    fn is_placed(&self, place: &Place) -> bool {
        place.flags & flags::OUTLIER == 0 || self.after.contains_key(&place.nid)
    }

    /// The state before an event; `None` if it is not known.
    async fn before(&self, scene: &mut Scene<'_>, pdu: &Pdu) -> Result<Option<StateAt>> {
        if pdu.prev_events.is_empty() {
            let is_first = pdu.kind == TimelineEventType::RoomCreate;
            let nothing = StateAt { state: Arc::default(), head: Default::default() };
            return Ok(is_first.then_some(nothing));
        }
        let (mut states, mut earlier) = (Vec::new(), Vec::new());
        let mut is_complete = true;
        for id in &pdu.prev_events {
            match self.place(id).filter(|place| self.is_placed(place)) {
                None => is_complete = false,
                Some(place) => match self.after.get(&place.nid) {
                    Some(after) => states.push(after.clone()),
                    None => earlier.push(after_of(place)),
                },
            }
        }
        states.extend(scene.states_after(&earlier).await?);
        if !is_complete {
            let Some(told) = self.states.get(&pdu.event_id) else { return Ok(None) };
            let told = told.iter().filter_map(|id| self.place(id));
            let allowed = told.filter(|place| place.flags & flags::REJECTED == 0);
            let told: StateMap =
                allowed.filter_map(|place| Some((place.key?, place.nid))).collect();
            states.push(scene.stand(told).await?);
        }
        Ok(Some(scene.merge(states).await?))
    }
}

impl Step {
    /// The event that this one redacts, if it may redact anything.
    fn redacts(&self) -> Option<&OwnedEventId> {
        let is_redaction = self.pdu.kind == TimelineEventType::RoomRedaction;
        self.pdu.redacts.as_ref().filter(|_| is_redaction && self.refused.is_none())
    }

    fn redaction(
        &self,
        live: &Live,
        waiting: &Waiting,
        targets: &HashMap<&str, &events::StoredEvent>,
    ) -> Result<Option<NewRedaction>> {
        let own_id = &self.pdu.event_id;
        let (target, by, sender) = match (self.redacts(), waiting.get(own_id.as_str())) {
            (Some(target), _) => (target, self.pdu.nid, self.pdu.sender.clone()),
            (None, Some((by, sender))) => {
                let sender = UserId::parse(sender).map_err(chatd_base::Error::internal)?;
                (own_id, *by, sender)
            }
            (None, None) => return Ok(None),
        };
        let Some(target) = targets.get(target.as_str()) else {
            return Ok(Some(NewRedaction::Pending { target: target.to_string() }));
        };
        let has_effect = target.room == live.room
            && !target.is_redacted()
            && may_redact(live, &sender, &target.sender);
        if !has_effect {
            return Ok(None);
        }
        let content = seal::redacted_content(&target.kind, target.content.get(), &live.rules)?;
        Ok(Some(NewRedaction::Prune { target: target.nid, content, by }))
    }
}

/// Events as the rules see them; those that have not the form of events of the room are left out.
async fn read(
    events: Vec<CanonicalJsonObject>,
    rules: &RoomVersionRules,
    room_id: &RoomId,
) -> Result<Vec<Pdu>> {
    let (rules, room_id) = (rules.clone(), room_id.to_owned());
    let read = parallel::map(events, move |event| incoming::read(event, &rules, &room_id)).await?;
    Ok(read.into_iter().filter_map(|event| Some(event.ok()?.pdu)).collect())
}

/// Why an event is not allowed, by those that it names for that or by the state before it.
async fn judge(
    scene: &mut Scene<'_>,
    pdu: &Arc<Pdu>,
    auth: &[EventNid],
    before: &StateAt,
) -> Result<Option<String>> {
    scene.pdus.insert(pdu.nid, pdu.clone());
    let state = scene.deciding(pdu, &before.state).await?;
    scene.read(auth.iter().copied()).await?;
    let auth: Vec<Arc<Pdu>> = auth.iter().filter_map(|nid| scene.pdus.get(nid).cloned()).collect();
    let in_force = |kind: &str, key: &str| state.get(&(kind.to_owned(), key.to_owned())).cloned();
    Ok(allowed(&scene.rules.authorization, pdu, &auth, in_force).err())
}

/// The state after an event that had its place before.
fn after_of(place: &Place) -> After {
    let key = place.key.filter(|_| place.flags & flags::REJECTED == 0);
    (place.snapshot, key.map(|key| (key, place.nid)))
}

fn placed(step: Step, pos: Position, redaction: Option<NewRedaction>) -> Placed {
    let content: Option<Map<String, Value>> = serde_json::from_str(step.pdu.content.get()).ok();
    let relation = content.as_ref().and_then(push::relation).filter(|_| step.refused.is_none());
    Placed {
        nid: step.pdu.nid,
        event_id: step.pdu.event_id.to_string(),
        pos,
        snapshot: step.before.head.id,
        replaces: step.pdu.key.and_then(|key| step.before.state.get(&key).copied()),
        flags: if step.refused.is_some() { flags::REJECTED } else { 0 }
            | if step.gaps.is_empty() { 0 } else { flags::BEHIND_GAP },
        prev_ids: step.prev_ids,
        gaps: step.gaps,
        relation: relation.map(|(rel_type, parent)| (parent.to_string(), rel_type.to_owned())),
        redaction,
    }
}
