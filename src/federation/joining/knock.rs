//! Knocking at rooms.

use chatd_base::{Requester, Result};
use chatd_rooms::{OutOfBand, membership::Extra};
use chatd_servers::Failure;
use chatd_streams::events::Membership;
use futures::future::BoxFuture;
use ruma_common::{OwnedServerName, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Joining, candidates::Trial, template::Wish};

#[derive(Deserialize)]
struct Answer {
    #[serde(default, alias = "knock_state_events")]
    knock_room_state: Vec<Box<RawValue>>,
}

impl Joining {
    /// Asks to be let into a room. On return the knock is durable.
    pub async fn knock(
        &self,
        who: &Requester,
        room_id: &RoomId,
        servers: &[OwnedServerName],
        extra: Extra,
    ) -> Result<()> {
        let _turn = self.turn_of(&who.user_id, room_id).await;
        let rooms = &self.deps.rooms;
        if rooms.owner.is_in(room_id).await? {
            rooms.whole(room_id).await?;
            return rooms.knock(who, room_id, extra).await;
        }
        let reason = extra.reason.as_deref();
        let wished = self.wish(who, room_id, servers, Membership::Knock, reason).await?;
        let (wish, candidates) = &wished;
        let attempt = |server| -> BoxFuture<'_, _> { Box::pin(self.knock_by(server, wish)) };
        let note = self.by_first(room_id, candidates, attempt).await?;
        rooms.owner.note(room_id, note).await.map(drop)
    }

    async fn knock_by(&self, server: &ServerName, wish: &Wish<'_>) -> Result<OutOfBand, Trial> {
        let made = self.make(server, wish).await?;
        let body = self.send(server, wish, &made, &["v1"], |ask| ask).await?.all().await?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| Failure::Odd(format!("{server}: not the expected JSON: {error}")))?;
        Ok(OutOfBand { version: made.version, event: made.event, shown: answer.knock_room_state })
    }
}
