//! Knocking at rooms.

use chatd_base::{Requester, Result};
use chatd_rooms::{OutOfBand, membership::Extra};
use chatd_servers::Failure;
use chatd_streams::events::Membership;
use ruma_common::{OwnedServerName, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Joining,
    candidates::{is_final, unreached},
    template::Wish,
};

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
        let _turn = self.turns.take(&who.user_id, room_id).await;
        let rooms = &self.deps.rooms;
        if rooms.owner.is_in(room_id).await? {
            return rooms.knock(who, room_id, extra).await;
        }
        let standing = rooms.owner.standing(&who.user_id, room_id).await?;
        let candidates = self.candidates(room_id, servers, standing.as_ref()).await?;
        let mut content = rooms.profile_content(&who.user_id).await?;
        if let Some(reason) = &extra.reason {
            content.insert("reason".to_owned(), reason.as_str().into());
        }
        let wish = Wish { user: &who.user_id, room_id, membership: Membership::Knock, content };
        let mut failures = Vec::new();
        for server in candidates {
            match self.knock_by(&server, &wish).await {
                Ok(note) => return rooms.owner.note(room_id, note).await.map(drop),
                Err(failure) => {
                    let ends = is_final(&failure);
                    failures.push((server, failure));
                    if ends {
                        break;
                    }
                }
            }
        }
        Err(unreached(&failures).into())
    }

    async fn knock_by(&self, server: &ServerName, wish: &Wish<'_>) -> Result<OutOfBand, Failure> {
        let made = self.make(server, wish).await?;
        let body = self.send(server, wish, &made, &["v1"], |ask| ask).await?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| Failure::Odd(format!("{server}: not the expected JSON: {error}")))?;
        Ok(OutOfBand { version: made.version, event: made.event, shown: answer.knock_room_state })
    }
}
