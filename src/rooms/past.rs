//! Events from before this server came into a room, when somebody wants to read them. They are
//! known as outliers by then; here they are judged by the state before them, and get their place
//! below all that has come since. Nothing of that concerns the room as it is now: neither its
//! state nor its newest events, no sync and nobody's counts.
//!
//! The state before the oldest of them is what another server tells; from there on it follows
//! from the events themselves, and is resolved where branches meet.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chatd_base::{EventNid, KeyNid, Position, Result, RoomNid, UserNid};
use chatd_storage::{
    events,
    graph::{self, Place},
    history::{self, PastMembership, Piece, Placed},
    lane::{NewRedaction, flags},
    notices::Notice,
    snapshots::StateMap,
};
use chatd_streams::events::Membership;
use ruma_common::{
    CanonicalJsonObject, OwnedEventId, RoomId, UserId, room_version_rules::RoomVersionRules,
};
use ruma_events::TimelineEventType;
use serde_json::{Map, Value};

use crate::{
    import::membership_of,
    incoming,
    judge::{allowed, may_redact},
    live::Live,
    owner::{RoomOwner, Slot, lock},
    parallel,
    pdu::Pdu,
    place::{After, Scene, StateAt},
    push,
    receive::{Before, Places, current},
    seal,
};

/// Positions of one event: its own, and the one below.
const STRIDE: i64 = 2;

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

/// Events of the past, with what is known of those that they name.
struct Walk<'a> {
    places: &'a Places,
    states: &'a HashMap<OwnedEventId, Before>,
    /// Of events that have got their place in this walk.
    after: HashMap<EventNid, StateAt>,
}

impl RoomOwner {
    /// Gives events their place before all others of the room. Each comes after those of its
    /// predecessors that are among them; all are known at least as outliers. `states` has the
    /// state before those that have a predecessor without a place. An event without that, or of
    /// which an auth event is not known, is left alone. On return the others are durable; how many
    /// there are.
    pub async fn place_past(
        &self,
        room_id: &RoomId,
        events: Vec<CanonicalJsonObject>,
        states: &HashMap<OwnedEventId, Before>,
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
        let mut walk = Walk { places: &places, states, after: HashMap::new() };
        let mut steps = Vec::with_capacity(pdus.len());
        for pdu in pdus {
            steps.extend(walk.step(&mut scene, pdu).await?);
        }
        if steps.is_empty() {
            return Ok(0);
        }
        let count = steps.len();
        let piece = self.piece(&slot, scene, steps).await?;
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

    /// All that is written of the steps, which are in order, the oldest first.
    async fn piece(&self, slot: &Slot, mut scene: Scene<'_>, steps: Vec<Step>) -> Result<Piece> {
        let room = scene.room;
        let beginning = history::get_beginning(&self.pool, room).await?.0;
        let positions = (1..).map(|n| Position(beginning - STRIDE * n));
        let mut positions: Vec<Position> = positions.take(steps.len()).collect();
        positions.reverse();
        let users = self.local_keys(room).await?;
        let setting = [("m.room.history_visibility", "")];
        let setting = self.users.deps.interner.keys(&setting).await?[0];
        let keys: Vec<KeyNid> = users.keys().copied().chain([setting]).collect();
        let states = steps.iter().zip(&positions);
        let states = states.map(|(step, pos)| (*pos, &step.before.state, &step.after.state));
        let (settings, entries): (Vec<Entry>, Vec<Entry>) =
            entries(states, &keys).into_iter().partition(|(_, key, _)| *key == setting);
        let floor = positions.first().map_or(Position(0), |first| Position(first.0 - 1));
        let memberships = memberships(&mut scene, &users, &entries, floor).await?;
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
        let room = lock(slot).lock().room;
        let waiting = graph::list_pending_redactions(&self.pool, room, &ids).await?;
        let targets = steps.iter().filter(|step| {
            step.redacts().is_some() || { waiting.contains_key(step.pdu.event_id.as_str()) }
        });
        let targets: Vec<&str> =
            targets.map(|step| step.redacts().unwrap_or(&step.pdu.event_id).as_str()).collect();
        let targets = events::list_by_ids(&self.pool, &targets).await?;
        let targets: HashMap<&str, &events::StoredEvent> =
            targets.iter().map(|target| (target.event_id.as_str(), &**target)).collect();
        let live = lock(slot).lock();
        steps.iter().map(|step| step.redaction(&live, &waiting, &targets)).collect()
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
        waiting: &HashMap<String, (EventNid, String)>,
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
        flags: if step.refused.is_some() { flags::REJECTED } else { 0 },
        prev_ids: step.prev_ids,
        gaps: step.gaps,
        relation: relation.map(|(rel_type, parent)| (parent.to_owned(), rel_type.to_owned())),
        redaction,
    }
}

/// An entry of the state from a position on.
type Entry = (Position, KeyNid, Option<EventNid>);

/// Where the entries with these keys change. What an event changes counts from its position on;
/// what the one before it does not explain, from the position below.
fn entries<'a>(
    states: impl Iterator<Item = (Position, &'a Arc<StateMap>, &'a Arc<StateMap>)>,
    keys: &[KeyNid],
) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut last: Option<&Arc<StateMap>> = None;
    for (pos, before, after) in states {
        let below = Position(pos.0 - 1);
        if !last.is_some_and(|last| Arc::ptr_eq(last, before)) {
            let differs = |key: &&KeyNid| last.is_none_or(|last| last.get(key) != before.get(key));
            let changed = keys.iter().filter(differs);
            entries.extend(changed.map(|key| (below, *key, before.get(key).copied())));
        }
        if !Arc::ptr_eq(before, after) {
            let changed = keys.iter().filter(|key| before.get(key) != after.get(key));
            entries.extend(changed.map(|key| (pos, *key, after.get(key).copied())));
        }
        last = Some(after);
    }
    entries
}

