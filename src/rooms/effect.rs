//! What an event does to its room: the rows that the lane writes, the row that goes out to
//! readers, and the room's memory afterwards. The same for an event that was made here and for
//! one that came from elsewhere.

use std::sync::Arc;

use chatd_base::{EventNid, KeyNid, Refusal, Result, SnapshotId, UserNid};
use chatd_storage::{
    lane::{
        NewEvent, NewHeads, NewMembership, NewNotifications, NewRedaction, NewTransaction, flags,
    },
    partial::Rebase,
    snapshots::{NewSnapshot, SnapshotHead},
};
use chatd_streams::{
    Raw,
    events::{
        EventRow, Extent, Membership, MembershipChange, Relation, Replaced, SentBy, Visibility,
    },
};
use ruma_common::{OwnedEventId, OwnedUserId, UserId};
use ruma_events::TimelineEventType;
use serde_json::value::RawValue;

use crate::{
    compose::Prepared,
    filter::has_url,
    lane::SealedEvent,
    live::{Head, Live, Member, visibility_of},
    pdu::Pdu,
    push::{self, Unread},
    seal::{Draft, Route, SealedJson, Signer},
};

/// One entry of the current state that changes.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: KeyNid,
    /// The event that was in force.
    pub before: Option<EventNid>,
    /// The event that is in force now; `None` if state resolution has removed the entry.
    pub now: Option<Arc<Pdu>>,
    /// The event that was in force, if it is in memory.
    pub old: Option<Arc<Pdu>>,
    /// The user whom a membership is about.
    pub user: Option<UserNid>,
    /// Who sent `now`.
    pub sender: UserNid,
}

/// Everything that follows from an event's place in the graph.
#[derive(Debug)]
pub struct Effect {
    pub flags: i16,
    pub prev_ids: Vec<EventNid>,
    pub auth_ids: Vec<EventNid>,
    /// Snapshot of the state before it.
    pub before: SnapshotId,
    pub snapshots: Vec<NewSnapshot>,
    pub heads: Vec<Head>,
    /// Snapshot of the current state.
    pub snapshot: SnapshotHead,
    pub changes: Vec<Change>,
    pub redaction: Option<NewRedaction>,
    /// Predecessors that this server does not have; `None` for an event that was made here.
    pub gaps: Option<Vec<String>>,
    /// With it the members of the room are known.
    pub rebase: Option<Rebase>,
}

impl Effect {
    /// Of an event that is kept and changes nothing, right after the newest one.
    pub fn none(live: &Live, flags: i16) -> Self {
        Self {
            flags,
            prev_ids: Vec::new(),
            auth_ids: Vec::new(),
            before: live.snapshot.id,
            snapshots: Vec::new(),
            heads: live.heads.clone(),
            snapshot: live.snapshot.clone(),
            changes: Vec::new(),
            redaction: None,
            gaps: None,
            rebase: None,
        }
    }
}

/// Builds the rows of the event and moves the room's memory past it.
pub fn apply(
    live: &mut Live,
    signer: &Signer,
    draft: &Draft,
    with: &Prepared,
    pdu: Arc<Pdu>,
    sealed: SealedJson,
    mut effect: Effect,
) -> Result<SealedEvent> {
    let is_hidden = effect.flags & (flags::REJECTED | flags::SOFT_FAILED) != 0;
    if !is_hidden && is_to_send(live, signer, draft) {
        effect.flags |= flags::TO_SEND;
    }
    let unread = if is_hidden {
        Unread::default()
    } else {
        push::unread(live, draft, &with.rules, &with.deaf)
    };
    let members = membership_changes(live, signer, draft, &pdu, &effect)?;
    let new = new_event(live, with, &pdu, &sealed, &effect, &unread, &members, draft);
    let heads = NewHeads {
        events: effect.heads.iter().map(|head| (head.nid, head.snapshot)).collect(),
        state: effect.snapshot.id,
    };
    let row = event_row(live, draft, with, &pdu, &effect, unread, &members, is_hidden);
    move_on(live, effect, &members, row.redacts.as_ref())?;
    Ok(SealedEvent { new, heads: Some(heads), row })
}

