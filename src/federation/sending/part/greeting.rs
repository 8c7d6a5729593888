//! Whoever comes to share a room is told who is there. That is told once, and only what happens
//! later again, so it waits until a server that has just come knows that it is in the room.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use chatd_base::{Position, Result, RoomNid, UserNid};
use chatd_streams::{StreamToken, presence::PresenceRow};
use ruma_common::OwnedServerName;

use super::{Part, reach};
use crate::sending::{
    inbox::{At, Join},
    spread::Fact,
};

/// How long a server that comes into a room may take to read what it is told of that room.
const AFTER_MS: u64 = 3_000;
/// Joins that wait (R8); further ones are dropped.
const MOST: usize = 20_000;

/// Those who have come into rooms of late, with the time for telling.
#[derive(Default)]
pub(super) struct Greetings(VecDeque<(u64, At<Join>)>);

impl Greetings {
    pub(super) fn add(&mut self, joins: Vec<At<Join>>, now_ms: u64) {
        let room = MOST.saturating_sub(self.0.len());
        self.0.extend(joins.into_iter().take(room).map(|join| (now_ms + AFTER_MS, join)));
    }

    /// When somebody is to be told next.
    pub(super) fn due(&self) -> Option<u64> {
        self.0.front().map(|(due, _)| *due)
    }

    fn take(&mut self, now_ms: u64) -> Vec<At<Join>> {
        let count = self.0.iter().take_while(|(due, _)| *due <= now_ms).count();
        self.0.drain(..count).map(|(_, join)| join).collect()
    }
}

impl Part {
    /// Tells those whose time has come. A few queries at most, and none where nobody has come.
    pub(super) async fn greet(&mut self, now_ms: u64) -> Result<()> {
        let joins = self.greetings.take(now_ms);
        if joins.is_empty() {
            return Ok(());
        }
        let token = StreamToken::default();
        let upto = joins.iter().fold(token, |upto, join| upto.raised(join.row.writer, join.at));
        reach(&self.with.streams().events, &upto).await?;
        let own = self.with.own_name();
        let (ours, theirs): (Vec<At<Join>>, Vec<At<Join>>) =
            joins.into_iter().partition(|join| join.row.server == *own);
        self.tell_of(&ours).await?;
        let theirs = theirs.into_iter().filter(|join| self.mine(&join.row.server)).collect();
        self.tell_newcomers(theirs).await
    }

    /// The servers in the rooms that users of this one have come into hear of them.
    async fn tell_of(&mut self, joins: &[At<Join>]) -> Result<()> {
        let users: BTreeSet<UserNid> = joins.iter().map(|join| join.row.user).collect();
        let users: Vec<UserNid> = users.into_iter().collect();
        let present = self.with.deps.users.presence.list_present(&users).await?;
        let at = Position(i64::MAX);
        let present: HashMap<UserNid, Arc<At<PresenceRow>>> =
            present.into_iter().map(|row| (row.user, Arc::new(At { at, row }))).collect();
        let rooms: BTreeSet<RoomNid> = joins.iter().map(|join| join.row.room).collect();
        let rooms: Vec<RoomNid> = rooms.into_iter().collect();
        let servers = self.with.deps.rooms.hosts.servers_in_all(&rooms).await?;
        let servers: HashMap<RoomNid, Vec<OwnedServerName>> = servers.into_iter().collect();
        for At { row: join, .. } in joins {
            let Some(row) = present.get(&join.user) else { continue };
            for server in servers.get(&join.room).into_iter().flatten() {
                self.tell(server.clone(), Fact::Presence(row.clone()));
            }
        }
        Ok(())
    }

    /// Servers that were not in a room before hear who of this server is there.
    async fn tell_newcomers(&mut self, joins: Vec<At<Join>>) -> Result<()> {
        let at: Vec<(RoomNid, Position)> =
            joins.iter().map(|join| (join.row.room, join.at)).collect();
        let before = self.with.deps.rooms.hosts.servers_before(&at).await?;
        let mut new: HashMap<RoomNid, HashSet<OwnedServerName>> = HashMap::new();
        for (At { row: join, .. }, before) in joins.into_iter().zip(before) {
            if !before.contains(&join.server) {
                new.entry(join.room).or_default().insert(join.server);
            }
        }
        let rooms: Vec<RoomNid> = new.keys().copied().collect();
        for (room, row) in self.with.deps.users.presence.list_present_in(&rooms).await? {
            let presence = Arc::new(At { at: Position(i64::MAX), row });
            for server in new.get(&room).into_iter().flatten() {
                self.tell(server.clone(), Fact::Presence(presence.clone()));
            }
        }
        Ok(())
    }
}
