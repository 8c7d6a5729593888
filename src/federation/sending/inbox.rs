//! What the streams tell a sender while it runs. Folds only note; the sender reads the tables.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use chatd_base::{Position, RoomNid, UserNid, WriterId};
use chatd_streams::{
    Key, Picky, StreamToken, Streams,
    events::{EventRow, Membership},
    presence::PresenceRow,
    receipts::ReceiptRow,
    typing::TypingRow,
};
use parking_lot::Mutex;
use ruma_common::OwnedServerName;
use tokio::sync::Notify;

/// Facts of one kind that wait (R8); further ones are dropped.
const MOST: usize = 20_000;

/// What has come since the sender looked last. Folds are told before the token of their stream
/// moves, so the sender has to wait until that covers what it was told of.
#[derive(Default)]
pub(super) struct News {
    /// There are events to send: up to there.
    pub events: Option<StreamToken>,
    /// Device lists have changed: up to there.
    pub device_lists: Option<StreamToken>,
    /// Servers for whose devices there are messages.
    pub outbound: BTreeSet<OwnedServerName>,
    /// There may be messages for devices of any server.
    pub outbound_missed: bool,
    /// Servers that have shown signs of life.
    pub alive: BTreeSet<OwnedServerName>,
    /// Any server may have shown signs of life.
    pub alive_missed: bool,
    pub receipts: Vec<ReceiptRow>,
    pub typing: Vec<TypingRow>,
    pub presence: Vec<PresenceRow>,
    pub joins: Vec<Join>,
}

/// Somebody has come into a room.
#[derive(Clone, Debug)]
pub(super) struct Join {
    pub room: RoomNid,
    pub at: Position,
    pub writer: WriterId,
    pub user: UserNid,
    pub server: OwnedServerName,
}

impl Join {
    fn of(row: &EventRow, writer: WriterId, at: Position) -> Option<Self> {
        let change = row.membership.as_ref()?;
        let is_new = change.now == Membership::Join && change.before != Some(Membership::Join);
        let server = change.user_id.server_name().to_owned();
        is_new.then_some(Self { room: row.room, at, writer, user: change.user, server })
    }
}

impl News {
    /// There may be anything in the tables.
    pub(super) fn of_the_tables() -> Self {
        let all = || Some(StreamToken::default());
        Self { events: all(), device_lists: all(), ..Self::default() }
    }
}

/// Takes note that `writer` has something up to `upto`.
fn note(news: &mut Option<StreamToken>, writer: WriterId, upto: Position) {
    let known = news.take().unwrap_or_default();
    *news = Some(known.raised(writer, upto));
}

/// One sender's.
#[derive(Default)]
pub(super) struct Inbox {
    news: Mutex<News>,
    wake: Notify,
}

impl Inbox {
    pub(super) fn take(&self) -> News {
        std::mem::take(&mut self.news.lock())
    }

    /// Returns when something has come since it returned last.
    pub(super) async fn has_news(&self) {
        self.wake.notified().await;
    }
}

/// Those of the senders that run here.
#[derive(Default)]
pub(super) struct Inboxes(Mutex<Vec<Weak<Inbox>>>);

impl Inboxes {
    /// An inbox for a sender that begins: there may be anything.
    pub(super) fn open(&self) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::default());
        let mut all = self.0.lock();
        all.retain(|inbox| inbox.strong_count() > 0);
        all.push(Arc::downgrade(&inbox));
        inbox
    }

    /// Tells every sender that runs here.
    pub(super) fn tell(&self, note: impl Fn(&mut News)) {
        for inbox in self.0.lock().iter().filter_map(Weak::upgrade) {
            note(&mut inbox.news.lock());
            inbox.wake.notify_one();
        }
    }

    fn is_any_open(&self) -> bool {
        self.0.lock().iter().any(|inbox| inbox.strong_count() > 0)
    }
}

/// Where a sender runs all rows are wanted, elsewhere none.
impl Picky for Inboxes {
    fn wants(&self, _keys: &BTreeSet<Key>) -> bool {
        self.is_any_open()
    }

    fn pass(&self, _writer: WriterId, _upto: Position, _keys: &BTreeSet<Key>) {}
}

/// Adds up to the limit.
fn push<T: Clone>(waiting: &mut Vec<T>, row: &T) {
    if waiting.len() < MOST {
        waiting.push(row.clone());
    }
}

/// Has the senders that run here told of everything that `streams` bring.
pub(super) fn attach(inboxes: &Arc<Inboxes>, streams: &Streams) {
    macro_rules! on {
        ($feed:ident, |$all:ident, $frame:ident| $told:expr, $missed:expr) => {{
            let $all = inboxes.clone();
            streams.$feed.on_wanted_rows(inboxes.clone(), move |$frame| $told);
            let all = inboxes.clone();
            streams.$feed.on_skipped(move |writer, upto| {
                all.tell(|news| {
                    let missed: fn(&mut News, WriterId, Position) = $missed;
                    missed(news, writer, upto);
                });
            });
        }};
    }
    on!(
        events,
        |all, frame| {
            if frame.rows.iter().any(|(_, row)| row.to_send) {
                all.tell(|news| note(&mut news.events, frame.writer, frame.position));
            }
            let joins = frame.rows.iter();
            let joins = joins.filter_map(|(at, row)| Join::of(row, frame.writer, *at));
            let joins: Vec<Join> = joins.collect();
            if !joins.is_empty() {
                all.tell(|news| joins.iter().for_each(|join| push(&mut news.joins, join)));
            }
        },
        |news, writer, upto| note(&mut news.events, writer, upto)
    );
    on!(
        device_lists,
        |all, frame| if !frame.rows.is_empty() {
            all.tell(|news| note(&mut news.device_lists, frame.writer, frame.position));
        },
        |news, writer, upto| note(&mut news.device_lists, writer, upto)
    );
    on!(
        to_device,
        |all, frame| {
            let servers: Vec<&OwnedServerName> =
                frame.rows.iter().filter_map(|(_, row)| row.server.as_ref()).collect();
            if !servers.is_empty() {
                all.tell(|news| news.outbound.extend(servers.iter().map(|s| (*s).clone())));
            }
        },
        |news, _, _| news.outbound_missed = true
    );
    on!(
        receipts,
        |all, frame| all.tell(|news| {
            let public = frame.rows.iter().filter(|(_, row)| !row.is_private);
            public.for_each(|(_, row)| push(&mut news.receipts, row));
        }),
        |_, _, _| {}
    );
    on!(
        typing,
        |all, frame| all.tell(|news| {
            frame.rows.iter().for_each(|(_, row)| push(&mut news.typing, row));
        }),
        |_, _, _| {}
    );
    on!(
        presence,
        |all, frame| all.tell(|news| {
            frame.rows.iter().for_each(|(_, row)| push(&mut news.presence, row));
        }),
        |_, _, _| {}
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_sender_is_told_of_is_covered_only_when_the_token_has_moved() {
        let mut news = None;
        note(&mut news, WriterId(1), Position(7));
        note(&mut news, WriterId(2), Position(5));
        note(&mut news, WriterId(1), Position(6));
        let news = news.unwrap();
        for (token, is_covered) in [("m5~1.6", false), ("m4~1.7", false), ("m5~1.7", true)] {
            let token: StreamToken = token.parse().unwrap();
            assert_eq!(token.is_at_least(&news), is_covered, "{token}");
        }
    }
}
