//! This server as one that wants something of a room which others are in: its users join, knock,
//! decline invites, and invite users of other servers.
//!
//! A room that somebody here is in is joined here; one that nobody here is in by a server that is.
//! All of it runs at the owner of the room, and one request of a user and a room at a time, so that
//! a repeat finds what the first has done.

mod answer;
mod candidates;
mod invite;
mod join;
mod knock;
mod leave;
mod limit;
mod resync;
mod split;
mod template;
mod third_party;

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use ruma_common::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use self::resync::Resync;
use crate::{Deps, history::History, inbound::Inbound};
pub use third_party::{ByAddress, Redeemed};

/// Brings users into rooms, wherever these are.
pub struct Joining {
    deps: Deps,
    inbound: Inbound,
    /// Fetches what was said while nobody of this server was in a room.
    history: History,
    turns: Turns<(OwnedUserId, OwnedRoomId)>,
    /// Letters that identity servers are asked to write, by the keys of their requests.
    letters: Turns<Uuid>,
    resync: Resync,
}

/// Whose turn it is to work on something.
struct Turns<K>(Mutex<HashMap<K, Turn>>);

type Turn = Arc<tokio::sync::Mutex<()>>;

impl<K: Eq + Hash> Turns<K> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Waits until nobody else works on the same.
    async fn take(&self, what: K) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(what).or_default().clone()
        };
        turn.lock_owned().await
    }
}

impl Joining {
    /// Waits until nobody else brings the user into the room, or out of it.
    async fn turn_of(&self, user: &UserId, room_id: &RoomId) -> OwnedMutexGuard<()> {
        self.turns.take((user.to_owned(), room_id.to_owned())).await
    }
}

/// A room, and servers that are said to be in it.
#[derive(Clone, Debug)]
pub struct Found {
    pub room_id: OwnedRoomId,
    pub servers: Vec<OwnedServerName>,
}

impl Joining {
    pub(crate) fn new(deps: &Deps, inbound: &Inbound, history: &History) -> Arc<Self> {
        let joining = Arc::new(Self {
            deps: deps.clone(),
            inbound: inbound.clone(),
            history: history.clone(),
            turns: Turns::new(),
            letters: Turns::new(),
            resync: Resync::default(),
        });
        joining.answer_calls();
        joining
    }
}