/// Whether this server sends the event to others: there are some in the room, or it is about one
/// of their users.
fn is_to_send(live: &Live, signer: &Signer, draft: &Draft) -> bool {
    let is_about_another = || {
        let user = draft.state_key.as_deref().filter(|_| draft.kind == "m.room.member");
        let user = user.and_then(|user| <&UserId>::try_from(user).ok());
        user.is_some_and(|user| user.server_name() != signer.server_name)
    };
    let local = i64::try_from(live.members.len()).unwrap_or(i64::MAX);
    draft.route != Route::Received && (live.joined > local || live.is_partial || is_about_another())
}

/// A membership that changes, and the event that says so.
struct MemberChange {
    event: EventNid,
    sender: UserNid,
    pdu: Option<Arc<Pdu>>,
    change: MembershipChange,
}

#[expect(clippy::too_many_arguments, reason = "the parts of one event, each made by a step above")]
fn new_event(
    live: &Live,
    with: &Prepared,
    pdu: &Pdu,
    sealed: &SealedJson,
    effect: &Effect,
    unread: &Unread,
    members: &[MemberChange],
    draft: &Draft,
) -> NewEvent {
    let (relation, thread) = relations(draft);
    let own = effect.changes.iter().find(|change| is_now(change, pdu));
    let notifications = (!unread.notify.is_empty()).then(|| NewNotifications {
        thread: thread.map_or(String::new(), |root| root.to_string()),
        notify: unread.notify.clone(),
        highlight: unread.highlight.clone(),
    });
    NewEvent {
        nid: with.nid,
        snapshot: effect.before,
        depth: pdu.depth,
        origin_ts: pdu.origin_ts,
        key: with.key,
        replaces: own.and_then(|change| change.before),
        room: live.room,
        kind: with.kind,
        sender: with.sender,
        flags: flags_of(pdu, effect),
        event_id: pdu.event_id.to_string(),
        prev_ids: effect.prev_ids.clone(),
        auth_ids: effect.auth_ids.clone(),
        content: sealed.content.clone(),
        rest: sealed.rest.clone(),
        txn: with.txn.map(|digest| {
            let (device_id, txn_id) = draft.txn.clone().unwrap_or_default();
            NewTransaction { digest, device_id, txn_id }
        }),
        relation: relation
            .filter(|_| effect.flags & flags::REJECTED == 0)
            .map(|relation| (relation.event_id.to_string(), relation.rel_type)),
        notifications,
        redaction: effect.redaction.clone(),
        memberships: members.iter().map(new_membership).collect(),
        state_changes: effect
            .changes
            .iter()
            .map(|change| (change.key, change.now.as_ref().map(|pdu| pdu.nid), change.before))
            .collect(),
        snapshots: effect.snapshots.clone(),
        gaps: effect.gaps.clone(),
        rebase: effect.rebase.clone(),
    }
}

