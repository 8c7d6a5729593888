//! Adds a draft to a hot room: references, authorisation, seal, and what it changes. The room's
//! memory moves on only if everything is allowed.

use std::sync::Arc;

use chatd_base::{EventNid, KeyNid, Refusal, Result, SnapshotId, TypeNid, UserNid};
use chatd_storage::{
    events::StoredEvent,
    lane::{NewEvent, NewMembership, NewNotifications, NewRedaction, NewTransaction},
    snapshots::{self, StateMap},
};
use chatd_streams::{
    Raw,
    events::{EventRow, Membership, MembershipChange, Relation, Replaced, SentBy, Visibility},
};
use ruma_common::{EventId, OwnedEventId, OwnedUserId};
use ruma_events::TimelineEventType;
use ruma_state_res::{
    auth_types_for_event, check_state_dependent_auth_rules, check_state_independent_auth_rules,
    events::RoomPowerLevelsIntField,
};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    lane::SealedEvent,
    live::{Head, Live, Member, visibility_of},
    pdu::Pdu,
    push::{self, Rules},
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
    if let Some(event_id) = unchanged(live, draft)? {
        return Ok(Composed::Unchanged(event_id));
    }
    let redaction = check_redaction(live, draft, with)?;
    let content =
        serde_json::value::to_raw_value(&draft.content).map_err(chatd_base::Error::internal)?;
    let auth = auth_bodies(live, draft, &content)?;
    let prev: Vec<Reference> = live
        .heads
        .iter()
        .map(|head| Reference { event_id: head.event_id.clone(), hash: head.hash.clone() })
        .collect();
    let auth_refs: Vec<Reference> = auth
        .iter()
        .map(|pdu| Reference {
            event_id: pdu.event_id.clone(),
            hash: live.hashes.get(&pdu.nid).cloned(),
        })
        .collect();
    let is_hash_create =
        draft.kind == "m.room.create" && live.rules.authorization.room_create_event_id_as_room_id;
    let unsealed = Unsealed {
        draft,
        room_id: (!is_hash_create).then_some(&*live.room_id),
        origin_ts: draft.origin_ts.unwrap_or(with.now_ms),
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
    let auth_ids = auth.iter().map(|pdu| pdu.nid).collect();
    Ok(Composed::Event(Box::new(advance(
        live, signer, draft, with, sealed, pdu, auth_ids, redaction,
    )?)))
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

/// Current state events that authorise `draft`.
fn auth_bodies(live: &Live, draft: &Draft, content: &RawValue) -> Result<Vec<Arc<Pdu>>> {
    let kind = TimelineEventType::from(draft.kind.as_str());
    let state_key = draft.state_key.as_deref();
    let types =
        auth_types_for_event(&kind, &draft.sender, state_key, content, &live.rules.authorization)
            .map_err(Refusal::bad_json)?;
    Ok(types.iter().filter_map(|(kind, key)| live.body(&kind.to_string(), key).cloned()).collect())
}

fn authorise(live: &Live, pdu: &Pdu) -> Result<(), Refusal> {
    let rules = &live.rules.authorization;
    if pdu.kind == TimelineEventType::RoomCreate {
        check_state_independent_auth_rules(rules, pdu, |_: &EventId| None::<&Pdu>)
            .map_err(Refusal::forbidden)?;
    }
    check_state_dependent_auth_rules(rules, pdu, |kind, key| {
        live.body(&kind.to_string(), key).map(|body| &**body)
    })
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
    Ok(Some(NewRedaction { target: target.nid, content }))
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
    })
}

