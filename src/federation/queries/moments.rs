//! Events by time, where the history that is here ends: other servers of the room are asked.

use std::time::Duration;

use chatd_base::{Requester, Result};
use chatd_rooms::{
    event_id,
    read::{Moment, Toward},
};
use chatd_servers::{Ask, Failure, PATIENT};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomId, RoomVersionId, ServerName,
};
use serde::Deserialize;

use super::Queries;
use crate::{event::text, uri};

/// Servers that are asked, one after the other (R8).
const MOST_SERVERS: usize = 5;
/// How long all of them may take.
const ALL_WITHIN: Duration = Duration::from_secs(15);
const MOST_BYTES: usize = 256 << 10;

/// What is looked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    room: &'a RoomId,
    version: &'a RoomVersionId,
    time: i64,
    toward: Toward,
}

#[derive(Deserialize)]
struct Told {
    event_id: OwnedEventId,
    origin_server_ts: i64,
}

#[derive(Deserialize)]
struct Pdus {
    pdus: Vec<CanonicalJsonObject>,
}

impl Queries {
    /// The event of a room that is nearest to a time, of those that the user may see: as far as it
    /// is known here, or else to other servers of the room.
    pub async fn nearest_event(
        &self,
        who: &Requester,
        room: &RoomId,
        time: i64,
        toward: Toward,
    ) -> Result<Option<Moment>> {
        let here = self.reader.nearest(who.user, room, time, toward).await?;
        let Ok(version) = RoomVersionId::try_from(here.version) else { return Ok(here.found) };
        if !here.may_be_elsewhere {
            return Ok(here.found);
        }
        let Some(_turn) = self.lookups.turn(who.user).await else { return Ok(here.found) };
        let wanted = Wanted { room, version: &version, time, toward };
        let asking = self.ask_for_nearest(who, wanted, here.found.as_ref());
        match tokio::time::timeout(ALL_WITHIN, asking).await {
            Ok(Ok(Some(nearer))) => Ok(Some(nearer)),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) | Err(_) => Ok(here.found),
        }
    }

    /// What the first server knows that knows of something nearer.
    async fn ask_for_nearest(
        &self,
        who: &Requester,
        wanted: Wanted<'_>,
        here: Option<&Moment>,
    ) -> Result<Option<Moment>> {
        let Wanted { room, time, toward, .. } = wanted;
        let distance = |found: i64| toward.distance(time, found);
        let to_beat = here.and_then(|here| distance(here.origin_ts)).unwrap_or(u64::MAX);
        let mut servers = self.rooms.hosts.servers_in_room(room).await?;
        self.servers.client.put_slow_last(&mut servers);
        for server in servers.iter().take(MOST_SERVERS) {
            let told = match self.ask_one_for_nearest(server, wanted).await {
                Ok(told) => told,
                Err(failure) => {
                    tracing::debug!(server.name = %server, room.id = %room, %failure, "no event by time");
                    continue;
                }
            };
            let is_nearer = distance(told.origin_ts).is_some_and(|distance| distance < to_beat);
            let id = OwnedEventId::try_from(told.event_id.as_str());
            if let (true, Ok(id)) = (is_nearer, id)
                && !self.reader.is_hidden(who.user, room, &id).await?
            {
                return Ok(Some(told));
            }
        }
        Ok(None)
    }

    /// What one server says, if the event is what the server says it is.
    async fn ask_one_for_nearest(
        &self,
        server: &ServerName,
        wanted: Wanted<'_>,
    ) -> Result<Moment, Failure> {
        let Wanted { room, time, toward, .. } = wanted;
        let path = uri!(
            "/_matrix/federation/v1/timestamp_to_event/{}?ts={}&dir={}",
            room,
            time,
            toward.letter()
        );
        let bounded = |path| Ask::get(path).within(PATIENT).most_bytes(MOST_BYTES);
        let told: Told = self.servers.client.ask_json(server, bounded(path)).await?;
        let path = uri!("/_matrix/federation/v1/event/{}", &told.event_id);
        let mut pdus: Pdus = self.servers.client.ask_json(server, bounded(path)).await?;
        let event = pdus.pdus.pop().ok_or_else(|| Failure::Odd("no event".to_owned()))?;
        self.check_told(event, &told, wanted).await.map_err(Failure::Odd)?;
        let (event_id, origin_ts) = (told.event_id.to_string(), told.origin_server_ts);
        Ok(Moment { event_id, origin_ts, is_at_gap: true })
    }

    async fn check_told(
        &self,
        event: CanonicalJsonObject,
        told: &Told,
        wanted: Wanted<'_>,
    ) -> Result<(), String> {
        let rules = wanted.version.rules().ok_or("a room of no known version")?;
        let is_of_room = text(&event, "room_id") == Some(wanted.room.as_str());
        let time = event.get("origin_server_ts").and_then(CanonicalJsonValue::as_integer);
        let id = event_id(wanted.version, &event).map_err(|error| error.to_string())?;
        // In version 12 the first event of a room has no room id: it is not looked for by time.
        if !is_of_room || time.map(i64::from) != Some(told.origin_server_ts) || id != told.event_id
        {
            return Err("the event is not the one that was told".to_owned());
        }
        let checked = self.servers.keyring.check_events(vec![event], &rules).await;
        match checked.map_err(|error| error.to_string())?.pop() {
            Some(Ok(_)) => Ok(()),
            Some(Err(why)) => Err(why.to_string()),
            None => Err("the event was not checked".to_owned()),
        }
    }
}
