//! Which servers are told of receipts, typing and presence, and when: what changes often is told
//! in steps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    sync::Arc,
};

use chatd_base::{Result, RoomNid, UserNid};
use chatd_rooms::hosts::Hosts;
use chatd_streams::{presence::PresenceRow, receipts::ReceiptRow, typing::TypingRow};
use ruma_common::{OwnedRoomId, OwnedServerName, OwnedUserId, ServerName};

use super::{
    ephemeral::Oldest,
    inbox::{At, News},
};

/// Presence of different users is told together, so often.
const PRESENCE_EVERY_MS: u64 = 500;
/// Whoever types for longer is told of again: other servers forget it after a while.
const TYPING_EVERY_MS: u64 = 20_000;
/// Who has typed for so long has stopped, and that was missed.
const TYPING_AT_MOST_MS: u64 = 600_000;
/// Rooms and users of which something waits (R8).
const MOST: usize = 50_000;

/// Something for one server.
#[derive(Clone, Debug)]
pub(super) enum Fact {
    Receipt(Arc<At<ReceiptRow>>),
    Typing(OwnedRoomId, OwnedUserId, bool),
    Presence(Arc<At<PresenceRow>>),
}

/// Those who type in a room.
struct Typing {
    room_id: OwnedRoomId,
    users: BTreeSet<OwnedUserId>,
    since_ms: u64,
    told_ms: u64,
}

/// The newest receipt of each user in a thread, or in none.
type Receipts = BTreeMap<(OwnedUserId, Option<String>), Arc<At<ReceiptRow>>>;

/// What waits to be told.
pub(super) struct Spread {
    own: OwnedServerName,
    /// `federation_rr_transactions_per_room_per_second`.
    receipts_per_second: u64,
    receipts: HashMap<RoomNid, Receipts>,
    /// Before that time receipts of the room wait.
    quiet_until: HashMap<RoomNid, u64>,
    typing: HashMap<RoomNid, Typing>,
    /// Who has begun or stopped to type.
    typing_news: Vec<(RoomNid, OwnedRoomId, OwnedUserId, bool)>,
    presence: BTreeMap<UserNid, Arc<At<PresenceRow>>>,
    presence_at: u64,
}

impl Spread {
    pub(super) fn new(own: &ServerName, receipts_per_second: u64) -> Self {
        Self {
            own: own.to_owned(),
            receipts_per_second: receipts_per_second.max(1),
            receipts: HashMap::new(),
            quiet_until: HashMap::new(),
            typing: HashMap::new(),
            typing_news: Vec::new(),
            presence: BTreeMap::new(),
            presence_at: 0,
        }
    }

    /// Takes in what this server's users have done.
    pub(super) fn add(&mut self, news: &mut News, now_ms: u64) {
        let own = self.own.clone();
        for receipt in std::mem::take(&mut news.receipts.seen) {
            let row = &receipt.row;
            let is_ours = row.user_id.server_name() == own;
            if is_ours && (self.receipts.len() < MOST || self.receipts.contains_key(&row.room)) {
                let (room, key) = (row.room, (row.user_id.clone(), row.thread.clone()));
                keep_newest(self.receipts.entry(room).or_default().entry(key), receipt);
            }
        }
        if let Some(all) = news.all_typing.take() {
            self.take_all_typing(all, now_ms);
        }
        for row in std::mem::take(&mut news.typing) {
            self.take_typing(row, now_ms);
        }
        for presence in std::mem::take(&mut news.presence.seen) {
            if presence.row.user_id.server_name() == own && self.presence.len() < MOST {
                keep_newest(self.presence.entry(presence.row.user), presence);
            }
        }
    }

    /// What may not have been told.
    pub(super) fn oldest(&self) -> Oldest {
        let receipts = self.receipts.values().flat_map(BTreeMap::values);
        Oldest {
            receipt: receipts.map(|receipt| receipt.at).min(),
            presence: self.presence.values().map(|presence| presence.at).min(),
        }
    }

