//! Events that come from elsewhere with predecessors of their own. The owner gives them their
//! place, judges them (spec: checks performed on receipt of a PDU, steps 4 to 6), resolves the
//! state where branches meet, and appends them through the same lane as its own.
//!
//! Such an event has the room for itself: nothing of the room is on the lane meanwhile, so the
//! tables say all there is to say about the graph.

use std::{collections::HashSet, sync::Arc};

use chatd_base::{EventNid, KeyNid, Position, Refusal, Result, UserNid};
use chatd_storage::{
    graph::{self, Place},
    lane::{NewRedaction, flags},
    snapshots::StateMap,
};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, RoomId, UserId,
    room_version_rules::RoomVersionRules,
};
use ruma_events::{StateEventType, TimelineEventType};
use ruma_state_res::{
    check_pdu_format, check_state_dependent_auth_rules, check_state_independent_auth_rules,
    events::RoomPowerLevelsIntField,
};
use serde_json::value::RawValue;

use crate::{
    compose::{Prepared, authorise},
    effect::{self, Change, Effect},
    live::{Head, Live},
    owner::{Hold, RoomOwner, Settled, Slot, lock, settle},
    pdu::Pdu,
    place::{After, Scene, StateAt, difference},
    seal::{self, Draft, Route, SealedJson},
};

/// What became of an event that came from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Part of the room.
    Accepted,
    /// Allowed where it stands, but not in the room as it is now: kept, and shown to nobody.
    SoftFailed(String),
    /// Not allowed: kept, so that what refers to it can be judged.
    Rejected(String),
    /// It was there before.
    Known,
    /// These events, to which it refers, have to be received first.
    Missing(Vec<OwnedEventId>),
}

/// An event that was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub event_id: OwnedEventId,
    pub verdict: Verdict,
    /// 0 unless it was written.
    pub position: Position,
}

impl RoomOwner {
    /// Appends an event with the predecessors that it names. Its signatures and hashes have been
    /// checked. On return it is durable (R1), unless it is known or refers to missing events.
    pub async fn receive(&self, room_id: &RoomId, event: CanonicalJsonObject) -> Result<Received> {
        self.receive_as(room_id, event, Route::Received).await
    }

    /// As [`RoomOwner::receive`], for an event that this server may have to send to the others in
    /// the room.
    pub async fn receive_as(
        &self,
        room_id: &RoomId,
        event: CanonicalJsonObject,
        route: Route,
    ) -> Result<Received> {
        loop {
            let slot = self.slot(room_id).await?;
            let alone = Hold::Alone(slot.gate.clone().write_owned().await);
            if slot.is_dead() {
                continue;
            }
            let event = event.clone();
            if let Some(received) = self.receive_in(&slot, alone, room_id, event, route).await? {
                return Ok(received);
            }
        }
    }

