//! Room events. Written by room owners (`rooms`), each in its shards.

use std::sync::Arc;

use chatd_base::{EventNid, KeyNid, Position, RoomNid, SnapshotId, UserNid};
use chatd_config::StreamName;
use chatd_storage::{
    events::{ReplacedEvent, StoredEvent, Transaction, flags},
    positions::{self, StreamId},
};
use ruma_common::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::{Concerns, Key, Raw, Stream, shard_of};

pub struct Events;

impl Stream for Events {
    const NAME: &'static str = "events";
    const KIND: StreamName = StreamName::Events;
    const ID: StreamId = positions::EVENTS;
    type Row = Arc<EventRow>;

    /// What changes the state of a room matters to many views, a message to those who are there.
    fn concerns(row: &Self::Row) -> Concerns {
        let changes_state = row.is_current
            || row.membership.is_some()
            || !row.resolved.is_empty()
            || !row.resolved_members.is_empty()
            || row.extent == Extent::Completed;
        match changes_state {
            true => Concerns::Everybody,
            false => Concerns::only([Key::Shard(shard_of(&row.room_id)), Key::Room(row.room)]),
        }
    }
}

/// An event that has become part of a room's timeline on this server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventRow {
    pub nid: EventNid,
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub event_id: OwnedEventId,
    pub sender: OwnedUserId,
    pub sender_nid: UserNid,
    pub kind: Arc<str>,
    pub state_key: Option<Arc<str>>,
    pub key: Option<KeyNid>,
    pub origin_ts: i64,
    pub depth: i64,
    /// Content as clients get it.
    pub content: Raw,
    /// `redacts`, for room versions that have it outside of the content.
    pub redacts_top_level: Option<OwnedEventId>,
    /// The event that it redacts, in every version, if the redaction took effect.
    pub redacts: Option<OwnedEventId>,
    pub relation: Option<Relation>,
    /// Root of the thread that it is in.
    pub thread: Option<OwnedEventId>,
    /// For a state event that changed the current state: what was there before.
    pub replaced: Option<Replaced>,
    /// Whether it became (part of) the current state.
    pub is_current: bool,
    /// For an `m.room.member` that became current: what changed.
    pub membership: Option<MembershipChange>,
    /// Visibility setting in force for this event.
    pub visibility: Visibility,
    /// The request that made it, if it was a local one with a transaction id.
    pub txn: Option<SentBy>,
    /// Local users with something to read because of it.
    pub notify: Arc<[UserNid]>,
    /// Those of `notify` whose count is a highlight.
    pub highlight: Arc<[UserNid]>,
    /// Further changes of the current state that this event brought about through state
    /// resolution (key, new event if any).
    pub resolved: Vec<(KeyNid, Option<EventNid>)>,
    /// Memberships among these changes, each with the member event that is in force now.
    pub resolved_members: Vec<(EventNid, MembershipChange)>,
    /// Not shown in timelines (rejected or soft-failed).
    pub hidden: bool,
    /// This server sends it to others.
    #[serde(default)]
    pub to_send: bool,
    /// How much of the room is here, with this event.
    #[serde(default)]
    pub extent: Extent,
}

/// How much of a room is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    #[default]
    Whole,
    /// It was joined without its members, and they have not come yet.
    Partial,
    /// They have come with this event. Those of other servers are in the tables as if they had been
    /// there all the time, and in no row.
    Completed,
}

/// `m.relates_to` with a `rel_type`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    pub rel_type: String,
    pub event_id: OwnedEventId,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replaced {
    pub event_id: OwnedEventId,
    pub sender: OwnedUserId,
    pub content: Raw,
}

/// `m.room.member` in small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Membership {
    Join,
    Invite,
    Leave,
    Ban,
    Knock,
}

impl Membership {
    /// The letter in the tables.
    pub fn letter(self) -> i8 {
        match self {
            Self::Join => b'j' as i8,
            Self::Invite => b'i' as i8,
            Self::Leave => b'l' as i8,
            Self::Ban => b'b' as i8,
            Self::Knock => b'k' as i8,
        }
    }

    /// The membership that a letter in the tables stands for.
    pub fn from_letter(letter: i8) -> Option<Self> {
        [Self::Join, Self::Invite, Self::Leave, Self::Ban, Self::Knock]
            .into_iter()
            .find(|membership| membership.letter() == letter)
    }

    /// The word in the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Leave => "leave",
            Self::Ban => "ban",
            Self::Knock => "knock",
        }
    }

    /// The membership that a word in an event stands for.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Join, Self::Invite, Self::Leave, Self::Ban, Self::Knock]
            .into_iter()
            .find(|membership| membership.as_str() == word)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MembershipChange {
    pub user: UserNid,
    pub user_id: OwnedUserId,
    pub is_local: bool,
    pub before: Option<Membership>,
    pub now: Membership,
    /// For invites and knocks of local users: stripped state as it goes into the answer.
    pub stripped: Option<Arc<[Raw]>>,
}

/// `m.room.history_visibility`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Visibility {
    WorldReadable,
    #[default]
    Shared,
    Invited,
    Joined,
}

/// Which device's request made an event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SentBy {
    pub user: UserNid,
    pub device_id: String,
    pub txn_id: String,
}

/// A row with its position.
pub type At = (Position, Arc<EventRow>);

/// What a live row is as an event. The snapshot is not on the row and stays 0.
pub fn stored(position: Position, row: &EventRow) -> StoredEvent {
    StoredEvent {
        nid: row.nid,
        pos: position,
        snapshot: SnapshotId(0),
        depth: row.depth,
        origin_ts: row.origin_ts,
        room: row.room,
        room_id: row.room_id.clone(),
        event_id: row.event_id.clone(),
        sender: row.sender.clone(),
        sender_nid: row.sender_nid,
        kind: row.kind.clone(),
        state_key: row.state_key.clone(),
        key: row.key,
        content: row.content.clone(),
        redacts: row.redacts_top_level.clone(),
        flags: if row.hidden { flags::SOFT_FAILED } else { 0 },
        redacted_by: None,
        replaced: row.replaced.as_ref().map(|replaced| ReplacedEvent {
            event_id: replaced.event_id.clone(),
            sender: replaced.sender.clone(),
            content: replaced.content.clone(),
        }),
        txn: row.txn.as_ref().map(|txn| Transaction {
            user: txn.user,
            device_id: txn.device_id.clone(),
            txn_id: txn.txn_id.clone(),
        }),
    }
}
