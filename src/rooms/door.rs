//! What has to be known of a room before anything that another server sends to it is looked at.

use chatd_base::Result;
use chatd_storage::lane::flags;
use chatd_streams::Owner;
use ruma_common::{
    CanonicalJsonObject, EventId, OwnedEventId, RoomId, ServerName,
    room_version_rules::RoomVersionRules,
};

use crate::{
    acl,
    arrival::Arrival,
    live::Live,
    owner::{RoomOwner, lock},
};

/// A room, as one other server finds it.
#[derive(Clone, Debug)]
pub struct Door {
    pub rules: RoomVersionRules,
    /// Whether somebody of this server is in the room.
    pub is_joined: bool,
    /// Whether the room's access control list lets the other server take part.
    pub admits: bool,
    /// Whether its members are not known yet: what other servers send waits for them.
    pub is_partial: bool,
    /// The newest events.
    pub heads: Vec<OwnedEventId>,
}

/// What an event says of itself.
#[derive(Clone, Debug)]
pub struct Outline {
    pub event_id: OwnedEventId,
    pub depth: i64,
    pub prev_events: Vec<OwnedEventId>,
    pub auth_events: Vec<OwnedEventId>,
}

impl RoomOwner {
    /// The room as `server` finds it. Refuses rooms that this server does not know, and those of
    /// other instances.
    pub async fn door(&self, room_id: &RoomId, server: &ServerName) -> Result<Door> {
        let slot = self.slot(room_id).await?;
        let live = lock(&slot).lock();
        Ok(Door {
            rules: live.rules.clone(),
            is_joined: !live.members.is_empty(),
            admits: admits(&live, server),
            is_partial: live.is_partial,
            heads: live.heads.iter().map(|head| head.event_id.clone()).collect(),
        })
    }

    /// Who extends the room, as far as this instance knows.
    pub fn whose(&self, room_id: &RoomId) -> Owner {
        self.owners.of_room(room_id)
    }

    /// Whether this instance extends any room.
    pub fn owns_any(&self) -> bool {
        self.owners.owns_any()
    }

    /// Reads anew who extends which rooms.
    pub async fn refresh_owners(&self) -> Result<()> {
        self.owners.refresh().await
    }

    /// Which of the events have their place; one query.
    pub async fn list_placed(
        &self,
        room_id: &RoomId,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>> {
        self.list_known(room_id, ids, flags::OUTLIER).await
    }

    /// Which of the events are known, with a place or without; one query.
    pub async fn list_stored(
        &self,
        room_id: &RoomId,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>> {
        self.list_known(room_id, ids, 0).await
    }

    /// Whether the event has become part of the room: not one that was refused, and kept for what
    /// refers to it.
    pub async fn is_accepted(&self, room_id: &RoomId, id: &EventId) -> Result<bool> {
        let refused = flags::OUTLIER | flags::REJECTED | flags::SOFT_FAILED;
        Ok(!self.list_known(room_id, &[id.to_owned()], refused).await?.is_empty())
    }

    async fn list_known(
        &self,
        room_id: &RoomId,
        ids: &[OwnedEventId],
        without: i16,
    ) -> Result<Vec<OwnedEventId>> {
        let slot = self.slot(room_id).await?;
        let room = lock(&slot).lock().room;
        let names: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
        let places = self.places.list(&names).await?;
        let is_known = |id: &&OwnedEventId| {
            let place = places.get(id.as_str());
            place.is_some_and(|place| place.room == room && place.flags & without == 0)
        };
        Ok(ids.iter().filter(is_known).cloned().collect())
    }
}

impl Outline {
    /// Refuses what has not the form of an event of the room.
    pub fn of(
        event: CanonicalJsonObject,
        rules: &RoomVersionRules,
        room_id: &RoomId,
    ) -> Result<Self> {
        let arrival = Arrival::parse(event, rules, room_id)?;
        Ok(Self {
            event_id: arrival.event_id().clone(),
            depth: arrival.depth,
            prev_events: arrival.prev_events,
            auth_events: arrival.auth_events,
        })
    }
}

fn admits(live: &Live, server: &ServerName) -> bool {
    let list = live.body("m.room.server_acl", "");
    list.is_none_or(|list| acl::admits(list.content.get(), server))
}