    /// `None` if the room has to be loaded again.
    async fn receive_in(
        &self,
        slot: &Arc<Slot>,
        alone: Hold,
        room_id: &RoomId,
        event: CanonicalJsonObject,
        route: Route,
    ) -> Result<Option<Received>> {
        let (room, rules, heads) = {
            let live = lock(slot).lock();
            (live.room, live.rules.clone(), live.heads.clone())
        };
        check_pdu_format(&event, &rules.event_format).map_err(Refusal::bad_json)?;
        let draft = Draft { route, ..draft_of(&event, &rules)? };
        let with = self.prepare(slot, &draft, None).await?;
        let (sealed, pdu) = parse(event, &rules, room_id, &draft, &with)?;
        let event_id = pdu.event_id.clone();
        let done = |verdict, position| {
            Ok(Some(Received { event_id: event_id.clone(), verdict, position }))
        };

        let named = pdu.prev_events.iter().chain(&pdu.auth_events).chain([&pdu.event_id]);
        let named: Vec<&str> = named.map(|id| id.as_str()).collect();
        let mut places = graph::list_places(&self.pool, &named).await?;
        places.retain(|_, place| place.room == room);
        if places.contains_key(pdu.event_id.as_str()) {
            return done(Verdict::Known, Position(0));
        }
        let is_missing = |id: &&OwnedEventId| !places.contains_key(id.as_str());
        let missing: Vec<OwnedEventId> =
            pdu.prev_events.iter().chain(&pdu.auth_events).filter(is_missing).cloned().collect();
        if !missing.is_empty() {
            return done(Verdict::Missing(missing), Position(0));
        }
        let at = |ids: &[OwnedEventId]| -> Vec<Place> {
            ids.iter().filter_map(|id| places.get(id.as_str()).cloned()).collect()
        };
        let (prev, auth) = (at(&pdu.prev_events), at(&pdu.auth_events));
        if prev.is_empty() {
            return Err(Refusal::bad_json("the event has no predecessors").into());
        }
        let auth_ids: Vec<EventNid> = auth.iter().map(|place| place.nid).collect();
        let mut scene = Scene::new(self, (room, room_id.to_owned()), rules, &pdu, auth_ids.clone());
        let (verdict, mut effect) =
            self.judge(slot, &mut scene, &pdu, &with, &prev, &heads, &sealed).await?;
        effect.auth_ids = auth_ids;
        let pdu = self.redaction(slot, &with, &draft, &verdict, pdu, &mut effect).await?;

        let permit = self.reserve(true).await?;
        let waits = {
            let mut live = lock(slot).lock();
            let event = effect::apply(&mut live, &self.signer, &draft, &with, pdu, sealed, effect)?;
            slot.enqueue(permit, &live, event, alone)
        };
        match settle(waits).await? {
            Settled::Sent(sent) => done(verdict, sent.position),
            Settled::Again => Ok(None),
            Settled::Moved => {
                self.owners.refresh().await?;
                Ok(None)
            }
        }
    }

    /// Finds the event's place, and what it changes there.
    #[expect(clippy::too_many_arguments, reason = "one event, and all that is known of its place")]
    async fn judge(
        &self,
        slot: &Slot,
        scene: &mut Scene<'_>,
        pdu: &Arc<Pdu>,
        with: &Prepared,
        prev: &[Place],
        heads: &[Head],
        sealed: &SealedJson,
    ) -> Result<(Verdict, Effect)> {
        let left = self.left_over(prev, heads).await?;
        let places: Vec<After> = prev
            .iter()
            .map(|place| after(place, heads))
            .chain(left.iter().map(|head| (head.snapshot, None)))
            .collect();
        let mut states = scene.states_after(&places).await?;
        let others = states.split_off(prev.len());
        let before = scene.merge(states).await?;
        let mut verdict = self.verdict(scene, pdu, &before).await?;
        if verdict == Verdict::Accepted
            && let Err(reason) = authorise(&lock(slot).lock(), pdu)
        {
            verdict = Verdict::SoftFailed(reason.message);
        }
        let after = match with.key {
            Some(key) if !matches!(verdict, Verdict::Rejected(_)) => {
                scene.follow(&before, key, with.nid).await?
            }
            _ => before.clone(),
        };
        let (heads, snapshot, changes) = if verdict == Verdict::Accepted {
            let own = Head {
                nid: with.nid,
                event_id: pdu.event_id.clone(),
                depth: pdu.depth,
                hash: sealed.hash.clone(),
                snapshot: after.head.id,
            };
            let current = scene.merge(others.into_iter().chain([after]).collect()).await?;
            let changes = self.changes(slot, scene, with, &current.state).await?;
            (left.into_iter().chain([own]).collect(), current.head, changes)
        } else {
            (heads.to_vec(), lock(slot).lock().snapshot.clone(), Vec::new())
        };
        let effect = Effect {
            flags: match verdict {
                Verdict::Rejected(_) => flags::REJECTED,
                Verdict::SoftFailed(_) => flags::SOFT_FAILED,
                _ => 0,
            },
            prev_ids: prev.iter().map(|place| place.nid).collect(),
            auth_ids: Vec::new(),
            before: before.head.id,
            snapshots: std::mem::take(&mut scene.made),
            heads,
            snapshot,
            changes,
            redaction: None,
        };
        Ok((verdict, effect))
    }

