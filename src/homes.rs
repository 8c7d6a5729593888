//! Which instance a request belongs to: the one that writes the stream, owns the room, or has the
//! endpoint at all. And how other work gets there, of which a request is only the cause.

use std::{future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use chatd_base::{CallError, Refusal, Result};
use chatd_config::{Assignment, InstanceAddress, MAIN, Roles, RouterName, StreamName};
use chatd_federation::Federation;
use chatd_http::{Caller, Home, Placement};
use chatd_rooms::read::Reader;
use chatd_servers::Relay;
use chatd_streams::{Colleagues, Owner, Owners, Roster, level};
use chatd_users::Deps;
use rand::seq::IteratorRandom;
use ruma_common::{OwnedRoomAliasId, RoomAliasId, RoomId};

/// What this instance knows of the others.
pub struct Homes {
    mine: Assignment,
    owners: Arc<Owners>,
    reader: Reader,
    roster: Option<Arc<Roster>>,
    roles: Roles,
    deps: Deps,
    federation: Arc<Federation>,
}

impl Homes {
    /// `roster`: who else is there, in a fleet.
    pub fn new(
        mine: &Assignment,
        deps: &Deps,
        owners: &Arc<Owners>,
        reader: &Reader,
        roster: Option<Arc<Roster>>,
        federation: &Arc<Federation>,
    ) -> Self {
        Self {
            mine: mine.clone(),
            owners: owners.clone(),
            reader: reader.clone(),
            roster,
            roles: Roles::embedded(),
            deps: deps.clone(),
            federation: federation.clone(),
        }
    }

    async fn find(&self, router: RouterName, home: Home, argument: &str) -> Result<Option<String>> {
        match home {
            Home::Anywhere if self.mine.has_router(router) => Ok(None),
            Home::Anywhere if self.mine.instance == MAIN => {
                Err(Refusal::unrecognized("unrecognized request").into())
            }
            Home::Anywhere => Ok(Some(self.with_router(router))),
            Home::Stream(stream) => Ok(self.writer_of(stream)),
            Home::AnyRoomOwner => Ok(self.owner_of_any()),
            Home::Room(_) | Home::RoomInBody(_) => self.owner_of(argument).await,
        }
    }

    fn writer_of(&self, stream: StreamName) -> Option<String> {
        let writers = self.mine.writers_of(stream);
        if writers.contains(&self.mine.instance) {
            return None;
        }
        let alive = writers.iter().filter(|name| self.is_alive(name)).choose(&mut rand::rng());
        alive.or(writers.first()).cloned()
    }

    /// Without a roster everybody counts as alive.
    fn is_alive(&self, name: &str) -> bool {
        let Some(roster) = &self.roster else { return true };
        roster.alive().iter().any(|one| one.name == name)
    }

    /// The main process if it is there and has the endpoints; else whoever has them.
    fn with_router(&self, router: RouterName) -> String {
        let alive = self.roster.as_ref().map(|roster| roster.alive()).unwrap_or_default();
        let has_it = |role: &str| {
            self.roles.by_name(role).is_some_and(|role| role.routers.contains(&router))
        };
        let able = alive.iter().filter(|one| has_it(&one.role)).map(|one| one.name.as_str());
        let able: Vec<&str> = able.collect();
        let any = || able.iter().copied().choose(&mut rand::rng()).unwrap_or(MAIN);
        if able.contains(&MAIN) { MAIN.to_owned() } else { any().to_owned() }
    }

    fn owner_of_any(&self) -> Option<String> {
        if self.owners.owns_any() {
            return None;
        }
        let shards = self.owners.shards();
        let owned = shards.iter().filter(|shard| self.is_alive(&shard.owner));
        let some = owned.choose(&mut rand::rng()).map(|shard| shard.owner.clone());
        some.or_else(|| self.writer_of(StreamName::Events))
    }

    /// The room of an alias, if there is one; the server of the alias is asked.
    async fn room_of(&self, alias: &RoomAliasId) -> Option<String> {
        if alias.server_name() == self.deps.config.server_name {
            return self.reader.alias(alias).await.ok();
        }
        let found = self.federation.joining.ask_for_alias(alias).await.ok()?;
        Some(found.room_id.to_string())
    }

    /// What is neither a room nor an alias of one is refused by whoever is asked: here.
    async fn owner_of(&self, room: &str) -> Result<Option<String>> {
        let of_alias = match OwnedRoomAliasId::try_from(room) {
            Ok(alias) => match self.room_of(&alias).await {
                Some(room) => Some(room),
                None => return Ok(None),
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

/// The fleet as the services see it.
pub struct Fellows {
    pub homes: Arc<Homes>,
    pub caller: Caller,
}

impl Colleagues for Fellows {
    fn writer_of(&self, stream: StreamName) -> Option<String> {
        self.homes.writer_of(stream)
    }

    fn call<'a>(
        &'a self,
        instance: &'a str,
        name: &'a str,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>> {
        Box::pin(self.caller.call(instance, name, body))
    }
}

/// What carries requests to other servers to an instance that may make them.
pub struct Carrier(pub Caller);

impl Relay for Carrier {
    fn call<'a>(
        &'a self,
        instance: &'a str,
        name: &'a str,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>> {
        Box::pin(self.0.call(instance, name, body))
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

    fn level(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(level(&self.deps.streams, &self.deps.notices))
    }

    fn address(&self, instance: &str) -> Option<InstanceAddress> {
        let alive = self.roster.as_ref()?.alive();
        let card = alive.iter().find(|one| one.name == instance)?;
        serde_json::from_str(card.address.as_deref()?).ok()
    }

    fn doubt<'a>(
        &'a self,
        _instance: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async {
            if let Err(error) = self.owners.refresh().await {
                tracing::debug!(%error, "the owners of the rooms cannot be read");
            }
        })
    }
}