    /// Takes in who types; nobody else does any more.
    fn take_all_typing(&mut self, all: Vec<TypingRow>, now_ms: u64) {
        let rooms: BTreeSet<RoomNid> = all.iter().map(|row| row.room).collect();
        let over = self.typing.iter().filter(|(room, _)| !rooms.contains(room));
        let over = over.map(|(room, typing)| TypingRow {
            room: *room,
            room_id: typing.room_id.clone(),
            users: Vec::new(),
        });
        let over: Vec<TypingRow> = over.collect();
        over.into_iter().chain(all).for_each(|row| self.take_typing(row, now_ms));
    }

    fn take_typing(&mut self, row: TypingRow, now_ms: u64) {
        let own = &self.own;
        let now: BTreeSet<OwnedUserId> =
            row.users.into_iter().filter(|user| user.server_name() == own).collect();
        let before = self.typing.get(&row.room).map(|typing| &typing.users);
        let nobody = BTreeSet::new();
        let before = before.unwrap_or(&nobody);
        let news = now.difference(before).map(|user| (user, true));
        let news = news.chain(before.difference(&now).map(|user| (user, false)));
        let news = news.map(|(user, types)| (row.room, row.room_id.clone(), user.clone(), types));
        let news: Vec<_> = news.collect();
        self.typing_news.extend(news);
        if now.is_empty() {
            self.typing.remove(&row.room);
        } else if self.typing.len() < MOST {
            let typing =
                Typing { room_id: row.room_id, users: now, since_ms: now_ms, told_ms: now_ms };
            self.typing.insert(row.room, typing);
        }
    }

    /// When something is to be told next.
    pub(super) fn due(&self) -> Option<u64> {
        let receipts = self.receipts.keys().map(|room| self.quiet_until.get(room).copied());
        let receipts = receipts.map(Option::unwrap_or_default).min();
        let typing = self.typing.values().map(|typing| typing.told_ms + TYPING_EVERY_MS).min();
        let news = (!self.typing_news.is_empty()).then_some(0);
        let presence = (!self.presence.is_empty()).then_some(self.presence_at);
        [receipts, typing, news, presence].into_iter().flatten().min()
    }

    /// Takes what is due now, with the servers that it is for. A few queries at most.
    pub(super) async fn take(
        &mut self,
        hosts: &Hosts,
        now_ms: u64,
    ) -> Result<Vec<(OwnedServerName, Fact)>> {
        let mut facts = Vec::new();
        self.take_receipts(hosts, now_ms, &mut facts).await?;
        self.take_typing_news(hosts, now_ms, &mut facts).await?;
        if now_ms >= self.presence_at && !self.presence.is_empty() {
            self.presence_at = now_ms + PRESENCE_EVERY_MS;
            let rows = std::mem::take(&mut self.presence);
            let users: Vec<UserNid> = rows.keys().copied().collect();
            for (user, servers) in hosts.sharing(&users).await? {
                let Some(row) = rows.get(&user) else { continue };
                let fact = |server| (server, Fact::Presence(row.clone()));
                facts.extend(servers.into_iter().map(fact));
            }
        }
        Ok(facts)
    }

    async fn take_receipts(
        &mut self,
        hosts: &Hosts,
        now_ms: u64,
        facts: &mut Vec<(OwnedServerName, Fact)>,
    ) -> Result<()> {
        self.quiet_until.retain(|_, until| *until > now_ms);
        let is_due = |room: &RoomNid| !self.quiet_until.contains_key(room);
        let rooms: Vec<RoomNid> = self.receipts.keys().copied().filter(is_due).collect();
        for (room, servers) in hosts.servers_in_all(&rooms).await? {
            let Some(rows) = self.receipts.remove(&room) else { continue };
            let pause_ms = servers.len() as u64 * 1_000 / self.receipts_per_second;
            self.quiet_until.insert(room, now_ms + pause_ms);
            for row in rows.into_values() {
                let fact = |server: &OwnedServerName| (server.clone(), Fact::Receipt(row.clone()));
                facts.extend(servers.iter().map(fact));
            }
        }
        Ok(())
    }