    /// Heads that an event with these predecessors leaves in place.
    async fn left_over(&self, prev: &[Place], heads: &[Head]) -> Result<Vec<Head>> {
        let nids: Vec<EventNid> = prev.iter().map(|place| place.nid).collect();
        let is_hidden = |place: &Place| place.flags & (flags::REJECTED | flags::SOFT_FAILED) != 0;
        let passed: HashSet<EventNid> = match prev.iter().any(is_hidden) {
            true => graph::list_behind(&self.pool, &nids).await?.into_iter().collect(),
            false => nids.into_iter().collect(),
        };
        Ok(heads.iter().filter(|head| !passed.contains(&head.nid)).cloned().collect())
    }

    /// Whether the event is allowed by its own auth events, and by the state before it.
    async fn verdict(
        &self,
        scene: &mut Scene<'_>,
        pdu: &Arc<Pdu>,
        before: &StateAt,
    ) -> Result<Verdict> {
        let state = scene.deciding(pdu, &before.state).await?;
        let auth = scene.auth_events(pdu).await?;
        let rules = &scene.rules.authorization;
        let has_hash_id = rules.room_create_event_id_as_room_id;
        let create = state.get(&("m.room.create".to_owned(), String::new()));
        let by_id = |id: &EventId| {
            auth.iter()
                .chain(create)
                .find(|auth| *auth.event_id == *id)
                .map(|auth| (**auth).clone())
        };
        let by_auth_events = |kind: &StateEventType, key: &str| {
            let named = auth.iter().find(|auth| {
                auth.kind.to_string() == kind.to_string() && auth.state_key.as_deref() == Some(key)
            });
            // In rooms whose id is the create event's, nothing has to name it.
            let named =
                named.or(create.filter(|_| *kind == StateEventType::RoomCreate && has_hash_id));
            named.map(|auth| (**auth).clone())
        };
        let checked = check_state_independent_auth_rules(rules, &**pdu, by_id)
            .and_then(|()| check_state_dependent_auth_rules(rules, &**pdu, by_auth_events))
            .and_then(|()| {
                check_state_dependent_auth_rules(rules, &**pdu, |kind, key| {
                    state.get(&(kind.to_string(), key.to_owned())).map(|pdu| (**pdu).clone())
                })
            });
        Ok(checked.map_or_else(Verdict::Rejected, |()| Verdict::Accepted))
    }

    /// How the current state changes.
    async fn changes(
        &self,
        slot: &Slot,
        scene: &mut Scene<'_>,
        with: &Prepared,
        to: &StateMap,
    ) -> Result<Vec<Change>> {
        let from: StateMap = {
            let live = lock(slot).lock();
            live.state.iter().map(|(key, event)| (*key, *event)).collect()
        };
        let changed: Vec<(KeyNid, Option<EventNid>, Option<EventNid>)> = difference(&from, to)
            .into_iter()
            .map(|(key, now)| (key, now, from.get(&key).copied()))
            .collect();
        scene.read(changed.iter().flat_map(|(_, now, before)| [*now, *before]).flatten()).await?;
        let mut changes: Vec<Change> = changed
            .into_iter()
            .map(|(key, now, before)| Change {
                key,
                before,
                now: now.and_then(|now| scene.pdus.get(&now).cloned()),
                old: before.and_then(|before| scene.pdus.get(&before).cloned()),
                user: None,
                sender: with.sender,
            })
            .collect();
        self.name_users(&mut changes).await?;
        Ok(changes)
    }

