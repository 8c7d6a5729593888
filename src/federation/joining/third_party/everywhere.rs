//! An identity server tells of all invites of an address at once; each is for the owner of its room.
//! A call that is lost is made again: an invite that is there stays as it is.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use chatd_base::{Error, Refusal, Result};
use chatd_storage::rooms::list_with_locals;
use serde_json::Value;

use super::{super::Joining, exchange::Redeemed};

const CALL: &str = "federation.redeem";
/// Invites that one request may have other servers make (R8): anybody may make that request.
const MOST_FAR: usize = 10;

impl Joining {
    /// Starts to answer the calls of other instances.
    pub(in crate::joining) fn answer_calls(self: &Arc<Self>) {
        let joining = Arc::downgrade(self);
        let calls = &self.deps.users.deps.streams.calls;
        calls.on(CALL, move |body| answer(joining.clone(), body));
    }

    /// Makes invites of what an identity server tells of one user of this server. What cannot be
    /// made one keeps none of the others from it; the last refusal is told.
    pub async fn redeem_all(&self, told: Vec<Value>) -> Result<()> {
        let mut last = None;
        let mut refuse = |error: Error| {
            tracing::info!(%error, "what an identity server tells is not taken");
            last = Some(error);
        };
        let mut all = Vec::with_capacity(told.len());
        for one in told {
            match serde_json::from_value::<Redeemed>(one) {
                Ok(redeemed) => all.push(redeemed),
                Err(error) => refuse(Refusal::bad_json(error.to_string()).into()),
            }
        }
        self.check_user(&all).await?;
        let rooms: Vec<&str> = all.iter().map(|redeemed| redeemed.room_id.as_str()).collect();
        let here = list_with_locals(&self.deps.users.deps.pool, &rooms).await?;
        let mut far = 0;
        for redeemed in &all {
            let is_far = !here.iter().any(|room| redeemed.room_id == *room);
            far += usize::from(is_far);
            let done = if is_far && far > MOST_FAR {
                Err(Refusal::forbidden("too many of the rooms are not here").into())
            } else {
                self.redeem(redeemed).await
            };
            done.unwrap_or_else(&mut refuse);
        }
        last.map_or(Ok(()), Err)
    }

    /// Refuses unless all that is told is of one user, who is one of this server.
    async fn check_user(&self, told: &[Redeemed]) -> Result<()> {
        let Some(Redeemed { mxid: user, .. }) = told.first() else { return Ok(()) };
        if told.iter().any(|one| one.mxid != *user) {
            return Err(Refusal::invalid_param("the invites are not of one user").into());
        }
        let account = match user.server_name() == self.deps.config.server_name {
            true => self.deps.users.accounts.find(user.as_str()).await?,
            false => None,
        };
        if account.is_some_and(|account| account.user_id == user.as_str()) {
            return Ok(());
        }
        Err(Refusal::forbidden(format!("{user} is not a user of this server")).into())
    }

    /// Makes an invite of what an identity server has signed, wherever the room is.
    async fn redeem(&self, redeemed: &Redeemed) -> Result<()> {
        let here = || self.redeem_here(redeemed);
        self.deps.rooms.at_owner(&redeemed.room_id, CALL, redeemed, here).await
    }
}

/// Does what another instance asks for.
async fn answer(joining: Weak<Joining>, body: Bytes) -> Result<Vec<u8>> {
    let joining = joining.upgrade().ok_or_else(|| Refusal::not_owner(String::new()))?;
    let redeemed: Redeemed = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("nothing that was signed: {error}")))?;
    joining.redeem_here(&redeemed).await?;
    Ok(Vec::new())
}
