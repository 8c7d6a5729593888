//! What this server tells other servers of rooms that both are in. It runs on any instance, with a
//! number of statements that does not depend on the number of events, but for the state of a room, which
//! is read while it is sent (`pieces`).

mod about;
mod history;
mod pieces;
mod sights;
mod spaces;
mod state;

use chatd_base::{Error, EventNid, Refusal, Result, RoomNid};
use chatd_rooms::{acl, federation_json, write_federation};
use chatd_storage::{Pool, graph, graph::GraphEvent, resident};
use ruma_common::{
    EventId, OwnedRoomId, RoomId, RoomVersionId, ServerName, canonical_json::redact_in_place,
    room_version_rules::RoomVersionRules,
};

use crate::Deps;

pub use history::MissingQuery;
pub use spaces::Hierarchy;
pub use state::AtEvent;

/// Answers other servers about rooms and users of this one. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    deps: Deps,
}

/// A room that another server may ask about.
struct Visited {
    nid: RoomNid,
    room_id: OwnedRoomId,
    rules: RoomVersionRules,
}

/// An event as bytes of its federation format.
type Pdu = Vec<u8>;

impl Answers {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self { deps: deps.clone() }
    }

    fn pool(&self) -> &Pool {
        &self.deps.users.deps.pool
    }

    /// The room, for a server that is in it and that its access control list admits. Refuses all
    /// others alike, so that nobody learns which rooms there are.
    async fn visit(&self, room_id: &RoomId, origin: &ServerName) -> Result<Visited> {
        let stranger = || Refusal::forbidden(format!("{origin} is not in the room"));
        let room = resident::get_room(self.pool(), room_id.as_str(), origin.as_str()).await?;
        let room = room.filter(|room| room.they_are_in).ok_or_else(stranger)?;
        if room.acl.is_some_and(|list| !acl::admits(&list, origin)) {
            let message = format!("the access control list of the room excludes {origin}");
            return Err(Refusal::forbidden(message).into());
        }
        let version = RoomVersionId::try_from(room.version).map_err(Error::internal)?;
        let rules = version.rules().ok_or_else(|| Error::internal("a room of no known version"))?;
        Ok(Visited { nid: room.nid, room_id: room_id.to_owned(), rules })
    }

    /// Those of the events that exist, in the order of `nids`, as they were signed.
    async fn pdus(&self, room: &Visited, nids: &[EventNid]) -> Result<Vec<Pdu>> {
        let events = self.read(nids).await?;
        events.iter().map(|event| room.pdu(event)).collect()
    }

    /// The same for a server that may not see all of them: what it may not see is redacted.
    async fn visible_pdus(
        &self,
        room: &Visited,
        nids: &[EventNid],
        origin: &ServerName,
    ) -> Result<Vec<Pdu>> {
        let (events, hidden) =
            futures::try_join!(self.read(nids), self.hidden(room, nids, origin))?;
        let pdu = |event: &GraphEvent| match hidden.contains(&event.nid) {
            true => room.redacted_pdu(event),
            false => room.pdu(event),
        };
        events.iter().map(pdu).collect()
    }

    async fn read(&self, nids: &[EventNid]) -> Result<Vec<GraphEvent>> {
        let mut places: std::collections::HashMap<EventNid, usize> =
            nids.iter().enumerate().map(|(place, nid)| (*nid, place)).collect();
        let mut events = graph::list_events(self.pool(), nids).await?;
        events.sort_unstable_by_key(|event| places.remove(&event.nid));
        Ok(events)
    }

    /// The event with that id, if it has its place in a room in which `origin` is.
    pub async fn event(&self, origin: &ServerName, event_id: &EventId) -> Result<Vec<u8>> {
        let unknown = || Refusal::not_found("the event is not known here");
        let room_id = resident::get_room_of_event(self.pool(), event_id.as_str()).await?;
        let room_id = room_id.and_then(|id| RoomId::parse(id).ok()).ok_or_else(unknown)?;
        let room = self.visit(&room_id, origin).await?;
        let anchor = resident::get_anchor(self.pool(), room.nid, event_id.as_str()).await?;
        let anchor = anchor.ok_or_else(unknown)?;
        let pdus = self.visible_pdus(&room, &[anchor.nid], origin).await?;
        Ok(self.as_transaction(&pdus))
    }

    /// The form of `/event` and `/backfill`.
    fn as_transaction(&self, pdus: &[Pdu]) -> Vec<u8> {
        let origin = &self.deps.config.server_name;
        let now_ms = self.deps.users.deps.clock.now_ms();
        let head = format!("{{\"origin\":\"{origin}\",\"origin_server_ts\":{now_ms},");
        let mut json = head.into_bytes();
        splice(&mut json, "pdus", pdus);
        json.push(b'}');
        json
    }
}

impl Visited {
    fn pdu(&self, event: &GraphEvent) -> Result<Pdu> {
        let mut pdu = Vec::with_capacity(event.content.len() + event.rest.len() + 512);
        write_federation(&mut pdu, event, &self.room_id, &self.rules).map_err(Error::internal)?;
        Ok(pdu)
    }

    fn redacted_pdu(&self, event: &GraphEvent) -> Result<Pdu> {
        let mut object =
            federation_json(event, &self.room_id, &self.rules).map_err(Error::internal)?;
        redact_in_place(&mut object, &self.rules.redaction, None).map_err(Error::internal)?;
        serde_json::to_vec(&object).map_err(Error::internal)
    }
}

/// Writes `"name":[…]`.
fn splice(out: &mut Vec<u8>, name: &str, items: &[Pdu]) {
    out.extend_from_slice(format!("\"{name}\":[").as_bytes());
    add_all(out, items, false);
    out.push(b']');
}

/// Adds items to a list that has some already, or none. Whether it has some then.
fn add_all(out: &mut Vec<u8>, items: &[Pdu], mut has_some: bool) -> bool {
    for item in items {
        if has_some {
            out.push(b',');
        }
        out.extend_from_slice(item);
        has_some = true;
    }
    has_some
}