    /// Numbers of the users whom changed memberships are about, and of those who sent them.
    async fn name_users(&self, changes: &mut [Change]) -> Result<()> {
        let members: Vec<(usize, Arc<Pdu>)> = changes
            .iter()
            .enumerate()
            .filter_map(|(index, change)| {
                let pdu = change.now.as_ref().or(change.old.as_ref())?;
                let is_member = pdu.kind == TimelineEventType::RoomMember;
                let is_user = UserId::parse(pdu.state_key.as_deref()?).is_ok();
                (is_member && is_user).then(|| (index, pdu.clone()))
            })
            .collect();
        let users: Vec<&str> =
            members.iter().filter_map(|(_, pdu)| pdu.state_key.as_deref()).collect();
        let senders: Vec<&str> = members.iter().map(|(_, pdu)| pdu.sender.as_str()).collect();
        let interner = &self.users.deps.interner;
        let users: Vec<UserNid> = interner.users(&users).await?;
        let senders: Vec<UserNid> = interner.users(&senders).await?;
        for (((index, _), user), sender) in members.iter().zip(users).zip(senders) {
            changes[*index].user = Some(user);
            changes[*index].sender = sender;
        }
        Ok(())
    }

    /// What the event redacts, or which earlier redaction was waiting for it. In the latter case
    /// returns the event as it is afterwards.
    async fn redaction(
        &self,
        slot: &Slot,
        with: &Prepared,
        draft: &Draft,
        verdict: &Verdict,
        pdu: Arc<Pdu>,
        effect: &mut Effect,
    ) -> Result<Arc<Pdu>> {
        if matches!(verdict, Verdict::Rejected(_)) {
            return Ok(pdu);
        }
        if draft.kind == "m.room.redaction" {
            effect.redaction = redaction_by(&lock(slot).lock(), draft, with)?;
            return Ok(pdu);
        }
        let room = lock(slot).lock().room;
        let waiting = graph::get_pending_redaction(&self.pool, room, pdu.event_id.as_str()).await?;
        let Some((by, sender)) = waiting else { return Ok(pdu) };
        let live = lock(slot).lock();
        let sender = UserId::parse(&sender).map_err(chatd_base::Error::internal)?;
        if !may_redact(&live, &sender, &draft.sender) {
            return Ok(pdu);
        }
        let content = seal::redacted_content(&draft.kind, pdu.content.get(), &live.rules)?;
        effect.flags |= flags::REDACTED;
        effect.redaction =
            Some(NewRedaction::Prune { target: with.nid, content: content.clone(), by });
        let content = RawValue::from_string(content).map_err(chatd_base::Error::internal)?;
        let pruned = Arc::new(Pdu { content, ..(*pdu).clone() });
        for change in &mut effect.changes {
            if change.now.as_ref().is_some_and(|now| now.nid == pruned.nid) {
                change.now = Some(pruned.clone());
            }
        }
        Ok(pruned)
    }
}

impl Scene<'_> {
    /// The events that the event names to show that it is allowed.
    async fn auth_events(&mut self, pdu: &Pdu) -> Result<Vec<Arc<Pdu>>> {
        let nids = self.newcomer_auth();
        self.read(nids.iter().copied()).await?;
        let named = |auth: &Arc<Pdu>| pdu.auth_events.contains(&auth.event_id);
        Ok(nids.iter().filter_map(|nid| self.pdus.get(nid).cloned()).filter(named).collect())
    }
}

/// The state after an event that is in the tables.
fn after(place: &Place, heads: &[Head]) -> After {
    match heads.iter().find(|head| head.nid == place.nid) {
        Some(head) => (head.snapshot, None),
        None => {
            let key = place.key.filter(|_| place.flags & flags::REJECTED == 0);
            (place.snapshot, key.map(|key| (key, place.nid)))
        }
    }
}

/// A redaction of another server takes effect if its sender has the power, or if the target came
/// from the same server, which answers for its users.
fn may_redact(live: &Live, by: &UserId, target: &UserId) -> bool {
    by.server_name() == target.server_name()
        || live.powers().reaches(by, RoomPowerLevelsIntField::Redact)
}

fn redaction_by(live: &Live, draft: &Draft, with: &Prepared) -> Result<Option<NewRedaction>> {
    let Some(target_id) = &draft.redacts else { return Ok(None) };
    let Some(target) = &with.redacts else {
        return Ok(Some(NewRedaction::Pending { target: target_id.to_string() }));
    };
    let has_effect = target.room == live.room
        && !target.is_redacted()
        && may_redact(live, &draft.sender, &target.sender);
    if !has_effect {
        return Ok(None);
    }
    let content = seal::redacted_content(&target.kind, target.content.get(), &live.rules)?;
    Ok(Some(NewRedaction::Prune { target: target.nid, content, by: with.nid }))
}

