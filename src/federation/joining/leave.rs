//! Leaving rooms, declining invites, and withdrawing knocks.

use chatd_base::{Requester, Result};
use chatd_rooms::{Draft, OutOfBand, Standing, membership::Extra};
use chatd_streams::events::Membership;
use ruma_common::{CanonicalJsonObject, OwnedServerName, RoomId, RoomVersionId};
use serde_json::Map;

use super::{Joining, template::Wish};

impl Joining {
    /// Makes the requester leave. A room that this server is not in is left by a server that is; if
    /// none of them answers, the user has left it nevertheless, as far as this server is concerned.
    pub async fn leave(&self, who: &Requester, room_id: &RoomId, extra: Extra) -> Result<()> {
        let _turn = self.turn_of(&who.user_id, room_id).await;
        let owner = &self.deps.rooms.owner;
        let is_in = owner.is_in(room_id).await?;
        let standing = match is_in {
            true => None,
            false => owner.standing(&who.user_id, room_id).await?,
        };
        let outside = standing.filter(|standing| {
            matches!(standing.membership, Membership::Invite | Membership::Knock)
        });
        let Some(standing) = outside else {
            return self.deps.rooms.leave(&who.user_id, room_id, extra).await;
        };
        let mut content = Map::new();
        if let Some(reason) = &extra.reason {
            content.insert("reason".to_owned(), reason.as_str().into());
        }
        let wish = Wish { user: &who.user_id, room_id, membership: Membership::Leave, content };
        let candidates = self.candidates(room_id, &[], Some(&standing)).await?;
        let (version, event) = match self.leave_by(candidates, &wish).await {
            Some(left) => left,
            None => (standing.version.clone(), self.leave_alone(&wish, &standing)?),
        };
        let note = OutOfBand { version, event, shown: Vec::new() };
        owner.note(room_id, note).await.map(drop)
    }

    /// Leaves by the first server that helps.
    pub(super) async fn leave_by(
        &self,
        candidates: Vec<OwnedServerName>,
        wish: &Wish<'_>,
    ) -> Option<(RoomVersionId, CanonicalJsonObject)> {
        for server in candidates {
            let left = async {
                let made = self.make(&server, wish).await?;
                self.send(&server, wish, &made, &["v2", "v1"], |ask| ask).await?.all().await?;
                Ok::<_, chatd_servers::Failure>(made)
            };
            match left.await {
                Ok(made) => return Some((made.version, made.event)),
                Err(failure) => tracing::info!(room.id = %wish.room_id, server = %server, %failure,
                    "a room could not be left by a server"),
            }
        }
        None
    }

    fn leave_alone(&self, wish: &Wish<'_>, standing: &Standing) -> Result<CanonicalJsonObject> {
        let mut content = wish.content.clone();
        content.insert("membership".to_owned(), "leave".into());
        let user = wish.user;
        let draft = Draft::state(user.to_owned(), "m.room.member", user.as_str(), content);
        self.deps.rooms.owner.lonely_leave(wish.room_id, standing, &draft)
    }
}
