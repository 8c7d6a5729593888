//! Rooms that take the place of others: what a user has of the old room goes on with the new one.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Requester, Result, UserNid};
use chatd_config::StreamName;
use chatd_streams::Streams;
use ruma_common::{OwnedRoomId, OwnedUserId, RoomId};
use serde::{Deserialize, Serialize};

use crate::Users;

/// A room has taken the place of another for a user.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Succession {
    pub user: UserNid,
    pub user_id: OwnedUserId,
    pub old: OwnedRoomId,
    pub new: OwnedRoomId,
}

/// Something that users have of rooms.
pub(crate) trait Estate: Send + Sync + 'static {
    /// Who writes this stream hands it on, so that no change of a client is lost.
    const STREAM: StreamName;
    /// The name of the call by which others have that done.
    const CALL: &str;

    fn streams(&self) -> &Streams;

    /// Hands it on, at the writer. What the user has of the new room stays. On return it is
    /// durable.
    fn hand_on(&self, one: &Succession) -> impl Future<Output = Result<()>> + Send;
}

/// Starts to answer the calls of other instances.
pub(crate) fn answer_calls<E: Estate>(estate: &Arc<E>) {
    let weak = Arc::downgrade(estate);
    estate.streams().calls.on(E::CALL, move |body| {
        let estate = weak.upgrade();
        async move {
            let estate = estate.ok_or_else(|| Refusal::not_owner(String::new()))?;
            let one = serde_json::from_slice(&body)
                .map_err(|error| Refusal::bad_json(format!("no succession: {error}")))?;
            estate.hand_on(&one).await.map(|()| Vec::from("{}"))
        }
    });
}

/// Has the writer hand it on.
async fn have_handed_on<E: Estate>(estate: &E, one: &Succession) -> Result<()> {
    let streams = estate.streams();
    if streams.writes(E::STREAM) {
        return estate.hand_on(one).await;
    }
    let body = serde_json::to_vec(one).map_err(Error::internal)?;
    streams.others.ask_writer(E::STREAM, E::CALL, body.into()).await?;
    Ok(())
}

impl Users {
    /// Gives `new` what the user has of `old`: tags, its place among the direct chats, push rules.
    /// On return it is durable.
    pub async fn inherit(&self, who: &Requester, old: &RoomId, new: &RoomId) -> Result<()> {
        let one = Succession {
            user: who.user,
            user_id: who.user_id.clone(),
            old: old.to_owned(),
            new: new.to_owned(),
        };
        let data = have_handed_on(&*self.account_data, &one).await;
        let rules = have_handed_on(&*self.push_rules, &one).await;
        data.and(rules)
    }
}
