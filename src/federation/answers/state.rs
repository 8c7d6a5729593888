//! The state before an event, and the events that show that it is allowed.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use chatd_base::{EventNid, Refusal, Result};
use chatd_storage::{graph, lane::flags, resident, snapshots};
use futures::Stream;
use ruma_common::{EventId, RoomId, ServerName};
use serde_json::json;

use super::{Answers, Visited, pieces, splice};

/// An event, as another server asks about it.
#[derive(Clone, Copy, Debug)]
pub struct AtEvent<'a> {
    pub origin: &'a ServerName,
    pub room: &'a RoomId,
    pub event: &'a EventId,
}

/// The state before an event, and all that shows that it is allowed.
struct StateBefore {
    state: Vec<EventNid>,
    auth_chain: Vec<EventNid>,
}

impl Answers {
    /// The state before an event, as events.
    pub async fn state(
        &self,
        at: AtEvent<'_>,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + use<>> {
        let room = self.visit(at.room, at.origin).await?;
        self.deps.rooms.whole_for_server(at.room).await?;
        let StateBefore { state, auth_chain } = self.state_before(&room, at.event).await?;
        let (answers, room) = (self.clone(), Arc::new(room));
        Ok(pieces::object([("auth_chain", auth_chain), ("pdus", state)], move |events| {
            let (answers, room) = (answers.clone(), room.clone());
            async move { answers.pdus(&room, &events).await }
        }))
    }

    /// The state before an event, as ids.
    pub async fn state_ids(&self, at: AtEvent<'_>) -> Result<Vec<u8>> {
        let room = self.visit(at.room, at.origin).await?;
        self.deps.rooms.whole_for_server(at.room).await?;
        let before = self.state_before(&room, at.event).await?;
        let all: Vec<EventNid> = before.state.iter().chain(&before.auth_chain).copied().collect();
        let ids: std::collections::HashMap<EventNid, String> =
            resident::list_ids(self.pool(), &all).await?.into_iter().collect();
        let names =
            |nids: &[EventNid]| nids.iter().filter_map(|nid| ids.get(nid)).collect::<Vec<_>>();
        let answer = json!({
            "pdu_ids": names(&before.state),
            "auth_chain_ids": names(&before.auth_chain),
        });
        Ok(answer.to_string().into_bytes())
    }

    /// All that shows that an event is allowed.
    pub async fn event_auth(&self, at: AtEvent<'_>) -> Result<Vec<u8>> {
        let room = self.visit(at.room, at.origin).await?;
        let anchor = resident::get_anchor(self.pool(), room.nid, at.event.as_str()).await?;
        let anchor = anchor.ok_or_else(|| Refusal::not_found("the event is not known here"))?;
        let chain = self.auth_chain(&[anchor.nid]).await?;
        let pdus = self.pdus(&room, &chain).await?;
        let mut json = b"{".to_vec();
        splice(&mut json, "auth_chain", &pdus);
        json.push(b'}');
        Ok(json)
    }

    async fn state_before(&self, room: &Visited, event_id: &EventId) -> Result<StateBefore> {
        let anchor = resident::get_anchor(self.pool(), room.nid, event_id.as_str()).await?;
        let anchor = anchor.filter(|anchor| anchor.flags & (flags::OUTLIER | flags::REJECTED) == 0);
        let anchor =
            anchor.ok_or_else(|| Refusal::not_found("the state at the event is not known here"))?;
        let loaded = snapshots::load_many(self.pool(), room.nid, &[anchor.snapshot]).await?;
        let state: Vec<EventNid> = loaded
            .into_iter()
            .find(|(id, _)| *id == anchor.snapshot)
            .map(|(_, (state, _))| state.into_values().collect())
            .unwrap_or_default();
        let auth_chain = self.auth_chain(&state).await?;
        Ok(StateBefore { state, auth_chain })
    }

    /// The auth events of `events`, of those, and so on, the oldest first.
    async fn auth_chain(&self, events: &[EventNid]) -> Result<Vec<EventNid>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let edges = graph::list_auth_edges(self.pool(), events).await?;
        let chain: BTreeSet<EventNid> = edges.into_values().flatten().collect();
        Ok(chain.into_iter().collect())
    }
}