fn new_membership(member: &MemberChange) -> NewMembership {
    NewMembership {
        user: member.change.user,
        event: member.event,
        sender: member.sender,
        membership: member.change.now.letter(),
        is_local: member.change.is_local,
        stripped: member.change.stripped.as_ref().map(|events| array(events)),
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one event, each made by a step above")]
fn event_row(
    live: &Live,
    draft: &Draft,
    with: &Prepared,
    pdu: &Pdu,
    effect: &Effect,
    unread: Unread,
    members: &[MemberChange],
    is_hidden: bool,
) -> EventRow {
    let (relation, thread) = relations(draft);
    let (own, others): (Vec<&Change>, Vec<&Change>) =
        effect.changes.iter().partition(|change| is_now(change, pdu));
    let (own_member, other_members): (Vec<&MemberChange>, Vec<&MemberChange>) =
        members.iter().partition(|member| member.event == pdu.nid);
    EventRow {
        nid: with.nid,
        room: live.room,
        room_id: live.room_id.clone(),
        event_id: pdu.event_id.clone(),
        sender: draft.sender.clone(),
        sender_nid: with.sender,
        kind: Arc::from(draft.kind.as_str()),
        state_key: draft.state_key.as_deref().map(Arc::from),
        key: with.key,
        origin_ts: pdu.origin_ts,
        depth: pdu.depth,
        content: Arc::from(pdu.content.clone()),
        redacts_top_level: draft
            .redacts
            .clone()
            .filter(|_| !live.rules.redaction.content_field_redacts),
        redacts: pruned(draft, pdu, effect),
        relation,
        thread,
        replaced: own.first().and_then(|change| replaced(change)),
        is_current: !own.is_empty(),
        membership: own_member.first().map(|member| member.change.clone()),
        visibility: visibility_for(live, pdu, effect),
        txn: draft.txn.clone().map(|(device_id, txn_id)| SentBy {
            user: with.sender,
            device_id,
            txn_id,
        }),
        notify: unread.notify.into(),
        highlight: unread.highlight.into(),
        resolved: others
            .iter()
            .map(|change| (change.key, change.now.as_ref().map(|pdu| pdu.nid)))
            .collect(),
        resolved_members: other_members
            .iter()
            .map(|member| (member.event, member.change.clone()))
            .collect(),
        hidden: is_hidden,
        to_send: effect.flags & flags::TO_SEND != 0,
        extent: extent_with(live, effect),
    }
}

/// The event that this one redacts, if that takes effect.
fn pruned(draft: &Draft, pdu: &Pdu, effect: &Effect) -> Option<OwnedEventId> {
    match &effect.redaction {
        Some(NewRedaction::Prune { by, .. }) if *by == pdu.nid => draft.redacts.clone(),
        _ => None,
    }
}

/// What was in the place of a piece of state before.
fn replaced(change: &Change) -> Option<Replaced> {
    change.old.as_ref().map(|body| Replaced {
        event_id: body.event_id.clone(),
        sender: body.sender.clone(),
        content: Arc::from(body.content.clone()),
    })
}

/// How much of the room is here once the event is.
fn extent_with(live: &Live, effect: &Effect) -> Extent {
    match (live.is_partial, &effect.rebase) {
        (false, _) => Extent::Whole,
        (true, None) => Extent::Partial,
        (true, Some(_)) => Extent::Completed,
    }
}

fn is_now(change: &Change, pdu: &Pdu) -> bool {
    change.now.as_ref().is_some_and(|now| now.nid == pdu.nid)
}

pub fn array(events: &[Raw]) -> String {
    let parts: Vec<&str> = events.iter().map(|event| event.get()).collect();
    format!("[{}]", parts.join(","))
}

fn flags_of(pdu: &Pdu, effect: &Effect) -> i16 {
    let with_url = if has_url(&pdu.content) { flags::HAS_URL } else { 0 };
    let is_behind_gap = effect.gaps.as_ref().is_some_and(|gaps| !gaps.is_empty());
    effect.flags | with_url | if is_behind_gap { flags::BEHIND_GAP } else { 0 }
}

/// The event's relation, and the root of the thread that it is in.
fn relations(draft: &Draft) -> (Option<Relation>, Option<OwnedEventId>) {
    let relation = push::relation(&draft.content)
        .map(|(rel_type, event_id)| Relation { rel_type: rel_type.to_owned(), event_id });
    let thread = relation.as_ref().filter(|r| r.rel_type == "m.thread").map(|r| r.event_id.clone());
    (relation, thread)
}

/// For the event that changes the setting, the more open of the old and the new one.
fn visibility_for(live: &Live, pdu: &Pdu, effect: &Effect) -> Visibility {
    let openness = |visibility: Visibility| match visibility {
        Visibility::WorldReadable => 3,
        Visibility::Shared => 2,
        Visibility::Invited => 1,
        Visibility::Joined => 0,
    };
    let before = live.visibility();
    let is_setting = pdu.kind == TimelineEventType::RoomHistoryVisibility
        && pdu.state_key.as_deref() == Some("");
    if !is_setting || !effect.changes.iter().any(|change| is_now(change, pdu)) {
        return before;
    }
    let after = visibility_of(pdu.content_str("history_visibility").as_deref());
    if openness(after) > openness(before) { after } else { before }
}

/// The memberships that change, with what is shown to those who are invited.
fn membership_changes(
    live: &Live,
    signer: &Signer,
    draft: &Draft,
    pdu: &Pdu,
    effect: &Effect,
) -> Result<Vec<MemberChange>> {
    let mut members = Vec::new();
    for change in &effect.changes {
        let Some(body) = change.now.as_ref().or(change.old.as_ref()) else { continue };
        let (Some(user), Some(user_id)) = (change.user, &body.state_key) else { continue };
        let user_id = OwnedUserId::try_from(user_id.as_str()).map_err(|_| {
            Refusal::invalid_param("the state key of `m.room.member` is not a user id")
        })?;
        let word =
            |pdu: &Pdu| pdu.content_str("membership").and_then(|word| Membership::from_word(&word));
        let now = match &change.now {
            Some(now) => word(now).ok_or_else(|| {
                Refusal::bad_json("`membership` is missing or has an unknown value")
            })?,
            None => Membership::Leave,
        };
        let is_local = user_id.server_name() == signer.server_name;
        let wants_state = is_local && matches!(now, Membership::Invite | Membership::Knock);
        let is_own = is_now(change, pdu);
        let stripped =
            (wants_state && is_own).then(|| stripped_state(live, draft, &pdu.content).into());
        members.push(MemberChange {
            event: change.now.as_ref().map(|now| now.nid).or(change.before).unwrap_or(pdu.nid),
            sender: change.sender,
            pdu: change.now.clone(),
            change: MembershipChange {
                user,
                user_id,
                is_local,
                before: change.old.as_deref().and_then(word),
                now,
                stripped,
            },
        });
    }
    Ok(members)
}

/// State that invited and knocking users are shown (spec: stripped state).
pub const STRIPPED: [&str; 7] = [
    "m.room.create",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.avatar",
    "m.room.encryption",
    "m.room.name",
    "m.room.topic",
];

/// What somebody is shown who is invited or knocks by `draft`.
pub fn stripped_state(live: &Live, draft: &Draft, content: &RawValue) -> Vec<Raw> {
    let inviter = live.body("m.room.member", draft.sender.as_str());
    let own = stripped(
        &draft.kind,
        draft.state_key.as_deref().unwrap_or_default(),
        draft.sender.as_str(),
        content,
    );
    let inviter = inviter.filter(|_| draft.state_key.as_deref() != Some(draft.sender.as_str()));
    let inviter = inviter.and_then(|body| stripped_body(body));
    room_state_shown(live).into_iter().chain(inviter).chain(own).collect()
}

/// What anybody may see of the room who is not in it.
pub fn room_state_shown(live: &Live) -> Vec<Raw> {
    let bodies = STRIPPED.iter().filter_map(|kind| live.body(kind, ""));
    bodies.filter_map(|body| stripped_body(body)).collect()
}

fn stripped_body(body: &Pdu) -> Option<Raw> {
    let key = body.state_key.as_deref().unwrap_or_default();
    stripped(&body.kind.to_string(), key, body.sender.as_str(), &body.content)
}

fn stripped(kind: &str, state_key: &str, sender: &str, content: &RawValue) -> Option<Raw> {
    #[derive(serde::Serialize)]
    struct Stripped<'a> {
        r#type: &'a str,
        state_key: &'a str,
        sender: &'a str,
        content: &'a RawValue,
    }
    let event = Stripped { r#type: kind, state_key, sender, content };
    serde_json::value::to_raw_value(&event).ok().map(Arc::from)
}

/// Makes the event's effects part of the room's memory.
fn move_on(
    live: &mut Live,
    effect: Effect,
    members: &[MemberChange],
    redacts: Option<&OwnedEventId>,
) -> Result<()> {
    live.heads = effect.heads;
    live.is_partial &= effect.rebase.is_none();
    live.redactions_wait |= matches!(effect.redaction, Some(NewRedaction::Pending { .. }));
    live.snapshot = effect.snapshot;
    for member in members {
        move_member(live, member);
    }
    if let (Some(target), Some(NewRedaction::Prune { content, .. })) = (redacts, &effect.redaction)
        && let Some(body) = live.body_of_event(target).cloned()
    {
        let content =
            RawValue::from_string(content.clone()).map_err(chatd_base::Error::internal)?;
        live.set_body(Arc::new(Pdu { content, ..(*body).clone() }));
    }
    for change in effect.changes {
        match change.now {
            Some(now) => {
                live.state.insert(change.key, now.nid);
                live.set_body(now);
            }
            None => {
                live.state.remove(&change.key);
                if let Some(old) = &change.old {
                    live.remove_body(old);
                }
            }
        }
    }
    Ok(())
}

fn move_member(live: &mut Live, member: &MemberChange) {
    let change = &member.change;
    let was = change.before == Some(Membership::Join);
    let is = change.now == Membership::Join;
    live.joined += i64::from(is) - i64::from(was);
    if !change.is_local || !(was || is) {
        return;
    }
    let mut members: Vec<Member> =
        live.members.iter().filter(|member| member.user != change.user).cloned().collect();
    if is {
        let name = member.pdu.as_ref().and_then(|pdu| pdu.content_str("displayname"));
        members.push(Member {
            user: change.user,
            user_id: change.user_id.clone(),
            display_name: name.unwrap_or_default(),
        });
    }
    live.members = Arc::new(members);
}
