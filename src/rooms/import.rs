//! A room of other servers that a user of this one joins: the state that another server tells
//! becomes the state of the room here, and the join its newest event.
//!
//! State and auth chain are stored as outliers, in transactions of their own. The rows of a room
//! that this server has not been in are written before it has heads, so that nobody sees them; then
//! the join goes over the lane and makes the room visible at its position. Each step can be made
//! again: a crash in between leaves events that nobody refers to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{Error, EventNid, KeyNid, Position, Refusal, Result, UserNid};
use chatd_storage::{
    graph::{self, Place},
    import,
    lane::flags,
    partial::{Omitted, Rebase},
    rooms::{self, RoomRow},
    snapshots::{self, SnapshotHead, StateMap},
};
use chatd_streams::events::Membership;
use ruma_common::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId, RoomId, RoomVersionId, ServerName, UserId,
};
use ruma_events::TimelineEventType;
use serde_json::{Map, Value};

use crate::{
    compose::Prepared,
    effect::{self, Change, Effect},
    incoming::{self, Incoming},
    live::{Head, Live},
    outliers::{Site, Stored, check_by_auth_events},
    owner::{Hold, RoomOwner, Sent, Settled, Slot, UNSETTLED, away, lock, settle},
    pdu::Pdu,
    place::{Scene, StateAt},
    receive::{Before, Verdict},
    rules::check_by_state,
    seal::{Draft, Route},
};

/// One event in so many of a state may be none that is believed: those of servers that are gone,
/// for instance, whose keys nobody has.
const LACKING_ONE_IN: usize = 20;

/// What another server has told of a room that a user of this one joins. Signatures and hashes have
/// been checked.
#[derive(Clone, Debug)]
pub struct Import {
    pub room_id: OwnedRoomId,
    pub version: RoomVersionId,
    /// The event that makes the user a member.
    pub event: CanonicalJsonObject,
    /// The state before it.
    pub state: Vec<Incoming>,
    /// What authorises that.
    pub auth_chain: Vec<Incoming>,
    /// The servers in the room, the one that tells of it in front, if it has left out members.
    pub omitted: Option<Vec<String>>,
}

/// The state before the join, by number.
pub(crate) struct Told {
    pub state: Arc<StateMap>,
    pub pdus: HashMap<EventNid, Arc<Pdu>>,
    /// What else was told, where members were left out: memberships that authorise something.
    others: HashMap<EventNid, Arc<Pdu>>,
}

impl RoomOwner {
    /// Takes in a room, or takes it up again. On return the join is durable. Refuses what is no
    /// state of that room, or none that allows the join. One import of a room at a time.
    pub async fn import(&self, import: Import) -> Result<Sent> {
        let room_id = import.room_id.clone();
        let _one = self.importing.of(&room_id).await;
        let rules = import.version.rules().ok_or_else(|| {
            Refusal::unsupported_room_version(format!("room version {}", import.version))
        })?;
        let room = self.known_room(&room_id, &import.version).await?;
        let site = Site { room: room.nid, room_id, rules: Arc::new(rules) };
        let object = import.event.clone();
        let event = incoming::read(import.event, &site.rules, &site.room_id)?;
        let Import { version, state, auth_chain, omitted, .. } = import;
        let told = self.take_in(&site, &version, state, auth_chain, omitted.is_some()).await?;
        self.check_join(&site, &event, &told).await?;
        if room.heads.is_empty() {
            self.found(&site, &version, room, event, told, omitted).await
        } else if self.is_in(&site.room_id).await? {
            self.take_along(&site, object, &told).await
        } else if omitted.is_some() {
            Err(away("somebody else has been in the room meanwhile").into())
        } else {
            self.take_up(&site, event, told).await
        }
    }

    /// Adds the join to a room that somebody else here has joined meanwhile: what was told is the
    /// state before it, and no more.
    async fn take_along(
        &self,
        site: &Site,
        event: CanonicalJsonObject,
        told: &Told,
    ) -> Result<Sent> {
        let before: Before = told.pdus.values().map(|pdu| pdu.event_id.clone()).collect();
        let received = self.receive_at(&site.room_id, event, &before).await?;
        match received.verdict {
            Verdict::Known if !self.is_accepted(&site.room_id, &received.event_id).await? => {
                Err(Refusal::forbidden("the room has not allowed it before").into())
            }
            Verdict::Accepted | Verdict::Known => {
                Ok(Sent { event_id: received.event_id, position: received.position })
            }
            Verdict::SoftFailed(why) | Verdict::Rejected(why) => {
                Err(Refusal::forbidden(why).into())
            }
            Verdict::Missing(_) => {
                Err(Refusal::bad_json("the join refers to events that nobody has told").into())
            }
        }
    }

