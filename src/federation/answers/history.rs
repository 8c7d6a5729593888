//! Events that came before others.

use chatd_base::{Refusal, Result};
use chatd_rooms::read::{Moment, Toward, nearest_of_all};
use chatd_storage::resident;
use ruma_common::{OwnedEventId, RoomId, ServerName};
use serde::Deserialize;

use super::{Answers, splice};

/// Events of one answer (R8).
const MOST_BACKFILLED: u32 = 100;
const MOST_MISSING: u32 = 20;
const DEFAULT_MISSING: u32 = 10;
/// Events that one request may name.
const MOST_NAMED: usize = 100;

/// The body of `/get_missing_events`.
#[derive(Clone, Debug, Deserialize)]
pub struct MissingQuery {
    pub earliest_events: Vec<OwnedEventId>,
    pub latest_events: Vec<OwnedEventId>,
    pub limit: Option<u32>,
    #[serde(default)]
    pub min_depth: i64,
}

impl Answers {
    /// Events of the room: `from`, and what came before them, newest first.
    pub async fn backfill(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        from: &[String],
        limit: u32,
    ) -> Result<Vec<u8>> {
        check_named(from.len())?;
        let room = self.visit(room_id, origin).await?;
        let limit = i64::from(limit.min(MOST_BACKFILLED));
        let nids = resident::walk_back(self.pool(), room.nid, from, limit).await?;
        let pdus = self.visible_pdus(&room, &nids, origin).await?;
        Ok(self.as_transaction(&pdus))
    }

    /// The event of the room that is nearest to a time.
    pub async fn nearest(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        time: i64,
        toward: Toward,
    ) -> Result<Option<Moment>> {
        let room = self.visit(room_id, origin).await?;
        nearest_of_all(self.pool(), room.nid, time, toward).await
    }

    /// Events of the room between two sets of events, oldest first.
    pub async fn missing_events(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        query: &MissingQuery,
    ) -> Result<Vec<u8>> {
        check_named(query.latest_events.len().max(query.earliest_events.len()))?;
        let room = self.visit(room_id, origin).await?;
        let limit = i64::from(query.limit.unwrap_or(DEFAULT_MISSING).min(MOST_MISSING));
        let texts = |ids: &[OwnedEventId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (latest, earliest) = (texts(&query.latest_events), texts(&query.earliest_events));
        let walked = resident::walk_between(
            self.pool(),
            room.nid,
            &latest,
            &earliest,
            query.min_depth,
            limit,
        );
        let mut nids = walked.await?;
        nids.reverse();
        let pdus = self.visible_pdus(&room, &nids, origin).await?;
        let mut json = b"{".to_vec();
        splice(&mut json, "events", &pdus);
        json.push(b'}');
        Ok(json)
    }
}

fn check_named(count: usize) -> Result<()> {
    if count > MOST_NAMED {
        return Err(Refusal::invalid_param(format!("more than {MOST_NAMED} events")).into());
    }
    Ok(())
}
