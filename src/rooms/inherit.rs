//! Who joins a room that has taken the place of another finds it as the other was: with its tags, its
//! push rules, and among the direct chats.

use chatd_base::Requester;
use ruma_common::{OwnedRoomId, RoomId};
use serde_json::Value;

use crate::{Rooms, live::Live, owner::lock};

impl Rooms {
    /// Gives a room that the user has just joined what its predecessor has of the user.
    pub async fn inherit(&self, who: &Requester, room_id: &RoomId) {
        // The join is made, whatever comes of this.
        let Ok(slot) = self.owner.slot(room_id).await else { return };
        let old = predecessor(&lock(&slot).lock());
        if let Some(old) = old {
            self.inherit_from(who, &old, room_id).await;
        }
    }

    /// The same from `old`. The user is in the room, whether or not this succeeds.
    pub(crate) async fn inherit_from(&self, who: &Requester, old: &RoomId, new: &RoomId) {
        if let Err(error) = self.users.inherit(who, old, new).await {
            tracing::warn!(room.id = %new, user.id = %who.user_id, %error,
                "a user's tags and push rules do not go with an upgraded room");
        }
    }
}

/// The room in whose place this one is.
fn predecessor(live: &Live) -> Option<OwnedRoomId> {
    let create = live.body("m.room.create", "")?;
    let content: Value = serde_json::from_str(create.content.get()).ok()?;
    let old = OwnedRoomId::try_from(content.get("predecessor")?.get("room_id")?.as_str()?).ok()?;
    (old != live.room_id).then_some(old)
}
