//! Events that are known without having a place in a room's timeline: what another server says of
//! the state of a room, and the events that authorise it. They are judged by their auth events,
//! and what refers to them can be judged in turn.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chatd_base::{EventNid, KeyNid, Refusal, Result, RoomNid};
use chatd_storage::{
    graph::{self, Place},
    lane::flags,
    outliers::{self, NewOutlier},
};
use ruma_common::{
    CanonicalJsonObject, EventId, OwnedEventId, OwnedRoomId, RoomId,
    room_version_rules::{AuthorizationRules, RoomVersionRules},
};
use ruma_events::{StateEventType, TimelineEventType};
use ruma_state_res::check_state_independent_auth_rules;

use crate::{
    filter::has_url,
    incoming::{self, Incoming},
    owner::{RoomOwner, lock},
    parallel,
    pdu::Pdu,
    rules::check_by_state,
};

/// Rows of one transaction.
const ROWS: usize = 2_000;

/// A room whose events are taken in, which need not have a place in memory.
#[derive(Clone)]
pub(crate) struct Site {
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub rules: Arc<RoomVersionRules>,
}

/// What became of events that were to be stored.
#[derive(Debug, Default)]
pub struct Stored {
    /// Those that are known now, by id; rejected ones among them.
    pub events: HashMap<OwnedEventId, Arc<Pdu>>,
    /// Those that are not, and why: they are no events of the room, or refer to auth events that
    /// nobody has given.
    pub left_out: Vec<(Option<OwnedEventId>, String)>,
    /// Auth events that are not known.
    pub missing: BTreeSet<OwnedEventId>,
}

/// Events in the order of their auth events, judged.
#[derive(Default)]
pub(crate) struct Judged {
    /// Each with the reason for which it is rejected, if it is.
    events: Vec<(Incoming, Option<String>)>,
    left_out: Vec<(Option<OwnedEventId>, String)>,
    missing: BTreeSet<OwnedEventId>,
}

impl RoomOwner {
    /// Makes events of a live room known that have no place in its timeline. Their signatures and
    /// hashes have been checked; the order does not matter. Those that are known already stay as
    /// they are, those that are not allowed by their auth events are kept as rejected. On return
    /// they are durable.
    ///
    /// There is no state at such an event: one that names it as a predecessor has no place yet.
    pub async fn store_outliers(
        &self,
        room_id: &RoomId,
        events: Vec<CanonicalJsonObject>,
    ) -> Result<Stored> {
        let slot = self.slot(room_id).await?;
        let site = {
            let live = lock(&slot).lock();
            let rules = Arc::new(live.rules.clone());
            Site { room: live.room, room_id: room_id.to_owned(), rules }
        };
        let judged = self.judge_outliers(&site, events).await?;
        // Whatever else of the room is written meanwhile might be one of these events.
        let _alone = slot.gate.clone().write_owned().await;
        self.write_outliers(&site, judged).await
    }

    /// Brings events into the order of their auth events, and judges them by these.
    pub(crate) async fn judge_outliers(
        &self,
        site: &Site,
        events: Vec<CanonicalJsonObject>,
    ) -> Result<Judged> {
        let (rules, room_id) = (site.rules.clone(), site.room_id.clone());
        let read = parallel::map(events, move |event| incoming::read(event, &rules, &room_id));
        self.judge_incoming(site, read.await?).await
    }

    /// The same for events that have been taken apart.
    pub(crate) async fn judge_incoming(
        &self,
        site: &Site,
        events: Vec<Result<Incoming>>,
    ) -> Result<Judged> {
        let mut judged = Judged::default();
        let mut given = HashMap::new();
        for event in events {
            match event {
                Ok(event) => drop(given.insert(event.pdu.event_id.clone(), event)),
                Err(error) => judged.left_out.push((None, error.to_string())),
            }
        }
        let known = self.known_auth(site, &given).await?;
        let rules = site.rules.clone();
        parallel::apart(move || judge_all(&rules.authorization, given, known, judged)).await
    }

