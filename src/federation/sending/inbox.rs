//! What the streams tell a sender while it runs. Folds only note; the sender reads the tables.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use chatd_base::{Position, RoomNid, UserNid, WriterId};
use chatd_streams::{
    Feed, Frame, Key, Picky, Stream, StreamToken, Streams,
    device_lists::DeviceLists,
    events::{EventRow, Events, Membership},
    presence::{Presence, PresenceRow},
    receipts::{ReceiptRow, Receipts},
    to_device::ToDevice,
    typing::{Typing, TypingRow},
};
use parking_lot::Mutex;
use ruma_common::OwnedServerName;
use tokio::sync::Notify;

/// Facts of one kind that wait (R8); further ones are read from the tables.
const MOST: usize = 20_000;

/// A row and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<R> {
    pub at: Position,
    pub row: R,
}

/// Rows as they came, unless they are to be read.
#[derive(Debug)]
pub(super) struct Rows<R> {
    pub seen: Vec<At<R>>,
    /// There are some in the tables that were not seen: up to there.
    pub missed: Option<StreamToken>,
}

impl<R> Default for Rows<R> {
    fn default() -> Self {
        Self { seen: Vec::new(), missed: None }
    }
}

impl<R> Rows<R> {
    /// There may be anything in the tables.
    fn of_the_tables() -> Self {
        Self { missed: Some(StreamToken::default()), ..Self::default() }
    }

    fn push(&mut self, writer: WriterId, at: Position, row: impl FnOnce() -> R) {
        if self.seen.len() < MOST {
            self.seen.push(At { at, row: row() });
        } else {
            note(&mut self.missed, writer, at);
        }
    }
}

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
    pub receipts: Rows<ReceiptRow>,
    pub presence: Rows<PresenceRow>,
    pub joins: Rows<Join>,
    pub typing: Vec<TypingRow>,
    /// Some of it was not seen: its writer knows.
    pub typing_missed: bool,
    /// All who typed when the writer was asked.
    pub all_typing: Option<Vec<TypingRow>>,
}

/// Somebody has come into a room.
#[derive(Clone, Debug)]
pub(super) struct Join {
    pub room: RoomNid,
    pub writer: WriterId,
    pub user: UserNid,
    pub server: OwnedServerName,
}

impl Join {
    fn of(row: &EventRow, writer: WriterId) -> Option<Self> {
        let change = row.membership.as_ref()?;
        let is_new = change.now == Membership::Join && change.before != Some(Membership::Join);
        let server = change.user_id.server_name().to_owned();
        is_new.then_some(Self { room: row.room, writer, user: change.user, server })
    }
}

impl News {
    /// There may be anything in the tables.
    pub(super) fn of_the_tables() -> Self {
        let all = || Some(StreamToken::default());
        Self {
            events: all(),
            device_lists: all(),
            receipts: Rows::of_the_tables(),
            presence: Rows::of_the_tables(),
            joins: Rows::of_the_tables(),
            typing_missed: true,
            ..Self::default()
        }
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

    /// Who types, as its writer has told.
    pub(super) fn tell_typing(&self, all: Vec<TypingRow>) {
        self.news.lock().all_typing = Some(all);
        self.wake.notify_one();
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

/// Has the senders that run here told of everything that `streams` bring.
pub(super) fn attach(inboxes: &Arc<Inboxes>, streams: &Streams) {
    follow(inboxes, &streams.events, tell_events, |news, writer, upto| {
        note(&mut news.events, writer, upto);
        note(&mut news.joins.missed, writer, upto);
    });
    follow(inboxes, &streams.device_lists, tell_device_lists, |news, writer, upto| {
        note(&mut news.device_lists, writer, upto);
    });
    follow(inboxes, &streams.to_device, tell_messages, |news, _, _| news.outbound_missed = true);
    follow(inboxes, &streams.receipts, tell_receipts, |news, writer, upto| {
        note(&mut news.receipts.missed, writer, upto);
    });
    follow(inboxes, &streams.typing, tell_typing, |news, _, _| news.typing_missed = true);
    follow(inboxes, &streams.presence, tell_presence, |news, writer, upto| {
        note(&mut news.presence.missed, writer, upto);
    });
}

/// Has the senders told of the rows of one stream, and of those that have passed by.
fn follow<S: Stream>(
    inboxes: &Arc<Inboxes>,
    feed: &Feed<S>,
    tell: fn(&Inboxes, &Frame<S>),
    missed: fn(&mut News, WriterId, Position),
) {
    let all = inboxes.clone();
    feed.on_wanted_rows(inboxes.clone(), move |frame| tell(&all, frame));
    let all = inboxes.clone();
    feed.on_skipped(move |writer, upto| all.tell(|news| missed(news, writer, upto)));
}

fn tell_events(all: &Inboxes, frame: &Frame<Events>) {
    if frame.rows.iter().any(|(_, row)| row.to_send) {
        all.tell(|news| note(&mut news.events, frame.writer, frame.position));
    }
    let joins = frame.rows.iter();
    let joins = joins.filter_map(|(at, row)| Some((*at, Join::of(row, frame.writer)?)));
    let joins: Vec<(Position, Join)> = joins.collect();
    if !joins.is_empty() {
        all.tell(|news| {
            for (at, join) in &joins {
                news.joins.push(frame.writer, *at, || join.clone());
            }
        });
    }
}

fn tell_device_lists(all: &Inboxes, frame: &Frame<DeviceLists>) {
    if !frame.rows.is_empty() {
        all.tell(|news| note(&mut news.device_lists, frame.writer, frame.position));
    }
}

fn tell_messages(all: &Inboxes, frame: &Frame<ToDevice>) {
    let servers = frame.rows.iter().filter_map(|(_, row)| row.server.as_ref());
    let servers: Vec<&OwnedServerName> = servers.collect();
    if !servers.is_empty() {
        all.tell(|news| news.outbound.extend(servers.iter().copied().cloned()));
    }
}

fn tell_receipts(all: &Inboxes, frame: &Frame<Receipts>) {
    all.tell(|news| {
        for (at, row) in frame.rows.iter().filter(|(_, row)| !row.is_private) {
            news.receipts.push(frame.writer, *at, || row.clone());
        }
    });
}

fn tell_typing(all: &Inboxes, frame: &Frame<Typing>) {
    all.tell(|news| {
        let room = MOST.saturating_sub(news.typing.len());
        news.typing_missed |= frame.rows.len() > room;
        news.typing.extend(frame.rows.iter().take(room).map(|(_, row)| row.clone()));
    });
}

fn tell_presence(all: &Inboxes, frame: &Frame<Presence>) {
    all.tell(|news| {
        for (at, row) in frame.rows.iter() {
            news.presence.push(frame.writer, *at, || row.clone());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_in_is_read_from_the_tables() {
        let mut rows: Rows<i64> = Rows::default();
        for at in 0..20_000 {
            rows.push(WriterId(1), Position(at), || at);
        }
        assert_eq!(rows.missed, None);
        rows.push(WriterId(2), Position(20_005), || 5);
        assert_eq!(rows.seen.len(), 20_000);
        assert_eq!(rows.missed.unwrap().of(WriterId(2)), Position(20_005));
    }

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
