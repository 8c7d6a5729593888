//! Adds a draft to a hot room: references, authorisation and seal. The room's memory moves on
//! only if everything is allowed.

use std::{collections::HashSet, sync::Arc};

use chatd_base::{
    EventNid, KeyNid, Refusal, Result, SnapshotId, TypeNid, UserNid, json::MAX_INTEGER,
};
use chatd_storage::{
    events::StoredEvent,
    lane::NewRedaction,
    snapshots::{self, StateMap},
};
use ruma_common::{CanonicalJsonObject, EventId, OwnedEventId};
use ruma_events::TimelineEventType;
use ruma_state_res::{
    auth_types_for_event, check_state_independent_auth_rules, events::RoomPowerLevelsIntField,
};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    effect::{self, Change, Effect},
    lane::SealedEvent,
    live::{Head, Live},
    pdu::Pdu,
    push::Rules,
    rules::check_by_state,
    seal::{self, Draft, Reference, SealedJson, Signer, Unsealed},
};

/// What has to be looked up before the room is locked.
pub struct Prepared {
    pub nid: EventNid,
    /// For the snapshot after a state event.
    pub snapshot: SnapshotId,
    pub kind: TypeNid,
    pub sender: UserNid,
    pub key: Option<KeyNid>,
    /// The user whom a membership event is about.
    pub target: Option<UserNid>,
    pub rules: Arc<Rules>,
    /// Local members who ignore the sender.
    pub deaf: HashSet<UserNid>,
    /// The event that a redaction names, if this server has it.
    pub redacts: Option<Arc<StoredEvent>>,
    pub txn: Option<Uuid>,
    pub now_ms: i64,
}

/// How adding a draft went.
pub enum Composed {
    Event(Box<SealedEvent>),
    /// The state is like that already; the event that made it so.
    Unchanged(OwnedEventId),
}

/// Seals `draft` as the next event of the room and moves the room's memory past it.
pub fn compose(
    live: &mut Live,
    signer: &Signer,
    draft: &Draft,
    with: &Prepared,
) -> Result<Composed> {
    let already = unchanged(live, draft)?.or_else(|| redeemed(live, draft));
    if let Some(event_id) = already {
        return Ok(Composed::Unchanged(event_id));
    }
    let redaction = check_redaction(live, draft, with)?;
    let content =
        serde_json::value::to_raw_value(&draft.content).map_err(chatd_base::Error::internal)?;
    let auth = auth_bodies(live, draft, &content)?;
    let (prev, auth_refs) = references(live, &auth);
    let is_hash_create =
        draft.kind == "m.room.create" && live.rules.authorization.room_create_event_id_as_room_id;
    let unsealed = Unsealed {
        draft,
        room_id: (!is_hash_create).then_some(&*live.room_id),
        origin_ts: draft.origin_ts.unwrap_or(with.now_ms).clamp(0, MAX_INTEGER),
        depth: live.next_depth(),
        prev_events: &prev,
        auth_events: &auth_refs,
    };
    let sealed = seal::seal(signer, &live.rules, &unsealed)?;
    let pdu = pdu(&unsealed, &sealed, with, is_hash_create)?;
    authorise(live, &pdu)?;
    if is_hash_create {
        live.room_id = seal::room_id_of_create(&sealed.event_id)?;
    }
    let pdu = Arc::new(pdu);
    let mut effect = here(live, with, &pdu, sealed.hash.clone());
    effect.auth_ids = auth.iter().map(|pdu| pdu.nid).collect();
    effect.redaction = redaction;
    let event = effect::apply(live, signer, draft, with, pdu, sealed, effect)?;
    Ok(Composed::Event(Box::new(event)))
}

/// What the next event of the room refers to: its predecessors, and what allows it.
fn references(live: &Live, auth: &[Arc<Pdu>]) -> (Vec<Reference>, Vec<Reference>) {
    let to_head =
        |head: &Head| Reference { event_id: head.event_id.clone(), hash: head.hash.clone() };
    let to_auth =
        |pdu: &Arc<Pdu>| Reference { event_id: pdu.event_id.clone(), hash: pdu.hash.clone() };
    (live.heads.iter().map(to_head).collect(), auth.iter().map(to_auth).collect())
}

