//! `limit_remote_rooms`: rooms that are too much for this server are not joined, as far as a server
//! in them says so before; else they are left again.

use std::time::Duration;

use chatd_base::{Refusal, Requester, Result};
use chatd_config::RemoteRooms;
use chatd_rooms::membership::Extra;
use chatd_servers::{Ask, Retries};
use ruma_common::{OwnedServerName, RoomId};

use super::Joining;
use crate::{Complexity, uri};

/// Servers that are asked, and how long each may take.
const MOST: usize = 3;
const WITHIN: Duration = Duration::from_secs(10);
const MOST_BYTES: usize = 64 << 10;

/// What a room may be that somebody joins.
#[derive(Clone, Copy)]
pub(super) struct Limit<'a>(&'a RemoteRooms);

impl Limit<'_> {
    fn check(self, complexity: Complexity) -> Result<(), Refusal> {
        if complexity.v1 <= self.0.complexity {
            return Ok(());
        }
        let message = self.0.complexity_error.as_str();
        Err(Refusal::new(400, "M_RESOURCE_LIMIT_EXCEEDED", message))
    }
}

impl Joining {
    /// The limit for rooms that `who` joins, if there is one.
    pub(super) fn limit_for(&self, who: &Requester) -> Option<Limit<'_>> {
        let limit = &self.deps.config.federation.remote_rooms;
        let is_free = who.is_admin && limit.admins_can_join;
        (limit.enabled && !is_free).then_some(Limit(limit))
    }

    /// Refuses a room that is too complex as one of the servers says; false if none says anything.
    pub(super) async fn check_before(
        &self,
        limit: Limit<'_>,
        room_id: &RoomId,
        servers: &[OwnedServerName],
    ) -> Result<bool> {
        for server in servers.iter().take(MOST) {
            let target = uri!("/_matrix/federation/unstable/rooms/{}/complexity", room_id);
            let ask = Ask::get(target).within(WITHIN).most_bytes(MOST_BYTES);
            let ask = ask.retries(Retries::None);
            match self.deps.servers.client.ask_json::<Complexity>(server, ask).await {
                Ok(complexity) => return Ok(limit.check(complexity).map(|()| true)?),
                Err(failure) => {
                    tracing::debug!(room.id = %room_id, %server, %failure,
                        "a server does not say how complex a room is");
                }
            }
        }
        Ok(false)
    }

    /// Leaves a room that turns out to be too complex, and refuses it.
    pub(super) async fn check_after(
        &self,
        limit: Limit<'_>,
        who: &Requester,
        room_id: &RoomId,
    ) -> Result<()> {
        let rooms = &self.deps.rooms;
        let complexity = Complexity::of_state(rooms.owner.count_state(room_id).await?);
        if let Err(refusal) = limit.check(complexity) {
            tracing::info!(room.id = %room_id, complexity.v1, "a room is too complex to stay in");
            rooms.leave(&who.user_id, room_id, Extra::default()).await?;
            return Err(refusal.into());
        }
        Ok(())
    }
}
