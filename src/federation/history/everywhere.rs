//! The past of a room is fetched and stored by its owner. A call that is lost is not made again:
//! whoever reads on makes the next one.

use std::sync::Weak;

use bytes::Bytes;
use chatd_base::{CallError, Error, Patience, Refusal, Result};
use chatd_streams::Owner;

use super::{History, Inner, Wanted, filling::Filled};

const CALL: &str = "federation.backfill";

impl History {
    /// Starts to answer the calls of other instances.
    pub(super) fn answer_calls(&self) {
        let history = std::sync::Arc::downgrade(&self.0);
        self.0.streams.calls.on(CALL, move |body| answer(history.clone(), body));
    }

    /// Has the room's owner fetch more of its past.
    pub(super) async fn fill(&self, wanted: &Wanted) -> Result<Filled> {
        let owner = match self.0.rooms.owner.whose(&wanted.room) {
            Owner::Here { .. } => return Ok(self.fill_here(wanted).await),
            Owner::At(instance) => instance,
        };
        let body = serde_json::to_vec(wanted).map_err(Error::internal)?;
        let asked =
            self.0.streams.others.ask_once(Some(&owner), CALL, body.into(), Patience::default());
        match asked.await {
            Ok(answer) => serde_json::from_slice(&answer).map_err(Error::internal),
            Err(CallError::Refused(refusal)) => Err(refusal.into()),
            Err(CallError::Lost(_) | CallError::Unsent(_)) => {
                self.0.rooms.owner.refresh_owners().await?;
                Ok(Filled::LATER)
            }
        }
    }
}

/// Does what another instance asks for.
async fn answer(history: Weak<Inner>, body: Bytes) -> Result<Vec<u8>> {
    let history = history.upgrade().ok_or_else(|| Refusal::not_owner(String::new()))?;
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("not a room and a place: {error}")))?;
    let filled = History(history).fill_here(&wanted).await;
    serde_json::to_vec(&filled).map_err(Error::internal)
}
