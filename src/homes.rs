//! Which instance a request belongs to: the one that writes the stream, owns the room, or has the
//! endpoint at all.

use std::{future::Future, pin::Pin, sync::Arc};

use chatd_base::{Refusal, Result};
use chatd_config::{Assignment, MAIN, RouterName, StreamName};
use chatd_http::{Home, Placement};
use chatd_rooms::read::Reader;
use chatd_streams::{Owner, Owners};
use ruma_common::{OwnedRoomAliasId, RoomId};

/// What this instance knows of the others.
pub struct Homes {
    mine: Assignment,
    owners: Arc<Owners>,
    reader: Reader,
}

impl Homes {
    pub fn new(mine: &Assignment, owners: &Arc<Owners>, reader: &Reader) -> Self {
        Self { mine: mine.clone(), owners: owners.clone(), reader: reader.clone() }
    }

    async fn find(&self, router: RouterName, home: Home, argument: &str) -> Result<Option<String>> {
        match home {
            Home::Anywhere if self.mine.has_router(router) => Ok(None),
            Home::Anywhere if self.mine.instance == MAIN => {
                Err(Refusal::unrecognized("unrecognized request").into())
            }
            Home::Anywhere => Ok(Some(MAIN.to_owned())),
            Home::Stream(stream) => Ok(self.writer_of(stream)),
            Home::AnyRoomOwner if self.mine.writes(StreamName::Events) => Ok(None),
            Home::AnyRoomOwner => Ok(self.writer_of(StreamName::Events)),
            Home::Room(_) | Home::RoomInBody(_) => self.owner_of(argument).await,
        }
    }

    fn writer_of(&self, stream: StreamName) -> Option<String> {
        let writers = self.mine.writers_of(stream);
        match writers.contains(&self.mine.instance) {
            true => None,
            false => writers.first().cloned(),
        }
    }

    /// What is neither a room nor an alias of one is refused by whoever is asked: here.
    async fn owner_of(&self, room: &str) -> Result<Option<String>> {
        let of_alias = match OwnedRoomAliasId::try_from(room) {
            Ok(alias) => match self.reader.alias(&alias).await {
                Ok(room) => Some(room),
                Err(_) => return Ok(None),
            },
            Err(_) => None,
        };
        let room = of_alias.as_deref().unwrap_or(room);
        let Ok(room) = <&RoomId>::try_from(room) else { return Ok(None) };
        Ok(match self.owners.of_room(room) {
            Owner::Here { .. } => None,
            Owner::At(instance) => Some(instance),
        })
    }
}

impl Placement for Homes {
    fn place<'a>(
        &'a self,
        router: RouterName,
        home: Home,
        argument: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<String>>> + Send + 'a>> {
        Box::pin(self.find(router, home, argument))
    }

    fn doubt<'a>(
        &'a self,
        _instance: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(std::future::ready(()))
    }
}
