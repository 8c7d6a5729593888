//! One room as it is told to those who could enter it, wherever it is.

use chatd_base::{Refusal, Requester, Result};
use chatd_rooms::read::{Memberships, Summary, Visitor};
use ruma_common::{OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, RoomOrAliasId};
use serde::Serialize;

use super::Queries;

/// A room, and what the user is in it.
#[derive(Debug, Serialize)]
pub struct RoomSummary {
    #[serde(flatten)]
    pub summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<&'static str>,
}

impl Queries {
    /// A room that is open to the user, or to everybody where nobody says who they are. Other
    /// servers are asked on behalf of users only.
    pub async fn summary(
        &self,
        who: Option<&Requester>,
        room: &RoomOrAliasId,
        via: Vec<OwnedServerName>,
    ) -> Result<RoomSummary> {
        let absent = || Refusal::not_found("there is no such room, or it is not open to you");
        let (room, via) = self.place(who, room, via).await?;
        let here = self.reader.summaries(&[room.as_str()], None).await?.pop();
        let found = match (here, who) {
            (Some(here), _) => Some(here.summary),
            (None, None) => None,
            (None, Some(who)) => {
                let servers = self.servers_that_know(who, &room, &via).await?;
                let far = self.space_elsewhere(room.to_string(), servers, false).await;
                far.map(|far| far.room.summary.clone())
            }
        };
        let summary = found.ok_or_else(absent)?;
        let memberships = match who {
            None => Memberships::new(),
            Some(who) => {
                let rooms = std::iter::once(&summary);
                self.reader.memberships_for(Visitor::User(who.user), rooms).await?
            }
        };
        if !summary.is_open_to(&memberships) {
            return Err(absent().into());
        }
        let membership = memberships.get(room.as_str()).map(|membership| membership.as_str());
        Ok(RoomSummary { summary, membership })
    }

    /// The room's id, and servers that are said to know it.
    async fn place(
        &self,
        who: Option<&Requester>,
        room: &RoomOrAliasId,
        mut via: Vec<OwnedServerName>,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        let room = match <&RoomId>::try_from(room) {
            Ok(room) => room.to_owned(),
            Err(alias) => {
                let place = self.place_of_alias(who, alias).await?;
                via.extend(place.1);
                place.0
            }
        };
        Ok((room, via))
    }

    async fn place_of_alias(
        &self,
        who: Option<&Requester>,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        if who.is_none() && *alias.server_name() != *self.config.server_name {
            return Err(Refusal::not_found("the alias is of another server").into());
        }
        let place = self.alias(alias).await?;
        Ok((place.room_id, place.servers))
    }
}