#[expect(clippy::too_many_arguments, reason = "the parts of one event, each made by a step above")]
fn advance(
    live: &mut Live,
    signer: &Signer,
    draft: &Draft,
    with: &Prepared,
    sealed: SealedJson,
    pdu: Pdu,
    auth_ids: Vec<EventNid>,
    redaction: Option<NewRedaction>,
) -> Result<SealedEvent> {
    let content: Raw = Arc::from(pdu.content.clone());
    let unread = push::unread(live, draft, &with.rules);
    let (relation, thread) = relations(draft);
    let membership = membership_change(live, signer, draft, with, &content)?;
    let replaced_body =
        draft.state_key.as_ref().and_then(|key| live.body(&draft.kind, key)).cloned();
    let replaces = with.key.and_then(|key| live.state.get(&key).copied());
    let visibility = visibility_for(live, draft, &pdu);
    let prev_ids = live.heads.iter().map(|head| head.nid).collect();
    let before = live.snapshot.id;
    let snapshot_after = with.key.map(|key| {
        let state = &live.state;
        let changes = [(key, Some(with.nid))];
        let whole = || {
            let mut whole: StateMap = state.iter().map(|(key, event)| (*key, *event)).collect();
            whole.insert(key, with.nid);
            whole
        };
        let (snapshot, head) =
            snapshots::next(live.room, with.snapshot, &live.snapshot, &changes, whole);
        live.snapshot = head;
        snapshot
    });
    let redacts = redaction.is_some().then(|| draft.redacts.clone()).flatten();
    let notifications = (!unread.notify.is_empty()).then(|| NewNotifications {
        thread: thread.as_ref().map_or(String::new(), ToString::to_string),
        notify: unread.notify.clone(),
        highlight: unread.highlight.clone(),
    });
    let new = NewEvent {
        nid: with.nid,
        snapshot: before,
        depth: pdu.depth,
        origin_ts: pdu.origin_ts,
        key: with.key,
        replaces,
        room: live.room,
        kind: with.kind,
        sender: with.sender,
        flags: 0,
        event_id: sealed.event_id.to_string(),
        prev_ids,
        auth_ids,
        content: sealed.content,
        rest: sealed.rest,
        txn: with.txn.zip(draft.txn.as_ref()).map(|(digest, (device_id, txn_id))| NewTransaction {
            digest,
            device_id: device_id.clone(),
            txn_id: txn_id.clone(),
        }),
        relation: relation.as_ref().map(|r| (r.event_id.to_string(), r.rel_type.clone())),
        notifications,
        redaction: redaction.clone(),
        membership: membership.as_ref().map(|change| NewMembership {
            user: change.user,
            membership: change.now.letter(),
            is_local: change.is_local,
            stripped: change.stripped.as_ref().map(|events| array(events)),
        }),
        state_changes: with.key.map(|key| (key, Some(with.nid), replaces)).into_iter().collect(),
        snapshot_after,
    };
    let row = EventRow {
        nid: with.nid,
        room: live.room,
        room_id: live.room_id.clone(),
        event_id: sealed.event_id.clone(),
        sender: draft.sender.clone(),
        sender_nid: with.sender,
        kind: Arc::from(draft.kind.as_str()),
        state_key: draft.state_key.as_deref().map(Arc::from),
        key: with.key,
        origin_ts: pdu.origin_ts,
        depth: pdu.depth,
        content,
        redacts_top_level: draft
            .redacts
            .clone()
            .filter(|_| !live.rules.redaction.content_field_redacts),
        redacts,
        relation,
        thread,
        replaced: replaced_body.map(|body| Replaced {
            event_id: body.event_id.clone(),
            sender: body.sender.clone(),
            content: Arc::from(body.content.clone()),
        }),
        is_current: with.key.is_some(),
        membership,
        visibility,
        txn: draft.txn.clone().map(|(device_id, txn_id)| SentBy {
            user: with.sender,
            device_id,
            txn_id,
        }),
        notify: unread.notify.into(),
        highlight: unread.highlight.into(),
        resolved: Vec::new(),
        hidden: false,
    };
    move_on(live, &row, pdu, sealed.hash, with, redaction.as_ref())?;
    Ok(SealedEvent { new, row })
}

fn array(events: &[Raw]) -> String {
    let parts: Vec<&str> = events.iter().map(|event| event.get()).collect();
    format!("[{}]", parts.join(","))
}

/// The event's relation, and the root of the thread that it is in.
fn relations(draft: &Draft) -> (Option<Relation>, Option<OwnedEventId>) {
    let relation = push::relation(&draft.content).and_then(|(rel_type, event_id)| {
        Some(Relation {
            rel_type: rel_type.to_owned(),
            event_id: OwnedEventId::try_from(event_id).ok()?,
        })
    });
    let thread = relation.as_ref().filter(|r| r.rel_type == "m.thread").map(|r| r.event_id.clone());
    (relation, thread)
}

/// For the event that changes the setting, the more open of the old and the new one.
fn visibility_for(live: &Live, draft: &Draft, pdu: &Pdu) -> Visibility {
    let openness = |visibility: Visibility| match visibility {
        Visibility::WorldReadable => 3,
        Visibility::Shared => 2,
        Visibility::Invited => 1,
        Visibility::Joined => 0,
    };
    let before = live.visibility();
    if draft.kind != "m.room.history_visibility" || draft.state_key.as_deref() != Some("") {
        return before;
    }
    let after = visibility_of(pdu.content_str("history_visibility").as_deref());
    if openness(after) > openness(before) { after } else { before }
}

