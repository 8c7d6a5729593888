//! `limit_remote_rooms`: rooms that are too much for this server are not joined. A server in them
//! says so before, or the state that the join is answered with does, and then nothing of the room
//! is taken in and the other server is told of a leave.

use std::time::Duration;

use chatd_base::{Refusal, Requester, Result};
use chatd_config::RemoteRooms;
use chatd_rooms::Import;
use chatd_servers::{Ask, Retries};
use chatd_streams::events::Membership;
use ruma_common::{OwnedServerName, RoomId, ServerName};
use serde_json::Map;

use super::{Joining, template::Wish};
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

    /// Refuses a room that turns out to be too complex, and has `server`, which has let the user
    /// in, put the user out again. If it does not, the room knows of a member who is in no room
    /// here: whoever asks again is refused again.
    pub(super) async fn check_told(
        &self,
        limit: Limit<'_>,
        server: &ServerName,
        wish: &Wish<'_>,
        told: &Import,
    ) -> Result<()> {
        // The join is a piece of state too.
        let complexity = Complexity::of_state(told.state.len() + 1);
        if let Err(refusal) = limit.check(complexity) {
            tracing::info!(room.id = %wish.room_id, complexity.v1,
                "a room is too complex to stay in");
            let membership = Membership::Leave;
            let leave = Wish { membership, content: Map::new(), ..wish.clone() };
            self.leave_by(vec![server.to_owned()], &leave).await;
            return Err(refusal.into());
        }
        Ok(())
    }
}