    /// Auth events of `given` that are in the tables.
    async fn known_auth(
        &self,
        site: &Site,
        given: &HashMap<OwnedEventId, Incoming>,
    ) -> Result<HashMap<OwnedEventId, Arc<Pdu>>> {
        let has_hash_id = site.rules.authorization.room_create_event_id_as_room_id;
        let create = has_hash_id.then(|| site.room_id.as_str().replacen('!', "$", 1));
        let named = given.values().flat_map(|event| &event.pdu.auth_events);
        let wanted: BTreeSet<&str> = named
            .filter(|id| !given.contains_key(*id))
            .map(|id| id.as_str())
            .chain(create.as_deref())
            .collect();
        let places = self.places(site, wanted.into_iter()).await?;
        let nids: Vec<EventNid> = places.values().map(|place| place.nid).collect();
        let mut known = HashMap::with_capacity(nids.len());
        for event in graph::list_events(&self.pool, &nids).await? {
            let pdu = Pdu::from_graph(event, &site.room_id, has_hash_id)
                .map_err(chatd_base::Error::internal)?;
            known.insert(pdu.event_id.clone(), Arc::new(pdu));
        }
        Ok(known)
    }

    /// Those of the events of the room that are known.
    async fn places(
        &self,
        site: &Site,
        ids: impl Iterator<Item = &str>,
    ) -> Result<HashMap<String, Place>> {
        let ids: Vec<&str> = ids.collect();
        let mut places = graph::list_places(&self.pool, &ids).await?;
        places.retain(|_, place| place.room == site.room);
        Ok(places)
    }

    /// Writes what is not known yet. Nothing else may write events of the room meanwhile.
    pub(crate) async fn write_outliers(&self, site: &Site, judged: Judged) -> Result<Stored> {
        let fence = self.owners.own(&site.room_id).await?;
        let ids = judged.events.iter().flat_map(|(event, _)| {
            event.pdu.auth_events.iter().chain([&event.pdu.event_id]).map(|id| id.as_str())
        });
        let ids: BTreeSet<&str> = ids.collect();
        let places = self.places(site, ids.into_iter()).await?;
        let numbers = self.numbers(&judged.events).await?;
        let mut stored = Stored {
            events: HashMap::with_capacity(judged.events.len()),
            left_out: judged.left_out,
            missing: judged.missing,
        };
        let mut rows = Vec::new();
        for ((event, reason), (kind, sender, key)) in judged.events.into_iter().zip(numbers) {
            let Incoming { mut pdu, sealed } = event;
            pdu.key = key;
            if let Some(place) = places.get(pdu.event_id.as_str()) {
                pdu.nid = place.nid;
                pdu.rejected = place.flags & flags::REJECTED != 0;
                stored.events.insert(pdu.event_id.clone(), Arc::new(pdu));
                continue;
            }
            pdu.nid = self.next_event().await?;
            pdu.rejected = reason.is_some();
            if let Some(reason) = reason {
                tracing::debug!(event.id = %pdu.event_id, reason, "an event is rejected");
            }
            let nid_of = |id: &OwnedEventId| {
                let new = stored.events.get(id).map(|pdu| pdu.nid);
                new.or_else(|| Some(places.get(id.as_str())?.nid))
            };
            let mut bits = flags::OUTLIER | if pdu.rejected { flags::REJECTED } else { 0 };
            bits |= if has_url(&pdu.content) { flags::HAS_URL } else { 0 };
            rows.push(NewOutlier {
                nid: pdu.nid,
                depth: pdu.depth,
                origin_ts: pdu.origin_ts,
                key,
                kind,
                sender,
                flags: bits,
                event_id: pdu.event_id.to_string(),
                auth_ids: pdu.auth_events.iter().filter_map(nid_of).collect(),
                content: sealed.content,
                rest: sealed.rest,
            });
            stored.events.insert(pdu.event_id.clone(), Arc::new(pdu));
        }
        let writer = self.users.deps.streams.writer.writer;
        for rows in rows.chunks(ROWS) {
            outliers::insert(&self.pool, site.room, writer, fence, rows).await?;
        }
        Ok(stored)
    }

    /// Numbers of the types, senders and keys of events.
    async fn numbers(
        &self,
        events: &[(Incoming, Option<String>)],
    ) -> Result<Vec<(chatd_base::TypeNid, chatd_base::UserNid, Option<KeyNid>)>> {
        let interner = &self.users.deps.interner;
        let kinds: Vec<String> =
            events.iter().map(|(event, _)| event.pdu.kind.to_string()).collect();
        let types: Vec<&str> = kinds.iter().map(String::as_str).collect();
        let senders: Vec<&str> =
            events.iter().map(|(event, _)| event.pdu.sender.as_str()).collect();
        let pairs = kinds.iter().zip(events).filter_map(|(kind, (event, _))| {
            Some((kind.as_str(), event.pdu.state_key.as_deref()?))
        });
        let pairs: Vec<(&str, &str)> = pairs.collect();
        let types = interner.types(&types).await?;
        let senders = interner.users(&senders).await?;
        let mut keys = interner.keys(&pairs).await?.into_iter();
        Ok(events
            .iter()
            .zip(types)
            .zip(senders)
            .map(|(((event, _), kind), sender)| {
                let key = event.pdu.state_key.as_ref().and_then(|_| keys.next());
                (kind, sender, key)
            })
            .collect())
    }
}

