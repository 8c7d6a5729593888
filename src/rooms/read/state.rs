//! The state of a room: all of it, one entry, its members.

use std::sync::Arc;

use chatd_base::{EventNid, Position, Refusal, Result, RoomNid, UserNid};
use chatd_storage::{
    events::{self, End, EventFilter, Span, StoredEvent, Which},
    room_state::{self, StateFilter},
    snapshots,
};
use chatd_streams::{RoomToken, events::Membership};
use ruma_common::RoomId;
use serde::Deserialize;

use super::{Reader, timeline::BEGINNING};
use crate::visibility::Lens;

/// Which members are wanted.
#[derive(Clone, Debug, Default)]
pub struct MembersQuery {
    /// As of this point; now by default.
    pub at: Option<RoomToken>,
    pub membership: Option<String>,
    pub not_membership: Option<String>,
}

/// State events with the lens of whoever asked for them.
pub type State = (Arc<Lens>, Vec<Arc<StoredEvent>>);

impl Reader {
    /// All state that the user may see: of now, or of when they left. As below, waits until the
    /// members of the room are known, and refuses when that takes too long.
    pub async fn state(&self, user: UserNid, room: &RoomId) -> Result<State> {
        let (lens, until) = self.admitted(user, room).await?;
        self.wholes.wait(lens.room).await?;
        let events = self.state_at(lens.room, until, &StateFilter::default()).await?;
        Ok((lens, events))
    }

    /// One entry of the state; refuses if it is not set.
    pub async fn state_entry(
        &self,
        user: UserNid,
        room: &RoomId,
        kind: &str,
        state_key: &str,
    ) -> Result<(Arc<Lens>, Arc<StoredEvent>)> {
        let (lens, until) = self.admitted(user, room).await?;
        let keys = [(kind, state_key)];
        let wanted = StateFilter { keys: Some(&keys), ..StateFilter::default() };
        let found = self.state_at(lens.room, until, &wanted).await?;
        match found.into_iter().next() {
            Some(event) => Ok((lens, event)),
            None => Err(Refusal::not_found("there is no such state in this room").into()),
        }
    }

    /// Member events of the room, as far as the user may see them.
    pub async fn members(
        &self,
        user: UserNid,
        room: &RoomId,
        query: &MembersQuery,
    ) -> Result<State> {
        let (lens, until) = self.admitted(user, room).await?;
        self.wholes.wait(lens.room).await?;
        let at = self.locate_if(lens.room, query.at.as_ref()).await?.map(|at| at.high);
        let at = match (at, until) {
            (Some(at), Some(until)) => Some(at.min(until)),
            (at, until) => at.or(until),
        };
        // A token of now or later asks for what `current_state` holds.
        let at = at.filter(|at| until.is_some() || *at < self.now());
        let wanted = StateFilter { kind: Some("m.room.member"), ..StateFilter::default() };
        let mut events = self.state_at(lens.room, at, &wanted).await?;
        if query.membership.is_some() || query.not_membership.is_some() {
            events.retain(|event| is_wanted(event, query));
        }
        Ok((lens, events))
    }

    /// The state of a room with one of its events.
    pub(super) async fn state_with(
        &self,
        event: &StoredEvent,
        wanted: &StateFilter<'_>,
    ) -> Result<Vec<Arc<StoredEvent>>> {
        if !event.is_of_the_past() {
            return Ok(room_state::list(&self.pool, event.room, Some(event.pos), wanted).await?);
        }
        let loaded = snapshots::load_many(&self.pool, event.room, &[event.snapshot]).await?;
        let mut state = loaded.into_values().next().map(|(state, _)| state).unwrap_or_default();
        if let Some(key) = event.key {
            state.insert(key, event.nid);
        }
        let nids: Vec<EventNid> = state.into_values().collect();
        Ok(room_state::list_of(&self.pool, event.room, &nids, wanted).await?)
    }

    /// The state of a room at a position; of now by default.
    async fn state_at(
        &self,
        room: RoomNid,
        at: Option<Position>,
        wanted: &StateFilter<'_>,
    ) -> Result<Vec<Arc<StoredEvent>>> {
        let Some(at) = at else {
            return Ok(room_state::list(&self.pool, room, None, wanted).await?);
        };
        let span = [Span { room, low: BEGINNING, high: at }];
        let all = EventFilter::default();
        let (which, end) = (Which::All, End::Newest);
        let last = events::list_timelines(&self.pool, &span, which, end, 1, &all, None).await?;
        match last.first().filter(|last| last.is_of_the_past()) {
            Some(last) => self.state_with(last, wanted).await,
            None => Ok(room_state::list(&self.pool, room, Some(at), wanted).await?),
        }
    }

    /// Ids and profiles of the joined users of a room, for users who are in it.
    pub async fn joined_members(
        &self,
        user: UserNid,
        room: &RoomId,
    ) -> Result<Vec<(String, Profile)>> {
        let lens = self.lens(user, room).await?;
        if lens.now() != Some(Membership::Join) {
            return Err(Refusal::forbidden("you are not in this room").into());
        }
        self.wholes.wait(lens.room).await?;
        let rows = room_state::list_joined_profiles(&self.pool, lens.room).await?;
        Ok(rows
            .into_iter()
            .map(|(user_id, content)| (user_id, serde_json::from_str(&content).unwrap_or_default()))
            .collect())
    }

    /// Rooms that the user is joined to.
    pub async fn joined_rooms(&self, user: UserNid) -> Result<Vec<(RoomNid, String)>> {
        Ok(room_state::list_joined_rooms(&self.pool, user).await?)
    }
}

/// What a member event tells about a person.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Profile {
    #[serde(deserialize_with = "text_or_none")]
    pub displayname: Option<String>,
    #[serde(deserialize_with = "text_or_none")]
    pub avatar_url: Option<String>,
}

/// Members may put anything into their events; what is not text counts as absent.
fn text_or_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    match serde_json::Value::deserialize(from)? {
        serde_json::Value::String(text) => Ok(Some(text)),
        _ => Ok(None),
    }
}

fn is_wanted(event: &StoredEvent, query: &MembersQuery) -> bool {
    #[derive(Deserialize)]
    struct Content {
        membership: Option<String>,
    }
    let membership = serde_json::from_str::<Content>(event.content.get())
        .ok()
        .and_then(|content| content.membership)
        .unwrap_or_default();
    query.membership.as_ref().is_none_or(|wanted| *wanted == membership)
        && query.not_membership.as_ref().is_none_or(|unwanted| *unwanted != membership)
}
