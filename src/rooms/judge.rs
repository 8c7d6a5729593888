//! Which place an event of another server takes, whether it is allowed there, and what it changes:
//! for events that do not simply follow the newest one (`line` has those that do). Reads a constant
//! number of times, whatever the event.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{EventNid, KeyNid, Result, UserNid};
use chatd_storage::{
    graph::{self, Place},
    lane::{NewRedaction, flags},
    snapshots::StateMap,
};
use ruma_common::{EventId, UserId, room_version_rules::AuthorizationRules};
use ruma_events::{StateEventType, TimelineEventType};
use ruma_state_res::{check_state_independent_auth_rules, events::RoomPowerLevelsIntField};
use serde_json::value::RawValue;

use crate::{
    arrival::Arrival,
    compose::{Prepared, authorise},
    effect::{Change, Effect},
    live::{Head, Live},
    owner::{RoomOwner, Slot, lock},
    pdu::Pdu,
    place::{After, Scene, StateAt, difference},
    receive::Verdict,
    rules::check_by_state,
    seal::{self, Draft},
};

/// What is known of the surroundings of an event.
pub(crate) struct Around {
    /// Those of its predecessors whose state is known.
    pub prev: Vec<Place>,
    /// The state before it, as its server says, where predecessors are missing.
    pub given: Option<StateMap>,
    /// A later event refers to it: it is none of the newest, and changes nothing that is current.
    pub is_behind: bool,
    pub heads: Vec<Head>,
}

/// Redactions that came before their targets, by the ids of these, and who sent them.
pub(crate) type Waiting = HashMap<String, (EventNid, String)>;

impl RoomOwner {
    /// Finds the event's place, and what it changes there.
    pub(crate) async fn judge(
        &self,
        slot: &Slot,
        scene: &mut Scene<'_>,
        pdu: &Arc<Pdu>,
        with: &Prepared,
        around: Around,
    ) -> Result<(Verdict, Effect)> {
        let Around { prev, given, is_behind, heads } = around;
        let left = self.left_over(&prev, &heads).await?;
        let places: Vec<After> = prev
            .iter()
            .map(|place| after(place, &heads))
            .chain(left.iter().map(|head| (head.snapshot, None)))
            .collect();
        let mut states = scene.states_after(&places).await?;
        let others = states.split_off(prev.len());
        let is_given = given.is_some();
        if let Some(given) = given {
            states.push(scene.stand(given).await?);
        }
        let before = scene.merge(states).await?;
        let now = is_given.then(|| others.iter().chain([&before]).cloned().collect());
        let verdict = self.verdict(slot, scene, pdu, &before, now).await?;
        let after = match with.key {
            Some(key) if !matches!(verdict, Verdict::Rejected(_)) => {
                scene.follow(&before, key, with.nid).await?
            }
            _ => before.clone(),
        };
        let (heads, snapshot, changes) = if verdict == Verdict::Accepted && !is_behind {
            let own = Head {
                nid: with.nid,
                event_id: pdu.event_id.clone(),
                depth: pdu.depth,
                hash: pdu.hash.clone(),
                snapshot: after.head.id,
            };
            let current = scene.merge(others.into_iter().chain([after]).collect()).await?;
            let changes = self.changes(slot, scene, with, &current.state).await?;
            (left.into_iter().chain([own]).collect(), current.head, changes)
        } else {
            (heads, lock(slot).lock().snapshot.clone(), Vec::new())
        };
        let effect = Effect {
            flags: flags_of(&verdict),
            prev_ids: prev.iter().map(|place| place.nid).collect(),
            auth_ids: Vec::new(),
            before: before.head.id,
            snapshots: std::mem::take(&mut scene.made),
            heads,
            snapshot,
            changes,
            redaction: None,
            gaps: None,
            rebase: None,
        };
        Ok((verdict, effect))
    }

    /// Whether the event is allowed where it stands, by the state `before` it, and by the room as it
    /// is `now`.
    async fn verdict(
        &self,
        slot: &Slot,
        scene: &mut Scene<'_>,
        pdu: &Arc<Pdu>,
        before: &StateAt,
        now: Option<Vec<StateAt>>,
    ) -> Result<Verdict> {
        let verdict = self.verdict_in_place(scene, pdu, before).await?;
        if verdict != Verdict::Accepted {
            return Ok(verdict);
        }
        let refused = self.refused_now(slot, scene, pdu, now).await?;
        Ok(refused.map_or(verdict, Verdict::SoftFailed))
    }

