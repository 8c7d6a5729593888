//! Memberships of users of this server in rooms that it is not in: invites that another server
//! sends, knocks, and what becomes of them. The event is stored without a place in the room; the
//! user is told of it at its position in the stream.

use std::sync::Arc;

use chatd_base::{
    EventNid, KeyNid, Position, Refusal, Result, RoomNid, SnapshotId, TypeNid, UserNid,
};
use chatd_storage::{
    graph,
    lane::{NewEvent, NewMembership, flags},
    rooms,
};
use chatd_streams::{
    Raw,
    events::{EventRow, Extent, Membership, MembershipChange, Visibility},
};
use ruma_common::{CanonicalJsonObject, EventId, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::{
    effect,
    incoming::{self, Incoming},
    lane::{Job, Outcome, SealedEvent},
    owner::{RoomOwner, Sent, Settled, Slot, UNSETTLED, away, lock, settle},
    pdu::Pdu,
    seal::{self, Draft, Reference, SealedJson, Unsealed},
};

/// Somebody here who has a membership in a room of others.
#[derive(Clone, Debug)]
pub struct OutOfBand {
    pub version: RoomVersionId,
    /// The member event, which has been checked.
    pub event: CanonicalJsonObject,
    /// What the user is shown of the room: events of any form, of which little is kept.
    pub shown: Vec<Box<RawValue>>,
}

/// What a user is in a room, and by which event.
#[derive(Clone, Debug)]
pub struct Standing {
    pub membership: Membership,
    pub event: Arc<Pdu>,
    pub version: RoomVersionId,
}

impl RoomOwner {
    /// Whether somebody of this server is joined to the room.
    pub async fn is_in(&self, room_id: &RoomId) -> Result<bool> {
        match self.slot(room_id).await {
            Ok(slot) => Ok(!lock(&slot).lock().members.is_empty()),
            Err(error) if error.errcode() == Some("M_FORBIDDEN") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a user of this server is in a room, whether or not the server is in it.
    pub async fn standing(&self, user: &UserId, room_id: &RoomId) -> Result<Option<Standing>> {
        let Some(room) = rooms::get(&self.pool, room_id.as_str()).await? else { return Ok(None) };
        // Whoever has no number is nothing anywhere, and gets none by a question.
        let known = self.users.deps.interner.known_users(&[user.as_str()]).await?;
        let Some(user) = known.first().copied().flatten() else { return Ok(None) };
        let Some((letter, event)) = rooms::get_member(&self.pool, user, room.nid).await? else {
            return Ok(None);
        };
        let version =
            RoomVersionId::try_from(room.version.as_str()).map_err(chatd_base::Error::internal)?;
        let has_hash_id =
            version.rules().is_some_and(|r| r.authorization.room_create_event_id_as_room_id);
        let event = graph::list_events(&self.pool, &[event]).await?.pop();
        let (Some(event), Some(membership)) = (event, Membership::from_letter(letter)) else {
            return Ok(None);
        };
        let event =
            Pdu::from_graph(event, room_id, has_hash_id).map_err(chatd_base::Error::internal)?;
        Ok(Some(Standing { membership, event: Arc::new(event), version }))
    }

    /// Notes a membership in a room that this server is not in. On return it is durable. An event
    /// that is known has no effect.
    pub async fn note(&self, room_id: &RoomId, what: OutOfBand) -> Result<Sent> {
        let _one = self.importing.of(room_id).await;
        let (shard, epoch) = self.owners.own(room_id).await?;
        let rules = what.version.rules().ok_or_else(|| {
            Refusal::unsupported_room_version(format!("room version {}", what.version))
        })?;
        let room = self.known_room(room_id, &what.version).await?.nid;
        let event = incoming::read(what.event, &rules, room_id)?;
        let id = event.pdu.event_id.clone();
        let known = graph::list_places(&self.pool, &[id.as_str()]).await?;
        if known.contains_key(id.as_str()) {
            return Ok(Sent { event_id: id, position: Position(0) });
        }
        let event = self.row_of(room_id, room, event, &what.shown).await?;
        let permit = self.reserve(false).await?;
        let (outcome, waits) = watch::channel(Outcome::Waiting);
        let slot = Arc::new(Slot::new());
        slot.queued();
        permit.send(Job {
            slot,
            room,
            shard,
            epoch,
            new_room: None,
            events: vec![event],
            outcome,
            place: None,
            hold: None,
        });
        match settle(waits).await? {
            Settled::Sent(sent) => Ok(sent),
            Settled::Again => Err(away(UNSETTLED).into()),
            Settled::Moved => {
                self.owners.refresh().await?;
                Err(Refusal::not_owner(String::new()).into())
            }
        }
    }

    /// The event as the lane writes it.
    async fn row_of(
        &self,
        room_id: &RoomId,
        room: RoomNid,
        event: Incoming,
        shown: &[Box<RawValue>],
    ) -> Result<SealedEvent> {
        let Incoming { pdu, sealed } = event;
        let member = |why: &str| Refusal::bad_json(format!("the event is no membership: {why}"));
        let user = pdu.state_key.as_deref().ok_or_else(|| member("it has no state key"))?;
        let user_id = OwnedUserId::try_from(user).map_err(|_| member("of no user"))?;
        let now = pdu.content_str("membership").and_then(|word| Membership::from_word(&word));
        let now = now.ok_or_else(|| member("it does not say which"))?;
        let interner = &self.users.deps.interner;
        let users = interner.users(&[pdu.sender.as_str(), user]).await?;
        let (sender, user) = (users[0], users[1]);
        let kind = interner.types(&["m.room.member"]).await?[0];
        let key = interner.keys(&[("m.room.member", user_id.as_str())]).await?[0];
        let before = rooms::get_membership(&self.pool, user, room).await?;
        let stripped: Option<Arc<[Raw]>> = matches!(now, Membership::Invite | Membership::Knock)
            .then(|| stripped(shown, &pdu).into());
        let change = MembershipChange {
            user,
            user_id,
            is_local: true,
            before: before.and_then(Membership::from_letter),
            now,
            stripped,
        };
        let (nid, auth_ids) = (self.next_event().await?, self.known_nids(&pdu).await?);
        let numbers = Numbers { nid, room, sender, kind, key };
        let new = new_event(numbers, &pdu, sealed, auth_ids, &change);
        let row = event_row(numbers, room_id, pdu, change);
        Ok(SealedEvent { new, heads: None, row })
    }

    async fn known_nids(&self, pdu: &Pdu) -> Result<Vec<EventNid>> {
        let ids: Vec<&str> = pdu.auth_events.iter().map(|id| id.as_str()).collect();
        let places = graph::list_places(&self.pool, &ids).await?;
        Ok(ids.iter().filter_map(|id| Some(places.get(*id)?.nid)).collect())
    }

    /// An event by which the user leaves after `standing`, of which no other server hears: for the
    /// case that none of them answers.
    pub fn lonely_leave(
        &self,
        room_id: &RoomId,
        standing: &Standing,
        draft: &Draft,
    ) -> Result<CanonicalJsonObject> {
        let rules = standing.version.rules().ok_or_else(|| {
            Refusal::unsupported_room_version(format!("room version {}", standing.version))
        })?;
        let before = &standing.event;
        let reference = |id: &EventId, hash: &Option<String>| Reference {
            event_id: id.to_owned(),
            hash: hash.clone(),
        };
        let prev = [reference(&before.event_id, &before.hash)];
        let auth: Vec<Reference> = before
            .auth_events
            .iter()
            .map(|id| reference(id, &None))
            .chain(prev.iter().cloned())
            .collect();
        seal::sign(
            &self.signer,
            &rules,
            &Unsealed {
                draft,
                room_id: Some(room_id),
                origin_ts: self.now_ms(),
                depth: before.depth + 1,
                prev_events: &prev,
                auth_events: &auth,
            },
        )
    }
}

/// What the tables call an event, and what it names.
#[derive(Clone, Copy)]
struct Numbers {
    nid: EventNid,
    room: RoomNid,
    sender: UserNid,
    kind: TypeNid,
    key: KeyNid,
}

/// The event as the tables keep it: one without a place, and what the user is with it.
fn new_event(
    numbers: Numbers,
    pdu: &Pdu,
    sealed: SealedJson,
    auth_ids: Vec<EventNid>,
    change: &MembershipChange,
) -> NewEvent {
    let Numbers { nid, room, sender, kind, key } = numbers;
    NewEvent {
        nid,
        snapshot: SnapshotId(0),
        depth: pdu.depth,
        origin_ts: pdu.origin_ts,
        key: Some(key),
        replaces: None,
        room,
        kind,
        sender,
        flags: flags::OUTLIER,
        event_id: pdu.event_id.to_string(),
        prev_ids: Vec::new(),
        auth_ids,
        content: sealed.content,
        rest: sealed.rest,
        txn: None,
        relation: None,
        notifications: None,
        redaction: None,
        memberships: vec![NewMembership {
            user: change.user,
            event: nid,
            sender,
            membership: change.now.letter(),
            is_local: true,
            stripped: change.stripped.as_deref().map(effect::array),
        }],
        state_changes: Vec::new(),
        snapshots: Vec::new(),
        rebase: None,
        gaps: None,
    }
}

/// The event as the others are told of it.
fn event_row(numbers: Numbers, room_id: &RoomId, pdu: Pdu, change: MembershipChange) -> EventRow {
    EventRow {
        nid: numbers.nid,
        room: numbers.room,
        room_id: room_id.to_owned(),
        event_id: pdu.event_id,
        sender: pdu.sender,
        sender_nid: numbers.sender,
        kind: Arc::from("m.room.member"),
        state_key: pdu.state_key.as_deref().map(Arc::from),
        key: Some(numbers.key),
        origin_ts: pdu.origin_ts,
        depth: pdu.depth,
        content: Arc::from(pdu.content),
        redacts_top_level: None,
        redacts: None,
        relation: None,
        thread: None,
        replaced: None,
        is_current: false,
        membership: Some(change),
        visibility: Visibility::default(),
        txn: None,
        notify: Arc::default(),
        highlight: Arc::default(),
        resolved: Vec::new(),
        resolved_members: Vec::new(),
        hidden: true,
        to_send: false,
        extent: Extent::default(),
    }
}

/// What is shown of a room to somebody who is not in it: four members of each event, whatever
/// another server has made of it, and the membership itself.
fn stripped(shown: &[Box<RawValue>], own: &Pdu) -> Vec<Raw> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Stripped<'a> {
        r#type: std::borrow::Cow<'a, str>,
        state_key: std::borrow::Cow<'a, str>,
        sender: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    let is_own = |event: &Stripped<'_>| {
        event.r#type == "m.room.member" && own.state_key.as_deref() == Some(&*event.state_key)
    };
    let own_event = Stripped {
        r#type: "m.room.member".into(),
        state_key: own.state_key.as_deref().unwrap_or_default().into(),
        sender: own.sender.as_str().into(),
        content: &own.content,
    };
    let others = shown.iter().filter_map(|event| serde_json::from_str(event.get()).ok());
    others
        .filter(|event| !is_own(event))
        .chain([own_event])
        .filter_map(|event| serde_json::value::to_raw_value(&event).ok())
        .map(Arc::from)
        .collect()
}