fn membership_change(
    live: &Live,
    signer: &Signer,
    draft: &Draft,
    with: &Prepared,
    content: &RawValue,
) -> Result<Option<MembershipChange>> {
    if draft.kind != "m.room.member" {
        return Ok(None);
    }
    let (Some(user_id), Some(user)) = (&draft.state_key, with.target) else { return Ok(None) };
    let user_id = OwnedUserId::try_from(user_id.as_str())
        .map_err(|_| Refusal::invalid_param("the state key of `m.room.member` is not a user id"))?;
    let now = crate::pdu::content_str(content, "membership")
        .and_then(|word| Membership::from_word(&word))
        .ok_or_else(|| Refusal::bad_json("`membership` is missing or has an unknown value"))?;
    let before = live
        .body("m.room.member", user_id.as_str())
        .and_then(|body| body.content_str("membership"))
        .and_then(|word| Membership::from_word(&word));
    let is_local = user_id.server_name() == signer.server_name;
    let wants_state = is_local && matches!(now, Membership::Invite | Membership::Knock);
    let stripped = wants_state.then(|| stripped_state(live, draft, content).into());
    Ok(Some(MembershipChange { user, user_id, is_local, before, now, stripped }))
}

/// State that invited and knocking users are shown (spec: stripped state).
const STRIPPED: [&str; 7] = [
    "m.room.create",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.avatar",
    "m.room.encryption",
    "m.room.name",
    "m.room.topic",
];

fn stripped_state(live: &Live, draft: &Draft, content: &RawValue) -> Vec<Raw> {
    let raw = |kind: &str, state_key: &str, sender: &str, content: &RawValue| -> Option<Raw> {
        #[derive(serde::Serialize)]
        struct Stripped<'a> {
            r#type: &'a str,
            state_key: &'a str,
            sender: &'a str,
            content: &'a RawValue,
        }
        let event = Stripped { r#type: kind, state_key, sender, content };
        serde_json::value::to_raw_value(&event).ok().map(Arc::from)
    };
    let inviter = live.body("m.room.member", draft.sender.as_str());
    let own = raw(
        &draft.kind,
        draft.state_key.as_deref().unwrap_or_default(),
        draft.sender.as_str(),
        content,
    );
    STRIPPED
        .iter()
        .filter_map(|kind| live.body(kind, ""))
        .chain(inviter.filter(|_| draft.state_key.as_deref() != Some(draft.sender.as_str())))
        .filter_map(|body| {
            let key = body.state_key.as_deref().unwrap_or_default();
            raw(&body.kind.to_string(), key, body.sender.as_str(), &body.content)
        })
        .chain(own)
        .collect()
}

/// Makes the new event the only head, and its effects part of the room's memory.
fn move_on(
    live: &mut Live,
    row: &EventRow,
    pdu: Pdu,
    hash: Option<String>,
    with: &Prepared,
    redaction: Option<&NewRedaction>,
) -> Result<()> {
    live.heads = vec![Head {
        nid: row.nid,
        event_id: pdu.event_id.clone(),
        depth: row.depth,
        hash: hash.clone(),
    }];
    if let Some(change) = &row.membership {
        move_member(live, change, &pdu);
    }
    if let (Some(target), Some(redaction)) = (&row.redacts, redaction)
        && let Some(body) = live.body_of_event(target).cloned()
    {
        let content = RawValue::from_string(redaction.content.clone())
            .map_err(chatd_base::Error::internal)?;
        live.set_body(Arc::new(Pdu { content, ..(*body).clone() }));
    }
    if let Some(key) = with.key {
        live.state.insert(key, row.nid);
        if let Some(hash) = hash {
            live.hashes.insert(row.nid, hash);
        }
        live.set_body(Arc::new(pdu));
    }
    Ok(())
}

fn move_member(live: &mut Live, change: &MembershipChange, pdu: &Pdu) {
    let was = change.before == Some(Membership::Join);
    let is = change.now == Membership::Join;
    live.joined += i64::from(is) - i64::from(was);
    if !change.is_local || !(was || is) {
        return;
    }
    let mut members: Vec<Member> =
        live.members.iter().filter(|member| member.user != change.user).cloned().collect();
    if is {
        members.push(Member {
            user: change.user,
            user_id: change.user_id.clone(),
            display_name: pdu.content_str("displayname").unwrap_or_default(),
        });
    }
    live.members = Arc::new(members);
}