/// `draft` as the next event of the room, without hashes and signatures. Refuses what the room does
/// not allow; the room's memory stays as it is.
pub fn template(live: &Live, draft: &Draft, now_ms: i64) -> Result<CanonicalJsonObject> {
    if redeemed(live, draft).is_some() {
        return Err(Refusal::forbidden("the user is invited or in the room already").into());
    }
    let content =
        serde_json::value::to_raw_value(&draft.content).map_err(chatd_base::Error::internal)?;
    let auth = auth_bodies(live, draft, &content)?;
    let (prev, auth_refs) = references(live, &auth);
    let unsealed = Unsealed {
        draft,
        room_id: Some(&live.room_id),
        origin_ts: draft.origin_ts.unwrap_or(now_ms).clamp(0, MAX_INTEGER),
        depth: live.next_depth(),
        prev_events: &prev,
        auth_events: &auth_refs,
    };
    let event = seal::unsigned(&live.rules, &unsealed)?;
    authorise(
        live,
        &Pdu {
            nid: EventNid(0),
            key: None,
            event_id: EventId::new_v1(
                live.room_id.server_name().unwrap_or(draft.sender.server_name()),
            ),
            room_id: Some(live.room_id.clone()),
            sender: draft.sender.clone(),
            origin_ts: unsealed.origin_ts,
            depth: unsealed.depth,
            kind: TimelineEventType::from(draft.kind.as_str()),
            state_key: draft.state_key.clone(),
            content,
            prev_events: prev.iter().map(|to| to.event_id.clone()).collect(),
            auth_events: auth_refs.iter().map(|to| to.event_id.clone()).collect(),
            redacts: None,
            rejected: false,
            hash: None,
        },
    )?;
    Ok(event)
}

/// What an event does that follows all heads of the room.
pub fn here(live: &Live, with: &Prepared, pdu: &Arc<Pdu>, hash: Option<String>) -> Effect {
    let mut snapshot = live.snapshot.clone();
    let mut snapshots = Vec::new();
    if let Some(key) = with.key {
        let whole = || {
            let mut whole: StateMap =
                live.state.iter().map(|(key, event)| (*key, *event)).collect();
            whole.insert(key, with.nid);
            whole
        };
        let changes = [(key, Some(with.nid))];
        let (new, head) =
            snapshots::next(live.room, with.snapshot, &live.snapshot, &changes, whole);
        snapshots.push(new);
        snapshot = head;
    }
    let change = with.key.map(|key| Change {
        key,
        before: live.state.get(&key).copied(),
        now: Some(pdu.clone()),
        old: live
            .body(&pdu.kind.to_string(), pdu.state_key.as_deref().unwrap_or_default())
            .cloned(),
        user: with.target,
        sender: with.sender,
    });
    Effect {
        flags: 0,
        prev_ids: live.heads.iter().map(|head| head.nid).collect(),
        auth_ids: Vec::new(),
        before: live.snapshot.id,
        snapshots,
        heads: vec![Head {
            nid: with.nid,
            event_id: pdu.event_id.clone(),
            depth: pdu.depth,
            hash,
            snapshot: snapshot.id,
        }],
        snapshot,
        changes: change.into_iter().collect(),
        redaction: None,
        gaps: None,
        rebase: None,
    }
}

/// A state event that would change nothing has no effect: same key, sender and content.
fn unchanged(live: &Live, draft: &Draft) -> Result<Option<OwnedEventId>> {
    let Some(state_key) = &draft.state_key else { return Ok(None) };
    let Some(current) = live.body(&draft.kind, state_key) else { return Ok(None) };
    if current.sender != draft.sender {
        return Ok(None);
    }
    let new = serde_json::to_string(&seal::canonical(&draft.content)?)
        .map_err(chatd_base::Error::internal)?;
    Ok((new == current.content.get()).then(|| current.event_id.clone()))
}