    /// The row of a room, which is made if there is none. Refuses if it has another version.
    pub(crate) async fn known_room(
        &self,
        room_id: &RoomId,
        version: &RoomVersionId,
    ) -> Result<RoomRow> {
        if rooms::get(&self.pool, room_id.as_str()).await?.is_none() {
            let room = self.next_room().await?;
            let (id, version, now) = (room_id.as_str(), version.as_str(), self.now_ms());
            let notices = &self.users.deps.notices;
            import::insert_room(&self.pool, notices, room, id, version, UserNid(0), now).await?;
        }
        let row = rooms::get(&self.pool, room_id.as_str()).await?;
        let row = row.ok_or_else(|| Error::internal("a room has gone"))?;
        if row.version != version.as_str() && !row.heads.is_empty() {
            let message = format!("the room has the version {}, not {version}", row.version);
            return Err(Refusal::bad_json(message).into());
        }
        Ok(row)
    }

    /// Stores state and auth chain; the state, without what is not allowed.
    pub(crate) async fn take_in(
        &self,
        site: &Site,
        version: &RoomVersionId,
        state: Vec<Incoming>,
        auth_chain: Vec<Incoming>,
        has_others: bool,
    ) -> Result<Told> {
        let ids: Vec<OwnedEventId> = state.iter().map(|event| event.pdu.event_id.clone()).collect();
        let events = state.into_iter().chain(auth_chain).map(Ok).collect();
        let judged = self.judge_incoming(site, events).await?;
        let stored = {
            // In a room that is live, what is written meanwhile might be one of these events.
            let _alone = match self.alone(&site.room_id).await {
                Ok(alone) => Some(alone),
                Err(error) if error.errcode() == Some("M_FORBIDDEN") => None,
                Err(error) => return Err(error),
            };
            self.write_outliers(site, judged).await?
        };
        for (event, why) in &stored.left_out {
            tracing::debug!(room.id = %site.room_id, event.id = ?event, why, "an event is left out");
        }
        let mut told = told(version, &ids, &stored)?;
        if has_others {
            told.add_others(&stored);
        }
        Ok(told)
    }

    /// The state that stored events are, without what is not allowed.
    pub(crate) async fn stored_state(
        &self,
        site: &Site,
        version: &RoomVersionId,
        ids: &[OwnedEventId],
    ) -> Result<Told> {
        let names: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
        let places = graph::list_places(&self.pool, &names).await?;
        let of_room = places.values().filter(|place| place.room == site.room);
        let nids: Vec<EventNid> = of_room.map(|place| place.nid).collect();
        let lacks = ids.len().saturating_sub(nids.len());
        if lacks > ids.len() / LACKING_ONE_IN {
            return Err(wrong(&format!("lacks {lacks} events of its state")).into());
        }
        let has_hash_id = site.rules.authorization.room_create_event_id_as_room_id;
        let mut stored = Stored::default();
        for event in graph::list_events(&self.pool, &nids).await? {
            let pdu =
                Pdu::from_graph(event, &site.room_id, has_hash_id).map_err(Error::internal)?;
            stored.events.insert(pdu.event_id.clone(), Arc::new(pdu));
        }
        told(version, ids, &stored)
    }

    /// Refuses a join that its auth events or the state do not allow.
    async fn check_join(&self, site: &Site, event: &Incoming, told: &Told) -> Result<()> {
        let rules = &site.rules.authorization;
        let pdu = &event.pdu;
        let by_id: HashMap<&OwnedEventId, &Arc<Pdu>> =
            told.all().map(|pdu| (&pdu.event_id, pdu)).collect();
        let auth: Vec<&Arc<Pdu>> =
            pdu.auth_events.iter().filter_map(|id| by_id.get(id).copied()).collect();
        if auth.len() < pdu.auth_events.len() {
            return Err(Refusal::bad_json(
                "the event that joins refers to authorisation that is not in the state",
            )
            .into());
        }
        let named = |kind: &str, key: &str| {
            let is_it = |pdu: &&Arc<Pdu>| {
                pdu.state_key.as_deref() == Some(key) && pdu.kind.to_string() == kind
            };
            let in_state = told.pdus.values().find(is_it);
            // The membership may have been left out of the state.
            let of_auth = told.others.values().filter(|pdu| event.names(&pdu.event_id)).find(is_it);
            in_state.or(of_auth).cloned()
        };
        let create = named("m.room.create", "");
        check_by_auth_events(rules, pdu, &auth, create.as_ref())
            .and_then(|()| check_by_state(rules, pdu, |kind, key| named(&kind.to_string(), key)))
            .map_err(|why| Refusal::forbidden(format!("the room does not allow it: {why}")))?;
        Ok(())
    }

