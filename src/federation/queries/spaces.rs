//! Spaces that nobody here is in, as other servers tell of them; remembered for some minutes.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chatd_rooms::read::{SpaceRoom, Summary, in_order};
use chatd_servers::{Ask, Failure};
use ruma_common::{OwnedServerName, ServerName};
use serde::Deserialize;

use super::Queries;
use crate::uri;

/// Spaces that are remembered (R8), each of at most the size below.
pub(super) const MOST: usize = 200;
const MOST_BYTES: usize = 512 << 10;
/// Rooms of a space of which its server tells more than their ids.
const MOST_CHILDREN: usize = 100;
const FOR_MS: u64 = 5 * 60_000;
/// That nobody has answered.
const NOTHING_FOR_MS: u64 = 60_000;
const WITHIN: Duration = Duration::from_secs(10);

/// A space: what is asked for, and who is asked. What one server says of a room is not what
/// another one would.
pub(super) type Key = (String, Vec<OwnedServerName>, bool);

/// What was answered; `None`: nothing of use.
#[derive(Clone)]
pub(super) struct Remembered {
    answer: Option<Arc<FarSpace>>,
    until_ms: u64,
}

/// A room, and what its server says of its children.
#[derive(Debug, Deserialize)]
pub(super) struct FarSpace {
    pub(super) room: SpaceRoom,
    #[serde(default)]
    pub(super) children: Vec<Summary>,
    #[serde(default)]
    pub(super) inaccessible_children: Vec<String>,
}

impl Queries {
    /// What the first of the servers says that says something; at most five minutes old.
    pub(super) async fn space_elsewhere(
        &self,
        room: String,
        via: Vec<OwnedServerName>,
        suggested_only: bool,
    ) -> Option<Arc<FarSpace>> {
        let key: Key = (room, via, suggested_only);
        let known = self.spaces.get(&key);
        if let Some(known) = known.filter(|known| self.clock.now_ms() < known.until_ms) {
            return known.answer;
        }
        let (room, via, _) = &key;
        let mut answer = None;
        for server in via {
            match self.ask_for_space(server, room, suggested_only).await {
                Ok(space) => {
                    answer = Some(Arc::new(space));
                    break;
                }
                Err(failure) => {
                    tracing::debug!(server.name = %server, room.id = room, %failure, "no hierarchy");
                }
            }
        }
        let for_ms = if answer.is_some() { FOR_MS } else { NOTHING_FOR_MS };
        let until_ms = self.clock.now_ms() + for_ms;
        self.spaces.insert(key, Remembered { answer: answer.clone(), until_ms });
        answer
    }

    async fn ask_for_space(
        &self,
        server: &ServerName,
        room: &str,
        suggested_only: bool,
    ) -> Result<FarSpace, Failure> {
        let path =
            uri!("/_matrix/federation/v1/hierarchy/{}?suggested_only={}", room, suggested_only);
        let ask = Ask::get(path).within(WITHIN).most_bytes(MOST_BYTES);
        let told: FarSpace = self.servers.client.ask_json(server, ask).await?;
        if told.room.summary.listing.room_id != room {
            return Err(Failure::Odd("a hierarchy of another room".to_owned()));
        }
        Ok(told.bounded(suggested_only))
    }
}

impl FarSpace {
    /// The same with nothing but what was asked for.
    fn bounded(self, suggested_only: bool) -> Self {
        let Self { mut room, mut children, mut inaccessible_children } = self;
        let own = std::mem::take(&mut room.children_state);
        if room.summary.is_space() {
            room.children_state = in_order(own, suggested_only);
        }
        let named: HashSet<&str> =
            room.children_state.iter().map(|child| child.state_key.as_str()).collect();
        children.retain(|child| named.contains(child.listing.room_id.as_str()));
        children.truncate(MOST_CHILDREN);
        inaccessible_children.retain(|room| named.contains(room.as_str()));
        Self { room, children, inaccessible_children }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_speaks_of_the_children_of_its_space_only() {
        let child = |room: &str| {
            json!({
                "type": "m.space.child", "state_key": room, "content": {"via": ["x"]},
                "sender": "@a:x", "origin_server_ts": 1,
            })
        };
        let told = json!({
            "room": {
                "room_id": "!s:x", "room_type": "m.space", "num_joined_members": 1,
                "children_state": [child("!a:x"), child("!b:x"), {"type": "m.space.child",
                    "state_key": "!c:x", "content": {}, "sender": "@a:x", "origin_server_ts": 1}],
            },
            "children": [{"room_id": "!a:x", "name": "A"}, {"room_id": "!c:x"}, {"room_id": "!z:x"}],
            "inaccessible_children": ["!b:x", "!z:x"],
        });
        let space: FarSpace = serde_json::from_value(told).unwrap();
        let space = space.bounded(false);
        let children: Vec<_> =
            space.room.children_state.iter().map(|child| child.state_key.as_str()).collect();
        assert_eq!(children, ["!a:x", "!b:x"]);
        let hints: Vec<_> = space.children.iter().map(|room| &*room.listing.room_id).collect();
        assert_eq!((hints, space.inaccessible_children), (vec!["!a:x"], vec!["!b:x".to_owned()]));
    }
}
