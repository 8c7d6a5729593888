//! An identity server tells of all invites of an address at once; each is for the owner of its room.
//! A call that is lost is made again: an invite that is there stays as it is.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use chatd_base::{CallError, Error, Patience, Refusal, Result};
use chatd_streams::{Owner, away};
use serde_json::Value;

use super::{super::Joining, exchange::Redeemed};

const CALL: &str = "federation.redeem";

impl Joining {
    /// Starts to answer the calls of other instances.
    pub(in crate::joining) fn answer_calls(self: &Arc<Self>) {
        let joining = Arc::downgrade(self);
        let calls = &self.deps.users.deps.streams.calls;
        calls.on(CALL, move |body| answer(joining.clone(), body));
    }

    /// Makes invites of what an identity server tells. What cannot be made one keeps none of the
    /// others from it; the last refusal is told.
    pub async fn redeem_all(&self, told: Vec<Value>) -> Result<()> {
        let mut last = None;
        for one in told {
            let done = match serde_json::from_value::<Redeemed>(one) {
                Ok(redeemed) => self.redeem(&redeemed).await,
                Err(error) => Err(Refusal::bad_json(error.to_string()).into()),
            };
            if let Err(error) = done {
                tracing::info!(%error, "what an identity server tells is not taken");
                last = Some(error);
            }
        }
        last.map_or(Ok(()), Err)
    }

    /// Makes an invite of what an identity server has signed, wherever the room is. Refuses if the
    /// user who is said to have come is not one of this server.
    async fn redeem(&self, redeemed: &Redeemed) -> Result<()> {
        let user = &redeemed.mxid;
        let is_here = user.server_name() == self.deps.config.server_name
            && self.deps.users.accounts.find(user.as_str()).await?.is_some();
        if !is_here {
            return Err(Refusal::forbidden(format!("{user} is not a user of this server")).into());
        }
        let mut patience = Patience::default();
        loop {
            match self.redeem_once(redeemed, patience).await {
                Err(error) if error.errcode() == Some(Refusal::NOT_OWNER) => {}
                done => return done,
            }
            if !patience.wait(&self.deps.users.deps.stop).await {
                return Err(away().into());
            }
            self.deps.rooms.owner.refresh_owners().await?;
        }
    }

    async fn redeem_once(&self, redeemed: &Redeemed, patience: Patience) -> Result<()> {
        let owner = match self.deps.rooms.owner.whose(&redeemed.room_id) {
            Owner::Here { .. } => return self.redeem_here(redeemed).await,
            Owner::At(instance) => instance,
        };
        let body = serde_json::to_vec(redeemed).map_err(Error::internal)?;
        let others = &self.deps.users.deps.streams.others;
        match others.ask_once(Some(&owner), CALL, body.into(), patience).await {
            Ok(_) => Ok(()),
            Err(CallError::Refused(refusal)) => Err(refusal.into()),
            Err(CallError::Lost(_) | CallError::Unsent(_)) => {
                Err(Refusal::not_owner(String::new()).into())
            }
        }
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
