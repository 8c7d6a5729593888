//! Spaces, as far as another server could enter them or look at them.

use chatd_base::{Refusal, Result};
use chatd_rooms::read::{SpaceRoom, Summary, Visitor};
use ruma_common::{RoomId, ServerName};
use serde::Serialize;

use super::Answers;

/// Children of which more than the id is told (R8).
const MOST_CHILDREN: usize = 50;

/// A room, and what is known here of its children.
#[derive(Debug, Serialize)]
pub struct Hierarchy {
    pub room: SpaceRoom,
    pub children: Vec<Summary>,
    /// Rooms that this server is in and the other one could not enter.
    pub inaccessible_children: Vec<String>,
}

impl Answers {
    /// A room and, if it is a space, its children; absent if nobody of the other server could
    /// enter it.
    pub async fn hierarchy(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<Hierarchy> {
        let reader = &self.deps.reader;
        let visitor = Visitor::Server(origin);
        let room = reader.summaries(&[room_id.as_str()], Some(suggested_only)).await?.pop();
        let room = room.ok_or_else(|| Refusal::not_found("the room is not known here"))?;
        let known = reader.memberships_for(visitor, std::iter::once(&room.summary)).await?;
        if !room.summary.is_open_to(&known) {
            return Err(Refusal::not_found("the room is not known here").into());
        }
        let named = room.children_state.iter().map(|child| child.state_key.as_str());
        let named: Vec<&str> = named.take(MOST_CHILDREN).collect();
        let mut children: Vec<Summary> = Vec::new();
        let mut inaccessible_children = Vec::new();
        if !named.is_empty() {
            let rooms = reader.summaries(&named, None).await?;
            let summaries = rooms.iter().map(|room| &room.summary);
            let known = reader.memberships_for(visitor, summaries).await?;
            for SpaceRoom { summary, .. } in rooms {
                match summary.is_open_to(&known) {
                    true => children.push(summary),
                    false => inaccessible_children.push(summary.listing.room_id),
                }
            }
            children.sort_by_key(|child| {
                named.iter().position(|room| *room == child.listing.room_id.as_str())
            });
        }
        Ok(Hierarchy { room, children, inaccessible_children })
    }
}