/// What users of this server were, as their entries say.
async fn memberships(
    scene: &mut Scene<'_>,
    users: &HashMap<KeyNid, UserNid>,
    entries: &[Entry],
    floor: Position,
) -> Result<Vec<PastMembership>> {
    scene.read(entries.iter().filter_map(|(.., event)| *event)).await?;
    let one = |(pos, key, event): &Entry| {
        let pdu = event.and_then(|event| scene.pdus.get(&event));
        let membership = pdu.and_then(|pdu| membership_of(pdu));
        // Who has no entry at the beginning has had nothing to do with the room.
        if membership.is_none() && *pos == floor {
            return None;
        }
        Some(PastMembership {
            user: *users.get(key)?,
            pos: *pos,
            membership: membership.unwrap_or(Membership::Leave).letter(),
            event: event.unwrap_or_default(),
        })
    };
    Ok(entries.iter().filter_map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(entries: &[(i64, i64)]) -> Arc<StateMap> {
        Arc::new(entries.iter().map(|(key, event)| (KeyNid(*key), EventNid(*event))).collect())
    }

    #[test]
    fn entries_are_noted_where_they_change() {
        let (first, second, other) = (state(&[(1, 10), (2, 20)]), state(&[(1, 11)]), state(&[]));
        let states = [
            (Position(-8), &first, &first),
            (Position(-6), &first, &second),
            (Position(-4), &second, &second),
            (Position(-2), &other, &first),
        ];
        let noted = entries(states.into_iter(), &[KeyNid(1), KeyNid(3)]);
        let noted: Vec<(i64, i64, Option<i64>)> =
            noted.into_iter().map(|(pos, key, event)| (pos.0, key.0, event.map(|e| e.0))).collect();
        let expected =
            [(-9, 1, Some(10)), (-9, 3, None), (-6, 1, Some(11)), (-3, 1, None), (-2, 1, Some(10))];
        assert_eq!(noted, expected);
    }
}
