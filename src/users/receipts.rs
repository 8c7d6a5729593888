//! Read receipts. They never move backwards; nor does the marker of what has been read in full, which
//! is account data (`fully_read.rs`).

use std::sync::Arc;

use chatd_base::{Position, Refusal, Requester, Result, RoomNid, UserNid};
use chatd_storage::{
    Pool, events,
    receipts::{self, Marker},
    remote_edus,
};
use chatd_streams::{
    Writer,
    receipts::{ReceiptRow, Receipts as ReceiptsStream},
};
use futures::future::try_join_all;
use ruma_common::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId};
use serde::Deserialize;

use crate::{
    Deps,
    account_data::AccountData,
    fully_read::{FULLY_READ, FullyRead},
    locks::UserLocks,
    logins::ts,
};

/// The thread that is none, and the relation that makes one.
const MAIN: &str = "main";
const THREAD: &str = "m.thread";
/// Longest thread id, in bytes.
const MAX_THREAD_BYTES: usize = 255;

/// What kind of receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    ReadPrivate,
    FullyRead,
}

impl Kind {
    /// The kind that a client's word means.
    pub fn parse(word: &str) -> Result<Self> {
        match word {
            "m.read" => Ok(Self::Read),
            "m.read.private" => Ok(Self::ReadPrivate),
            FULLY_READ => Ok(Self::FullyRead),
            _ => Err(Refusal::invalid_param(
                "the receipt type must be m.read, m.read.private or m.fully_read",
            )
            .into()),
        }
    }
}

/// A receipt of a user of another server.
#[derive(Clone, Debug)]
pub struct RemoteReceipt {
    pub room_id: OwnedRoomId,
    pub user_id: OwnedUserId,
    pub event_id: OwnedEventId,
    /// `main`, the root's event id, or absent.
    pub thread: Option<String>,
    pub ts: i64,
}

impl RemoteReceipt {
    /// Whether its thread is one.
    pub fn is_sound(&self) -> bool {
        check_thread(Kind::Read, self.thread.as_deref()).is_ok()
    }
}

/// Receipts of this server's users.
pub struct Receipts {
    deps: Deps,
    writer: Writer<ReceiptsStream>,
    account_data: Arc<AccountData>,
    locks: UserLocks,
}

impl Receipts {
    pub(crate) fn new(deps: &Deps, account_data: &Arc<AccountData>) -> Self {
        let streams = &deps.streams;
        let writer = Writer::open(streams, &streams.receipts, &deps.pool, &deps.stop);
        let account_data = account_data.clone();
        Self { deps: deps.clone(), writer, account_data, locks: UserLocks::new() }
    }

    /// Moves a receipt of the requester to an event; one that is further already stays. On return
    /// it is durable. `thread` is `main`, the root's event id, or absent.
    pub async fn set(
        &self,
        who: &Requester,
        room_id: &RoomId,
        kind: Kind,
        event_id: &EventId,
        thread: Option<String>,
    ) -> Result<()> {
        check_thread(kind, thread.as_deref())?;
        if kind == Kind::FullyRead {
            let (user, room_id, event_id) = (who.user, room_id.to_owned(), event_id.to_owned());
            let mark = FullyRead { user, room_id, event_id };
            return self.account_data.move_fully_read(&mark).await;
        }
        let _line = self.locks.of(who.user).await;
        let is_private = kind == Kind::ReadPrivate;
        let marker = Marker::Receipt { is_private };
        let (pool, of_thread) = (&self.deps.pool, thread.as_deref().unwrap_or_default());
        let goal = Goal::get(pool, room_id, who.user, event_id, marker, of_thread).await?;
        if let Some(thread) = &thread {
            self.check_is_in_thread(event_id, &goal.content, thread).await?;
        }
        if goal.is_passed {
            return Ok(());
        }
        let row = ReceiptRow {
            room: goal.room,
            room_id: room_id.to_owned(),
            user: who.user,
            user_id: who.user_id.clone(),
            is_private,
            thread,
            event_id: event_id.to_owned(),
            event_pos: goal.at,
            ts: ts(self.deps.clock.now_ms()),
        };
        self.writer.append(row).await?;
        Ok(())
    }

