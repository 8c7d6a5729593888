//! What is told while it is true, and what this sender was not told of it: rows that the bus has
//! lost, and those that came while nobody sent to its servers. The tables have them, of typing its
//! writer; of all there is no more than the newest is read, in one query each.

use std::collections::VecDeque;

use chatd_base::{Position, Result, tasks};
use chatd_storage::{
    receipts,
    sending::Told,
    sending_missed::{self, Between},
};
use chatd_streams::{
    StreamToken,
    presence::{PresenceRow, PresenceState},
    receipts::ReceiptRow,
};
use ruma_common::{OwnedServerName, OwnedUserId, UserId};

use super::{Part, reach, token};
use crate::sending::{
    destination::Destination,
    ephemeral::Oldest,
    inbox::{At, Join, News, Rows},
    shards::least,
};

/// Rows that are read of what was missed (R8).
const MOST: i64 = 10_000;
/// Receipts that wait for their events (R8); further ones are told at once.
const MOST_EARLY: usize = 20_000;
/// How long a receipt waits for an event that does not come, and how often that is looked at.
const EARLY_MS: u64 = 5_000;
const EARLY_EVERY_MS: u64 = 100;

/// Up to where rows of each stream have come to a sender.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub receipts: StreamToken,
    pub presence: StreamToken,
    pub events: StreamToken,
}

impl Seen {
    /// What the tables say of a shard.
    pub(super) fn of(told: &Told) -> Result<Self> {
        let Told { events, receipts, presence, .. } = told;
        let (receipts, presence) = (token(receipts)?, token(presence)?);
        Ok(Self { receipts, presence, events: token(events)? })
    }

    /// What both cover.
    pub(super) fn least(&self, other: &Self) -> Self {
        Self {
            receipts: least(&self.receipts, &other.receipts),
            presence: least(&self.presence, &other.presence),
            events: least(&self.events, &other.events),
        }
    }
}

/// Receipts of events that have not come yet: another server may know nothing of a receipt whose
/// event it does not have. Each with the time after which it waits no longer.
#[derive(Default)]
pub(super) struct Early {
    receipts: VecDeque<(u64, At<ReceiptRow>)>,
    look_at: u64,
}

impl Early {
    /// When it is to be looked whether their events have come.
    pub(super) fn due(&self) -> Option<u64> {
        (!self.receipts.is_empty()).then_some(self.look_at)
    }

    /// Puts those aside for which `has_come` does not hold, and adds those that need not wait any
    /// more.
    fn sort(
        &mut self,
        new: &mut Vec<At<ReceiptRow>>,
        has_come: impl Fn(&ReceiptRow) -> bool,
        now_ms: u64,
    ) {
        let waiting = std::mem::take(&mut self.receipts).into_iter();
        let new_ones = std::mem::take(new).into_iter().map(|one| (now_ms + EARLY_MS, one));
        for (until, receipt) in waiting.chain(new_ones) {
            let is_over = until <= now_ms || self.receipts.len() >= MOST_EARLY;
            if is_over || has_come(&receipt.row) {
                new.push(receipt);
            } else {
                self.receipts.push_back((until, receipt));
            }
        }
        self.look_at = now_ms + EARLY_EVERY_MS;
    }

    fn oldest(&self) -> Oldest {
        let receipt = self.receipts.iter().map(|(_, receipt)| receipt.at).min();
        Oldest { receipt, presence: None }
    }
}

/// Where `token` is without what is at `oldest` and later.
fn without(token: &StreamToken, oldest: Option<Position>) -> StreamToken {
    let before = |oldest: Position| least(token, &StreamToken::at(Position(oldest.0 - 1)));
    oldest.map_or_else(|| token.clone(), before)
}

impl Part {
    /// How far the feeds are. What they cover has been noted in the inbox.
    pub(super) fn seen_now(&self) -> Seen {
        let streams = self.with.streams();
        Seen {
            receipts: streams.receipts.token(),
            presence: streams.presence.token(),
            events: streams.events.token(),
        }
    }

    /// Adds to `news` what is only in the tables. When this has been done, everything up to `upto`
    /// has come.
    pub(super) async fn read_missed(&mut self, news: &mut News, mut upto: Seen) -> Result<()> {
        let with = self.with.clone();
        let (pool, own, streams) = (with.pool(), with.own_name().as_str(), with.streams());
        if let Some(missed) = news.receipts.missed.take() {
            reach(&streams.receipts, &missed).await?;
            upto.receipts = streams.receipts.token();
            let between = between(&self.seen.receipts, &upto.receipts);
            let found = sending_missed::list_receipts(pool, between, own, MOST).await?;
            news.receipts.put_before(found.into_iter().rev().filter_map(receipt));
        }
        if let Some(missed) = news.presence.missed.take() {
            reach(&streams.presence, &missed).await?;
            upto.presence = streams.presence.token();
            let between = between(&self.seen.presence, &upto.presence);
            let found = sending_missed::list_presence(pool, between, own, MOST).await?;
            news.presence.put_before(found.into_iter().rev().filter_map(presence));
        }
        if let Some(missed) = news.joins.missed.take() {
            reach(&streams.events, &missed).await?;
            // Whoever has come since may be told of twice.
            let between = between(&self.seen.events, &streams.events.token());
            let found = sending_missed::list_joins(pool, between, MOST).await?;
            news.joins.put_before(found.into_iter().rev().filter_map(join));
        }
        if std::mem::take(&mut news.typing_missed) {
            self.ask_who_types();
        }
        self.seen = upto;
        Ok(())
    }

