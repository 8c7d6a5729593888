//! Joining rooms.

use std::time::Duration;

use chatd_base::{Error, Refusal, Requester, Result};
use chatd_rooms::membership::Extra;
use chatd_servers::{Ask, Failure};
use chatd_streams::events::Membership;
use futures::future::BoxFuture;
use ruma_common::{OwnedServerName, RoomId, ServerName};

use super::{Joining, candidates::Trial, limit::Limit, template::Wish};

/// How long another server may take to tell all of a room, which is checked meanwhile.
pub(super) const TELLING: Duration = Duration::from_secs(300);
/// Largest answer to a join (R8): a room of some hundred thousand members.
pub(super) const MOST_BYTES: usize = 256 * 1024 * 1024;

impl Joining {
    /// Makes the requester a member. On return the join is durable, and the requester's next sync
    /// has it. `servers` may know the room.
    pub async fn join(
        &self,
        who: &Requester,
        room_id: &RoomId,
        servers: &[OwnedServerName],
        extra: Extra,
    ) -> Result<()> {
        let _turn = self.turn_of(&who.user_id, room_id).await;
        let rooms = &self.deps.rooms;
        let is_in = rooms.owner.is_in(room_id).await?;
        if is_in && !self.needs_others(who, room_id).await? {
            return rooms.join(who, room_id, extra).await;
        }
        let reason = extra.reason.as_deref();
        let wished = self.wish(who, room_id, servers, Membership::Join, reason).await?;
        let (wish, candidates) = &wished;
        let limit = match self.limit_for(who).filter(|_| !is_in) {
            Some(limit) if !self.check_before(limit, room_id, candidates).await? => Some(limit),
            _ => None,
        };
        // What is not known of a room is not counted either.
        let attempt = |server| -> BoxFuture<'_, _> { Box::pin(self.join_by(server, wish, limit)) };
        self.by_first(room_id, candidates, attempt).await?;
        rooms.inherit(who, room_id).await;
        Ok(())
    }

    /// Whether nobody here can let the user into a room which others may.
    async fn needs_others(&self, who: &Requester, room_id: &RoomId) -> Result<bool> {
        let owner = &self.deps.rooms.owner;
        if owner.is_partial(room_id).await? {
            // Only they know what the user is in the room, unless the user is in it.
            let standing = owner.standing(&who.user_id, room_id).await?;
            return Ok(standing.is_none_or(|standing| standing.membership != Membership::Join));
        }
        match self.deps.rooms.check_join_rule(&who.user_id, room_id).await {
            Err(error) if error.errcode() == Some("M_UNABLE_TO_GRANT_JOIN") => Ok(true),
            Err(error) if error.errcode() == Some(Refusal::NOT_OWNER) => Err(error),
            _ => Ok(false),
        }
    }

    /// Joins by one server; `limit` is what the room may be if nobody has said what it is.
    async fn join_by(
        &self,
        server: &ServerName,
        wish: &Wish<'_>,
        limit: Option<Limit<'_>>,
    ) -> Result<(), Trial> {
        let made = self.make(server, wish).await?;
        // As soon as that server lets the user in, the others send what happens in the room.
        let _way = self.deps.rooms.owner.expect(wish.room_id, &made.version).await?;
        self.inbound.note_room(wish.room_id);
        let may_omit = limit.is_none() && self.deps.rooms.owner.may_omit(wish.room_id).await?;
        let large = |mut ask: Ask| {
            if may_omit {
                ask.path.push_str("?omit_members=true");
            }
            ask.within(TELLING).most_bytes(MOST_BYTES)
        };
        let body = self.send(server, wish, &made, &["v2", "v1"], large).await?;
        let import = self.read_answer(server, wish.room_id, made, body, may_omit).await?;
        if let Some(limit) = limit {
            self.check_told(limit, server, wish, &import).await?;
        }
        match self.deps.rooms.owner.import(import).await {
            Ok(_) => {
                self.history.close_gaps(wish.room_id);
                self.resync.kick();
                Ok(())
            }
            Err(Error::Refused(refusal)) if refusal.status < 500 && !is_ours(&refusal) => {
                let why = format!("{server} has answered what is no room: {}", refusal.message);
                Err(Trial::Theirs(Failure::Odd(why)))
            }
            Err(error) => Err(Trial::Ours(error)),
        }
    }
}

fn is_ours(refusal: &Refusal) -> bool {
    refusal.errcode == Refusal::NOT_OWNER
}