/// Sorts `given` by auth events and judges each. An event that refers to unknown ones is left out,
/// as is whatever refers to it; so are circles.
fn judge_all(
    rules: &AuthorizationRules,
    given: HashMap<OwnedEventId, Incoming>,
    known: HashMap<OwnedEventId, Arc<Pdu>>,
    mut judged: Judged,
) -> Judged {
    let mut pdus = known;
    let order = in_order(&given, &pdus, &mut judged);
    pdus.extend(given.iter().map(|(id, event)| (id.clone(), Arc::new(event.pdu.clone()))));
    let create = pdus.values().find(|pdu| pdu.kind == TimelineEventType::RoomCreate).cloned();
    let mut given = given;
    for id in order {
        let Some(event) = given.remove(&id) else { continue };
        let auth: Vec<&Arc<Pdu>> =
            event.pdu.auth_events.iter().filter_map(|id| pdus.get(id)).collect();
        let checked = check_by_auth_events(rules, &event.pdu, &auth, create.as_ref());
        let reason = checked.err();
        if reason.is_some() {
            let rejected = Pdu { rejected: true, ..event.pdu.clone() };
            pdus.insert(id, Arc::new(rejected));
        }
        judged.events.push((event, reason));
    }
    judged
}

/// The events whose auth events are all there, each after these.
fn in_order(
    given: &HashMap<OwnedEventId, Incoming>,
    known: &HashMap<OwnedEventId, Arc<Pdu>>,
    judged: &mut Judged,
) -> Vec<OwnedEventId> {
    let mut waits: HashMap<&EventId, usize> = HashMap::with_capacity(given.len());
    let mut followers: HashMap<&EventId, Vec<&OwnedEventId>> = HashMap::new();
    let mut ready: Vec<&OwnedEventId> = Vec::new();
    for (id, event) in given {
        let unknown: BTreeSet<&OwnedEventId> =
            event.pdu.auth_events.iter().filter(|auth| !known.contains_key(*auth)).collect();
        if unknown.is_empty() {
            ready.push(id);
        }
        judged
            .missing
            .extend(unknown.iter().filter(|id| !given.contains_key(**id)).copied().cloned());
        waits.insert(id, unknown.len());
        for auth in unknown {
            followers.entry(auth).or_default().push(id);
        }
    }
    let mut order = Vec::with_capacity(given.len());
    while let Some(id) = ready.pop() {
        order.push(id.clone());
        waits.remove(&**id);
        for follower in followers.get(&**id).into_iter().flatten() {
            if let Some(left) = waits.get_mut(&***follower) {
                *left -= 1;
                if *left == 0 {
                    ready.push(follower);
                }
            }
        }
    }
    let stuck = waits
        .into_keys()
        .map(|id| (Some(id.to_owned()), "it refers to auth events that are not known".to_owned()));
    judged.left_out.extend(stuck);
    order
}

/// Whether an event is allowed by the events that it names for that.
pub(crate) fn check_by_auth_events(
    rules: &AuthorizationRules,
    pdu: &Pdu,
    auth: &[&Arc<Pdu>],
    create: Option<&Arc<Pdu>>,
) -> Result<(), String> {
    let all = || auth.iter().copied().chain(create);
    check_state_independent_auth_rules(rules, pdu, |id: &EventId| {
        all().find(|auth| *auth.event_id == *id).cloned()
    })?;
    // In rooms whose id is the create event's, nothing has to name it.
    let has_hash_id = rules.room_create_event_id_as_room_id;
    check_by_state(rules, pdu, |kind: &StateEventType, key: &str| {
        let named = auth.iter().copied().find(|auth| {
            auth.kind.to_string() == kind.to_string() && auth.state_key.as_deref() == Some(key)
        });
        let create = create.filter(|_| *kind == StateEventType::RoomCreate && has_hash_id);
        named.or(create).cloned()
    })
}

impl Stored {
    /// Refuses if an event with that id is not there, or rejected.
    pub fn accepted(&self, id: &EventId) -> Result<&Arc<Pdu>, Refusal> {
        match self.events.get(id) {
            Some(pdu) if !pdu.rejected => Ok(pdu),
            Some(_) => Err(Refusal::forbidden(format!("the event {id} is not allowed"))),
            None => Err(Refusal::bad_json(format!("the event {id} is missing"))),
        }
    }
}