    /// Why the room as it is now does not allow the event, if that is so. Where much is missing the
    /// room may have changed in what is; then it is what `states` together come to.
    async fn refused_now(
        &self,
        slot: &Slot,
        scene: &mut Scene<'_>,
        pdu: &Arc<Pdu>,
        states: Option<Vec<StateAt>>,
    ) -> Result<Option<String>> {
        let Some(states) = states else {
            return Ok(authorise(&lock(slot).lock(), pdu).err().map(|why| why.message));
        };
        let now = scene.merge(states).await?;
        let state = scene.deciding(pdu, &now.state).await?;
        let checked = check_by_state(&scene.rules.authorization, pdu, |kind, key| {
            state.get(&(kind.to_string(), key.to_owned())).cloned()
        });
        Ok(checked.err())
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
    async fn verdict_in_place(
        &self,
        scene: &mut Scene<'_>,
        pdu: &Arc<Pdu>,
        before: &StateAt,
    ) -> Result<Verdict> {
        let state = scene.deciding(pdu, &before.state).await?;
        let auth = scene.auth_events(pdu).await?;
        let in_force =
            |kind: &str, key: &str| state.get(&(kind.to_owned(), key.to_owned())).cloned();
        let checked = allowed(&scene.rules.authorization, pdu, &auth, in_force);
        Ok(checked.map_or_else(Verdict::Rejected, |()| Verdict::Accepted))
    }

    /// How the current state changes.
    pub(crate) async fn changes(
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
        let concerned = changed.iter().flat_map(|(_, now, before)| [*now, *before]).flatten();
        let concerned: Vec<EventNid> = concerned.collect();
        scene.read(concerned).await?;
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
    pub(crate) async fn name_users(&self, changes: &mut [Change]) -> Result<()> {
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

    /// Redactions that came before their targets `ids`. No query for a room that has none of them.
    pub(crate) async fn waiting_redactions(&self, slot: &Slot, ids: &[&str]) -> Result<Waiting> {
        let (room, are_some) = {
            let live = lock(slot).lock();
            (live.room, live.redactions_wait)
        };
        match are_some {
            true => Ok(graph::list_pending_redactions(&self.pool, room, ids).await?),
            false => Ok(Waiting::new()),
        }
    }

    /// What the event redacts, or which earlier redaction was waiting for it. In the latter case
    /// returns the event as it is afterwards.
    pub(crate) fn redaction(
        live: &Live,
        with: &Prepared,
        arrival: &Arrival,
        waiting: Option<&(EventNid, String)>,
        pdu: Arc<Pdu>,
        effect: &mut Effect,
    ) -> Result<Arc<Pdu>> {
        let draft = &arrival.draft;
        if effect.flags & flags::REJECTED != 0 {
            return Ok(pdu);
        }
        if draft.kind == "m.room.redaction" {
            effect.redaction = redaction_by(live, draft, with)?;
            return Ok(pdu);
        }
        let Some((by, sender)) = waiting else { return Ok(pdu) };
        let sender = UserId::parse(sender).map_err(chatd_base::Error::internal)?;
        if !may_redact(live, &sender, &draft.sender) {
            return Ok(pdu);
        }
        let content = seal::redacted_content(&draft.kind, pdu.content.get(), &live.rules)?;
        effect.flags |= flags::REDACTED;
        effect.redaction =
            Some(NewRedaction::Prune { target: with.nid, content: content.clone(), by: *by });
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

/// Whether the rules allow an event: by the events that it names to show it, and by a state.
pub(crate) fn allowed(
    rules: &AuthorizationRules,
    pdu: &Pdu,
    auth: &[Arc<Pdu>],
    state: impl Fn(&str, &str) -> Option<Arc<Pdu>>,
) -> Result<(), String> {
    let create = state("m.room.create", "");
    let by_id = |id: &EventId| {
        let named = auth.iter().chain(&create).find(|auth| *auth.event_id == *id);
        named.map(|auth| (**auth).clone())
    };
    let by_auth_events = |kind: &StateEventType, key: &str| {
        let named = auth.iter().find(|auth| {
            auth.kind.to_string() == kind.to_string() && auth.state_key.as_deref() == Some(key)
        });
        // In rooms whose id is the create event's, nothing has to name it.
        let has_hash_id = rules.room_create_event_id_as_room_id;
        let create = create.as_ref().filter(|_| *kind == StateEventType::RoomCreate && has_hash_id);
        named.or(create).cloned()
    };
    check_state_independent_auth_rules(rules, pdu, by_id)?;
    check_by_state(rules, pdu, by_auth_events)?;
    check_by_state(rules, pdu, |kind, key| state(&kind.to_string(), key))
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

/// How an event that was judged so is marked.
fn flags_of(verdict: &Verdict) -> i16 {
    match verdict {
        Verdict::Rejected(_) => flags::REJECTED,
        Verdict::SoftFailed(_) => flags::SOFT_FAILED,
        _ => 0,
    }
}

/// A redaction of another server takes effect if its sender has the power, or if the target came
/// from the same server, which answers for its users.
pub(crate) fn may_redact(live: &Live, by: &UserId, target: &UserId) -> bool {
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