    /// Makes a room visible that this server has not been in.
    async fn found(
        &self,
        site: &Site,
        version: &RoomVersionId,
        row: RoomRow,
        event: Incoming,
        told: Told,
        omitted: Option<Vec<String>>,
    ) -> Result<Sent> {
        let fence = self.owners.own(&site.room_id).await?;
        let snapshot = self.next_snapshot().await?;
        let whole = || (*told.state).clone();
        let (new, head) =
            snapshots::next(site.room, snapshot, &SnapshotHead::default(), &[], whole);
        let omitted = omitted.map(|servers| Omitted {
            joined: event.pdu.event_id.to_string(),
            prev: event.pdu.prev_events.iter().map(ToString::to_string).collect(),
            servers,
            added_ts: self.now_ms(),
        });
        let first =
            import::FirstState { omitted, ..self.first_state(site, version, new, &told).await? };
        import::write(&self.pool, fence, first).await?;
        let row = RoomRow { version: version.to_string(), state: head.id, ..row };
        let live = Live::read(&self.pool, &site.room_id, row, fence).await?;
        let slot = Arc::new(Slot::with(live));
        let alone = Hold::Alone(slot.gate.clone().write_owned().await);
        let locals = self.changed_locals(site, &event.pdu, &told).await?;
        let before = StateAt { state: told.state.clone(), head };
        self.put_join(&slot, alone, site, event, told, before, (Vec::new(), locals)).await
    }

    /// Rows of the room before the join.
    async fn first_state(
        &self,
        site: &Site,
        version: &RoomVersionId,
        snapshot: snapshots::NewSnapshot,
        told: &Told,
    ) -> Result<import::FirstState> {
        let interner = &self.users.deps.interner;
        let create = told.pdus.values().find(|pdu| pdu.kind == TimelineEventType::RoomCreate);
        let creator = create.map_or("", |pdu| pdu.sender.as_str());
        Ok(import::FirstState {
            room: site.room,
            version: version.to_string(),
            creator: interner.user(creator).await?,
            snapshot,
            state: told.state.iter().map(|(key, event)| (*key, *event)).collect(),
            members: self.remote_members(told).await?,
            omitted: None,
        })
    }

    /// The members of other servers.
    pub(crate) async fn remote_members(&self, told: &Told) -> Result<Vec<import::RemoteMember>> {
        let interner = &self.users.deps.interner;
        let remote: Vec<(&Arc<Pdu>, Membership)> = self.remote(told).collect();
        let users: Vec<&str> =
            remote.iter().filter_map(|(pdu, _)| pdu.state_key.as_deref()).collect();
        let senders: Vec<&str> = remote.iter().map(|(pdu, _)| pdu.sender.as_str()).collect();
        let users = interner.users(&users).await?;
        let senders = interner.users(&senders).await?;
        let members = remote.iter().zip(users).zip(senders);
        Ok(members
            .map(|(((pdu, membership), user), by)| {
                let membership = membership.letter();
                import::RemoteMember { user, membership, sender: by, event: pdu.nid }
            })
            .collect())
    }