    /// Moves receipts of users of other servers; those who are not in the room, and events that are
    /// not known, are passed over. On return they are durable.
    pub async fn set_remote(&self, receipts: Vec<RemoteReceipt>) -> Result<()> {
        let wanted: Vec<remote_edus::Wanted<'_>> = receipts
            .iter()
            .map(|receipt| remote_edus::Wanted {
                room_id: receipt.room_id.as_str(),
                user_id: receipt.user_id.as_str(),
                event_id: receipt.event_id.as_str(),
                thread: receipt.thread.as_deref().unwrap_or_default(),
            })
            .collect();
        let targets = remote_edus::list_targets(&self.deps.pool, &wanted).await?;
        let mut rows = Vec::with_capacity(targets.len());
        for target in targets {
            let is_behind = target.stands_at.is_some_and(|at| at >= target.event_pos);
            let Some(receipt) = receipts.get(target.index).filter(|_| !is_behind) else { continue };
            rows.push(ReceiptRow {
                room: target.room,
                room_id: receipt.room_id.clone(),
                user: target.user,
                user_id: receipt.user_id.clone(),
                is_private: false,
                thread: receipt.thread.clone(),
                event_id: receipt.event_id.clone(),
                event_pos: target.event_pos,
                ts: receipt.ts,
            });
        }
        try_join_all(rows.into_iter().map(|row| self.writer.append(row))).await?;
        Ok(())
    }

    /// Refuses an event that is in another thread: a receipt there would never count. What relates
    /// to an event is in its thread, and a root is in both.
    async fn check_is_in_thread(
        &self,
        event_id: &EventId,
        content: &str,
        thread: &str,
    ) -> Result<()> {
        let root = match relation(content) {
            Some(relation) if relation.rel_type == THREAD => Some(relation.event_id),
            Some(other) => {
                let parent = events::get_by_id(&self.deps.pool, &other.event_id).await?;
                let above = parent.and_then(|parent| relation(parent.content.get()));
                above.filter(|above| above.rel_type == THREAD).map(|above| above.event_id)
            }
            None => None,
        };
        if root.as_deref().unwrap_or(MAIN) == thread || event_id == thread {
            return Ok(());
        }
        let message = format!("the event {event_id} is not in the thread {thread}");
        Err(Refusal::invalid_param(message).into())
    }
}

/// Where a receipt or marker is to go.
pub(crate) struct Goal {
    pub room: RoomNid,
    /// Position of the event.
    pub at: Position,
    /// Whether it stands there already, or further.
    pub is_passed: bool,
    /// Content of the event, if the receipt is one of a thread.
    content: String,
}

impl Goal {
    /// Refuses what is no event of a room in which the user is.
    pub async fn get(
        pool: &Pool,
        room_id: &RoomId,
        user: UserNid,
        event_id: &EventId,
        marker: Marker,
        thread: &str,
    ) -> Result<Self> {
        let (room, event) = (room_id.as_str(), event_id.as_str());
        let target = receipts::get_target(pool, room, user, event, marker, thread).await?;
        let target = target.filter(|target| target.is_joined);
        let target = target.ok_or_else(|| Refusal::forbidden("you are not in this room"))?;
        let at =
            target.event_pos.ok_or_else(|| Refusal::not_found("the room has no such event"))?;
        let is_passed = target.stands_at.is_some_and(|stands_at| stands_at >= at);
        let content = target.content.unwrap_or_default();
        Ok(Self { room: target.room, at, is_passed, content })
    }
}

fn relation(content: &str) -> Option<Relation> {
    serde_json::from_str::<Related>(content).ok()?.relates_to
}

/// What the content of an event says about its relation.
#[derive(Deserialize)]
struct Related {
    #[serde(rename = "m.relates_to")]
    relates_to: Option<Relation>,
}

#[derive(Deserialize)]
struct Relation {
    rel_type: String,
    event_id: String,
}

fn check_thread(kind: Kind, thread: Option<&str>) -> Result<()> {
    let Some(thread) = thread else { return Ok(()) };
    if kind == Kind::FullyRead {
        return Err(Refusal::invalid_param("m.fully_read has no thread_id").into());
    }
    if thread.is_empty() || thread.len() > MAX_THREAD_BYTES {
        return Err(Refusal::invalid_param("thread_id must be a non-empty string").into());
    }
    if thread != MAIN && !thread.starts_with('$') {
        return Err(Refusal::invalid_param("thread_id must be `main` or an event id").into());
    }
    Ok(())
}