/// The event as a draft says it.
fn draft_of(event: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<Draft> {
    let text = |name: &str| event.get(name).and_then(CanonicalJsonValue::as_str);
    let wrong = |name: &str| Refusal::bad_json(format!("`{name}` of the event is not valid"));
    let sender = text("sender").and_then(|sender| UserId::parse(sender).ok());
    let content = match event.get("content") {
        Some(content @ CanonicalJsonValue::Object(_)) => serde_json::Value::from(content.clone()),
        _ => return Err(wrong("content").into()),
    };
    let serde_json::Value::Object(content) = content else { return Err(wrong("content").into()) };
    let redacts = match rules.redaction.content_field_redacts {
        true => content.get("redacts").and_then(serde_json::Value::as_str),
        false => text("redacts"),
    };
    Ok(Draft {
        redacts: redacts.and_then(|id| OwnedEventId::try_from(id).ok()),
        sender: sender.ok_or_else(|| wrong("sender"))?,
        kind: text("type").ok_or_else(|| wrong("type"))?.to_owned(),
        state_key: text("state_key").map(ToOwned::to_owned),
        origin_ts: integer(event, "origin_server_ts"),
        content,
        txn: None,
        key: None,
        route: Route::Received,
        is_bulk: true,
    })
}

fn integer(event: &CanonicalJsonObject, name: &str) -> Option<i64> {
    match event.get(name) {
        Some(CanonicalJsonValue::Integer(number)) => Some((*number).into()),
        _ => None,
    }
}

/// The event in the form in which it is stored, and as the rules see it.
fn parse(
    event: CanonicalJsonObject,
    rules: &RoomVersionRules,
    room_id: &RoomId,
    draft: &Draft,
    with: &Prepared,
) -> Result<(SealedJson, Arc<Pdu>)> {
    if event.get("room_id").and_then(CanonicalJsonValue::as_str) != Some(room_id.as_str()) {
        return Err(Refusal::bad_json("the event belongs to another room").into());
    }
    let prev_events = references(&event, "prev_events")?;
    let auth_events = references(&event, "auth_events")?;
    let depth = integer(&event, "depth").unwrap_or_default();
    let sealed = seal::take_apart(rules, event)?;
    let content =
        RawValue::from_string(sealed.content.clone()).map_err(chatd_base::Error::internal)?;
    let pdu = Pdu {
        nid: with.nid,
        key: with.key,
        event_id: sealed.event_id.clone(),
        room_id: Some(room_id.to_owned()),
        sender: draft.sender.clone(),
        origin_ts: draft.origin_ts.unwrap_or_default(),
        depth,
        kind: draft.kind.as_str().into(),
        state_key: draft.state_key.clone(),
        content,
        prev_events,
        auth_events,
        redacts: draft.redacts.clone(),
        rejected: false,
        hash: sealed.hash.clone(),
    };
    Ok((sealed, Arc::new(pdu)))
}

/// Ids in `prev_events` or `auth_events`, which in old room versions come with hashes.
fn references(event: &CanonicalJsonObject, name: &str) -> Result<Vec<OwnedEventId>, Refusal> {
    let Some(CanonicalJsonValue::Array(entries)) = event.get(name) else {
        return Err(Refusal::bad_json(format!("`{name}` of the event is not an array")));
    };
    let one = |entry: &CanonicalJsonValue| {
        let id = match entry {
            CanonicalJsonValue::Array(pair) => pair.first().and_then(CanonicalJsonValue::as_str),
            other => other.as_str(),
        };
        id.and_then(|id| OwnedEventId::try_from(id).ok())
            .ok_or_else(|| Refusal::bad_json(format!("`{name}` of the event has a wrong entry")))
    };
    entries.iter().map(one).collect()
}