/// An invite that an identity server has signed changes nothing for whoever is invited or in the
/// room: the rules of the room alone would let it put them out. The event that made them so.
fn redeemed(live: &Live, draft: &Draft) -> Option<OwnedEventId> {
    let is_one = draft.kind == "m.room.member"
        && draft.content.get("membership").is_some_and(|word| word == "invite")
        && draft.content.contains_key("third_party_invite");
    let user = draft.state_key.as_deref().filter(|_| is_one)?;
    let current = live.body("m.room.member", user)?;
    let membership = current.content_str("membership")?;
    matches!(&*membership, "join" | "invite").then(|| current.event_id.clone())
}

/// Current state events that authorise `draft`.
fn auth_bodies(live: &Live, draft: &Draft, content: &RawValue) -> Result<Vec<Arc<Pdu>>> {
    let kind = TimelineEventType::from(draft.kind.as_str());
    let state_key = draft.state_key.as_deref();
    let types =
        auth_types_for_event(&kind, &draft.sender, state_key, content, &live.rules.authorization)
            .map_err(Refusal::bad_json)?;
    Ok(types.iter().filter_map(|(kind, key)| live.body(&kind.to_string(), key).cloned()).collect())
}

/// Whether the room as it is now allows the event.
pub fn authorise(live: &Live, pdu: &Pdu) -> Result<(), Refusal> {
    let rules = &live.rules.authorization;
    if pdu.kind == TimelineEventType::RoomCreate {
        check_state_independent_auth_rules(rules, pdu, |_: &EventId| None::<&Pdu>)
            .map_err(Refusal::forbidden)?;
    }
    check_by_state(rules, pdu, |kind, key| live.body(&kind.to_string(), key).cloned())
        .map_err(Refusal::forbidden)
}

/// Who may redact what, beyond the auth rules: one's own events, or any with the power to.
fn check_redaction(live: &Live, draft: &Draft, with: &Prepared) -> Result<Option<NewRedaction>> {
    if draft.kind != "m.room.redaction" {
        return Ok(None);
    }
    let has_power = live.powers().reaches(&draft.sender, RoomPowerLevelsIntField::Redact);
    let target = with.redacts.as_ref().filter(|target| target.room == live.room);
    let Some(target) = target else {
        return if has_power {
            Ok(None)
        } else {
            Err(Refusal::not_found("the event to be redacted is not known").into())
        };
    };
    if !has_power && target.sender != draft.sender {
        return Err(Refusal::forbidden("you may only redact your own events here").into());
    }
    if target.is_redacted() {
        return Ok(None);
    }
    let content = seal::redacted_content(&target.kind, target.content.get(), &live.rules)?;
    Ok(Some(NewRedaction::Prune { target: target.nid, content, by: with.nid }))
}

fn pdu(
    event: &Unsealed<'_>,
    sealed: &SealedJson,
    with: &Prepared,
    is_hash_create: bool,
) -> Result<Pdu> {
    let draft = event.draft;
    Ok(Pdu {
        nid: with.nid,
        key: with.key,
        event_id: sealed.event_id.clone(),
        room_id: event.room_id.filter(|_| !is_hash_create).map(ToOwned::to_owned),
        sender: draft.sender.clone(),
        origin_ts: event.origin_ts,
        depth: event.depth,
        kind: TimelineEventType::from(draft.kind.as_str()),
        state_key: draft.state_key.clone(),
        content: RawValue::from_string(sealed.content.clone())
            .map_err(chatd_base::Error::internal)?,
        prev_events: event.prev_events.iter().map(|to| to.event_id.clone()).collect(),
        auth_events: event.auth_events.iter().map(|to| to.event_id.clone()).collect(),
        redacts: draft.redacts.clone(),
        rejected: false,
        hash: sealed.hash.clone(),
    })
}