    /// The writer of typing is asked, and nobody waits for it.
    fn ask_who_types(&self) {
        let (inbox, typing) = (self.inbox.clone(), self.with.deps.users.typing.clone());
        tasks::spawn("federation_typing", async move {
            match typing.list_all().await {
                Ok(all) => inbox.tell_typing(all),
                Err(error) => tracing::debug!(%error, "who types is not known"),
            }
        });
    }

    /// Keeps those receipts back whose event has not come.
    pub(super) fn hold_early(&mut self, receipts: &mut Vec<At<ReceiptRow>>, now_ms: u64) {
        let known = self.seen.events.min;
        self.early.sort(receipts, |row| row.event_pos <= known, now_ms);
    }

    /// Up to where receipts and presence have arrived at all servers that answer.
    pub(super) fn told_of_edus(&self) -> Seen {
        let one = |one: &Destination| one.ephemeral.oldest();
        let answering = self.destinations.values().filter(|one| !one.is_behind);
        let oldest = self.spread.oldest().and(self.early.oldest());
        let oldest = answering.map(one).fold(oldest, Oldest::and);
        Seen {
            receipts: without(&self.seen.receipts, oldest.receipt),
            presence: without(&self.seen.presence, oldest.presence),
            events: self.seen.events.clone(),
        }
    }
}

fn between(low: &StreamToken, high: &StreamToken) -> Between {
    Between { low: low.min, high: high.max() }
}

impl<R> Rows<R> {
    /// Adds rows that may be older than those that have come.
    fn put_before(&mut self, rows: impl Iterator<Item = At<R>>) {
        self.seen.splice(0..0, rows.collect::<Vec<_>>());
    }
}

fn receipt(found: (receipts::Stored, String, String)) -> Option<At<ReceiptRow>> {
    let (found, room_id, user_id) = found;
    let row = ReceiptRow {
        room: found.room,
        room_id: room_id.try_into().ok()?,
        user: found.user,
        user_id: user_id.try_into().ok()?,
        is_private: found.is_private,
        thread: Some(found.thread).filter(|thread| !thread.is_empty()),
        event_id: found.event_id.try_into().ok()?,
        event_pos: found.event_pos,
        ts: found.ts,
    };
    Some(At { at: found.pos, row })
}

fn presence(found: (chatd_storage::presence::Stored, String)) -> Option<At<PresenceRow>> {
    let (stored, user_id) = found;
    let row = PresenceRow {
        user: stored.user,
        user_id: OwnedUserId::try_from(user_id).ok()?,
        state: PresenceState::from_letter(stored.state)?,
        status_msg: stored.status_msg,
        currently_active: stored.currently_active,
        last_active_ts: stored.last_active_ts,
    };
    Some(At { at: stored.pos, row })
}

fn join(found: sending_missed::MissedJoin) -> Option<At<Join>> {
    let user = <&UserId>::try_from(found.user_id.as_str()).ok()?;
    let server: OwnedServerName = user.server_name().to_owned();
    let row = Join { room: found.room, writer: found.writer, user: found.user, server };
    Some(At { at: found.pos, row })
}

#[cfg(test)]
mod tests {
    use chatd_base::{RoomNid, UserNid};

    use super::*;

    fn receipt(at: i64, event_pos: i64) -> At<ReceiptRow> {
        let row = ReceiptRow {
            room: RoomNid(1),
            room_id: "!r:a".try_into().unwrap(),
            user: UserNid(1),
            user_id: "@a:a".try_into().unwrap(),
            is_private: false,
            thread: None,
            event_id: "$e".try_into().unwrap(),
            event_pos: Position(event_pos),
            ts: 7,
        };
        At { at: Position(at), row }
    }

    #[test]
    fn a_receipt_waits_for_its_event_but_not_for_ever() {
        let mut early = Early::default();
        let upto = |known: i64| move |row: &ReceiptRow| row.event_pos.0 <= known;
        let positions = |all: &[At<ReceiptRow>]| all.iter().map(|one| one.at.0).collect::<Vec<_>>();
        let mut new = vec![receipt(1, 10), receipt(2, 20), receipt(3, 30)];
        early.sort(&mut new, upto(10), 0);
        assert_eq!(positions(&new), [1]);
        assert_eq!(early.oldest().receipt, Some(Position(2)));
        let mut new = vec![receipt(4, 20)];
        early.sort(&mut new, upto(20), 1);
        assert_eq!(positions(&new), [2, 4]);
        let mut new = Vec::new();
        early.sort(&mut new, upto(20), EARLY_MS);
        assert_eq!((positions(&new), early.due()), (vec![3], None));
    }

    #[test]
    fn what_has_not_arrived_is_not_told() {
        let token: StreamToken = "m5~1.9".parse().unwrap();
        for (oldest, told) in [(None, "m5~1.9"), (Some(8), "m5~1.7"), (Some(3), "2")] {
            assert_eq!(without(&token, oldest.map(Position)).to_string(), told);
        }
    }
}