    async fn take_typing_news(
        &mut self,
        hosts: &Hosts,
        now_ms: u64,
        facts: &mut Vec<(OwnedServerName, Fact)>,
    ) -> Result<()> {
        let mut news = std::mem::take(&mut self.typing_news);
        self.typing.retain(|_, typing| typing.since_ms + TYPING_AT_MOST_MS > now_ms);
        for (room, typing) in &mut self.typing {
            if typing.told_ms + TYPING_EVERY_MS <= now_ms {
                typing.told_ms = now_ms;
                let users = typing.users.iter().cloned();
                news.extend(users.map(|user| (*room, typing.room_id.clone(), user, true)));
            }
        }
        let rooms: BTreeSet<RoomNid> = news.iter().map(|(room, ..)| *room).collect();
        let rooms: Vec<RoomNid> = rooms.into_iter().collect();
        let servers: HashMap<RoomNid, Vec<OwnedServerName>> =
            hosts.servers_in_all(&rooms).await?.into_iter().collect();
        for (room, room_id, user, types) in news {
            for server in servers.get(&room).into_iter().flatten() {
                let fact = Fact::Typing(room_id.clone(), user.clone(), types);
                facts.push((server.clone(), fact));
            }
        }
        Ok(())
    }
}

/// Rows need not come in order: some have waited, others are read later.
fn keep_newest<K: Ord, R>(place: Entry<'_, K, Arc<At<R>>>, new: At<R>) {
    match place {
        Entry::Occupied(known) if new.at < known.get().at => {}
        Entry::Occupied(mut known) => drop(known.insert(Arc::new(new))),
        Entry::Vacant(place) => drop(place.insert(Arc::new(new))),
    }
}

#[cfg(test)]
mod tests {
    use chatd_base::Position;
    use chatd_streams::presence::PresenceState;

    use super::*;

    #[test]
    fn what_comes_late_replaces_nothing_newer() {
        let at = |at: i64, active: bool| At {
            at: Position(at),
            row: PresenceRow {
                user: UserNid(1),
                user_id: "@x:a".try_into().unwrap(),
                state: PresenceState::Online,
                status_msg: None,
                currently_active: active,
                last_active_ts: 0,
            },
        };
        let mut spread = Spread::new("a".try_into().unwrap(), 1);
        for (new, is_active) in [(at(5, false), false), (at(3, true), false), (at(6, true), true)] {
            let mut news = News::default();
            news.presence.seen.push(new);
            spread.add(&mut news, 0);
            assert_eq!(spread.presence[&UserNid(1)].row.currently_active, is_active);
        }
    }

    fn row(room: i32, users: &[&str]) -> TypingRow {
        let users = users.iter().map(|user| OwnedUserId::try_from(*user).unwrap()).collect();
        TypingRow { room: RoomNid(room), room_id: "!r:a".try_into().unwrap(), users }
    }

    #[test]
    fn who_types_after_a_gap_is_what_the_writer_says() {
        let mut spread = Spread::new("a".try_into().unwrap(), 1);
        let typing = vec![row(1, &["@x:a"]), row(2, &["@y:a"])];
        spread.add(&mut News { typing, ..News::default() }, 0);
        spread.typing_news.clear();
        let all = vec![row(2, &["@y:a", "@z:a", "@far:b"])];
        spread.add(&mut News { all_typing: Some(all), ..News::default() }, 1);
        let news = spread.typing_news.iter();
        let news: Vec<_> =
            news.map(|(room, _, user, types)| (room.0, user.as_str(), *types)).collect();
        assert_eq!(news, [(1, "@x:a", false), (2, "@z:a", true)]);
        assert_eq!(spread.typing.len(), 1);
    }
}