    /// Memberships of users of other servers.
    pub(crate) fn remote<'a>(
        &'a self,
        told: &'a Told,
    ) -> impl Iterator<Item = (&'a Arc<Pdu>, Membership)> {
        let members = told.pdus.values().filter_map(|pdu| Some((pdu, membership_of(pdu)?)));
        members.filter(|(pdu, _)| !is_of(pdu, &self.signer.server_name))
    }

    /// Memberships of other users of this server that are not what the tables say: they become
    /// known together with the join.
    async fn changed_locals(&self, site: &Site, join: &Pdu, told: &Told) -> Result<Vec<Change>> {
        let known: HashMap<String, EventNid> = import::list_local(&self.pool, site.room)
            .await?
            .into_iter()
            .map(|(user, _, event)| (user, event))
            .collect();
        let here = &self.signer.server_name;
        let changed = told.pdus.values().filter(|pdu| {
            let user = pdu.state_key.as_deref().unwrap_or_default();
            membership_of(pdu).is_some()
                && is_of(pdu, here)
                && join.state_key.as_deref() != Some(user)
                && known.get(user) != Some(&pdu.nid)
        });
        let mut changes: Vec<Change> = changed
            .filter_map(|pdu| {
                Some(Change {
                    key: pdu.key?,
                    before: None,
                    now: Some(pdu.clone()),
                    old: None,
                    user: None,
                    sender: UserNid(0),
                })
            })
            .collect();
        self.name_users(&mut changes).await?;
        Ok(changes)
    }

    /// Goes on with a room in which this server has been before: what it knew of the state is
    /// replaced by what it has been told.
    async fn take_up(&self, site: &Site, event: Incoming, told: Told) -> Result<Sent> {
        let (slot, alone) = self.alone(&site.room_id).await?;
        let snapshot = self.next_snapshot().await?;
        let whole = || (*told.state).clone();
        let (new, head) =
            snapshots::next(site.room, snapshot, &SnapshotHead::default(), &[], whole);
        let before = StateAt { state: told.state.clone(), head };
        self.put_join(&slot, alone, site, event, told, before, (vec![new], Vec::new())).await
    }

    /// Puts the join on the lane, behind the state that was told.
    #[expect(clippy::too_many_arguments, reason = "one event, and all that is known of its place")]
    async fn put_join(
        &self,
        slot: &Arc<Slot>,
        alone: Hold,
        site: &Site,
        event: Incoming,
        told: Told,
        before: StateAt,
        (snapshots, locals): (Vec<snapshots::NewSnapshot>, Vec<Change>),
    ) -> Result<Sent> {
        let Incoming { mut pdu, sealed } = event;
        let draft = draft_of(&pdu)?;
        let mut with = self.prepare(slot, &draft, None).await?;
        let mut named: Vec<&str> = pdu.prev_events.iter().map(|id| id.as_str()).collect();
        named.push(pdu.event_id.as_str());
        let places = graph::list_places(&self.pool, &named).await?;
        if let Some(place) = places.get(pdu.event_id.as_str()) {
            if place.flags & flags::OUTLIER == 0 {
                return Ok(Sent { event_id: pdu.event_id, position: Position(0) });
            }
            with.nid = place.nid;
        }
        (pdu.nid, pdu.key) = (with.nid, with.key);
        let pdu = Arc::new(pdu);
        let effect = self
            .effect_of_join(slot, site, &pdu, &with, sealed.hash.clone(), told, before, locals)
            .await?;
        let mut effect = effect;
        let is_taken_up = !snapshots.is_empty();
        effect.snapshots.splice(0..0, snapshots);
        if lock(slot).lock().is_partial {
            // Nobody has stayed until the members were known; now all of them have been told.
            effect.rebase = is_taken_up.then(Rebase::default);
        }
        let prev = || pdu.prev_events.iter().map(|id| (id, places.get(id.as_str())));
        effect.prev_ids = prev().filter_map(|(_, place)| Some(place?.nid)).collect();
        let has_place = |place: &Place| place.flags & flags::OUTLIER == 0;
        let gaps = prev().filter(|(_, place)| !place.is_some_and(has_place));
        effect.gaps = Some(gaps.map(|(id, _)| id.to_string()).collect());
        let permit = self.reserve(true).await?;
        let waits = {
            let mut live = lock(slot).lock();
            let event = effect::apply(&mut live, &self.signer, &draft, &with, pdu, sealed, effect)?;
            slot.enqueue(permit, &live, vec![event], alone)
        };
        let settled = settle(waits).await;
        // Its memory holds more of the state than it needs to: whoever comes next loads it.
        slot.kill();
        match settled? {
            Settled::Sent(sent) => Ok(sent),
            Settled::Again => Err(away(UNSETTLED).into()),
            Settled::Moved => {
                self.owners.refresh().await?;
                Err(Refusal::not_owner(String::new()).into())
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one event, and all that is known of its place")]
    async fn effect_of_join(
        &self,
        slot: &Slot,
        site: &Site,
        pdu: &Arc<Pdu>,
        with: &Prepared,
        hash: Option<String>,
        told: Told,
        before: StateAt,
        locals: Vec<Change>,
    ) -> Result<Effect> {
        let ids: HashMap<&OwnedEventId, EventNid> =
            told.all().map(|pdu| (&pdu.event_id, pdu.nid)).collect();
        let auth_ids: Vec<EventNid> =
            pdu.auth_events.iter().filter_map(|id| ids.get(id).copied()).collect();
        let room = (site.room, site.room_id.clone());
        let mut scene =
            Scene::new(self, room, (*site.rules).clone(), pdu, auth_ids.clone(), before.clone());
        scene.pdus.extend(told.others);
        scene.pdus.extend(told.pdus);
        let key = with.key.ok_or_else(|| Refusal::bad_json("the join is no state event"))?;
        let after = scene.follow(&before, key, with.nid).await?;
        let mut changes = self.changes(slot, &mut scene, with, &after.state).await?;
        let changed: HashSet<KeyNid> = changes.iter().map(|change| change.key).collect();
        changes.extend(locals.into_iter().filter(|change| !changed.contains(&change.key)));
        Ok(Effect {
            flags: 0,
            prev_ids: Vec::new(),
            auth_ids,
            before: before.head.id,
            snapshots: std::mem::take(&mut scene.made),
            heads: vec![Head {
                nid: with.nid,
                event_id: pdu.event_id.clone(),
                depth: pdu.depth,
                hash,
                snapshot: after.head.id,
            }],
            snapshot: after.head,
            changes,
            redaction: None,
            gaps: None,
            rebase: None,
        })
    }
}

impl Told {
    /// Everything that may authorise something.
    fn all(&self) -> impl Iterator<Item = &Arc<Pdu>> {
        self.pdus.values().chain(self.others.values())
    }

    fn add_others(&mut self, stored: &Stored) {
        let is_other = |pdu: &&Arc<Pdu>| {
            pdu.kind == TimelineEventType::RoomMember
                && !pdu.rejected
                && !self.pdus.contains_key(&pdu.nid)
        };
        let others = stored.events.values().filter(is_other);
        self.others = others.map(|pdu| (pdu.nid, pdu.clone())).collect();
    }
}

/// The state that the events with these ids are; refuses what is none of a room of that version.
fn told(version: &RoomVersionId, ids: &[OwnedEventId], stored: &Stored) -> Result<Told> {
    let mut names = BTreeSet::new();
    let mut state = StateMap::new();
    let mut pdus = HashMap::new();
    let mut create = None;
    for pdu in ids.iter().filter_map(|id| stored.events.get(id)) {
        let (Some(key), Some(state_key)) = (pdu.key, &pdu.state_key) else {
            return Err(wrong("has an event in its state that is none").into());
        };
        if !names.insert((pdu.kind.to_string(), state_key.clone())) {
            return Err(wrong("has two events for one entry of its state").into());
        }
        if pdu.rejected {
            tracing::debug!(event.id = %pdu.event_id, "an entry of the state is not allowed");
            continue;
        }
        if pdu.kind == TimelineEventType::RoomCreate && state_key.is_empty() {
            create = Some(pdu.clone());
        }
        state.insert(key, pdu.nid);
        pdus.insert(pdu.nid, pdu.clone());
    }
    let create = create.ok_or_else(|| wrong("has no event that makes the room"))?;
    let says = create.content_str("room_version").unwrap_or_else(|| "1".to_owned());
    if says != version.as_str() {
        return Err(wrong(&format!("has the version {says}, not {version}")).into());
    }
    Ok(Told { state: Arc::new(state), pdus, others: HashMap::new() })
}

fn wrong(what: &str) -> Refusal {
    Refusal::bad_json(format!("the room that was told {what}"))
}

pub(crate) fn membership_of(pdu: &Pdu) -> Option<Membership> {
    let is_member = pdu.kind == TimelineEventType::RoomMember
        && UserId::parse(pdu.state_key.as_deref()?).is_ok();
    Membership::from_word(&pdu.content_str("membership").filter(|_| is_member)?)
}

/// Whether a membership is that of a user of `server`.
fn is_of(pdu: &Pdu, server: &ServerName) -> bool {
    let user = pdu.state_key.as_deref().and_then(|user| UserId::parse(user).ok());
    user.is_some_and(|user| user.server_name() == server)
}

/// The event as a draft says it.
pub(crate) fn draft_of(pdu: &Pdu) -> Result<Draft> {
    let content: Map<String, Value> =
        serde_json::from_str(pdu.content.get()).map_err(Error::internal)?;
    Ok(Draft {
        sender: pdu.sender.clone(),
        kind: pdu.kind.to_string(),
        state_key: pdu.state_key.clone(),
        content,
        redacts: pdu.redacts.clone(),
        origin_ts: Some(pdu.origin_ts),
        txn: None,
        key: None,
        // The server that was joined by sends it.
        route: Route::Received,
        is_bulk: true,
    })
}

/// Rooms that are being imported, each by one caller at a time.
#[derive(Default)]
pub(crate) struct Importing(parking_lot::Mutex<BTreeMap<OwnedRoomId, Arc<tokio::sync::Mutex<()>>>>);

impl Importing {
    /// Waits for the turn.
    pub async fn of(&self, room_id: &RoomId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut rooms = self.0.lock();
            rooms.retain(|_, turn| Arc::strong_count(turn) > 1);
            rooms.entry(room_id.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}
