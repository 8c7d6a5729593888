//! What the streams tell a sender while it runs. Folds only note; the sender reads the tables.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use chatd_base::{Position, WriterId};
use chatd_streams::{
    Key, Picky, Streams, presence::PresenceRow, receipts::ReceiptRow, typing::TypingRow,
};
use parking_lot::Mutex;
use ruma_common::OwnedServerName;
use tokio::sync::Notify;

/// Facts of one kind that wait (R8); further ones are dropped.
const MOST: usize = 20_000;

/// What has come since the sender looked last.
#[derive(Default)]
pub(super) struct News {
    /// There are events to send.
    pub events: bool,
    /// Device lists have changed.
    pub device_lists: bool,
    /// Servers for whose devices there are messages.
    pub outbound: BTreeSet<OwnedServerName>,
    /// There may be messages for devices of any server.
    pub outbound_missed: bool,
    /// Servers that have shown signs of life.
    pub alive: BTreeSet<OwnedServerName>,
    pub receipts: Vec<ReceiptRow>,
    pub typing: Vec<TypingRow>,
    pub presence: Vec<PresenceRow>,
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
            streams.$feed.on_skipped(move |_, _| all.tell($missed));
        }};
    }
    on!(
        events,
        |all, frame| {
            if frame.rows.iter().any(|(_, row)| row.to_send) {
                all.tell(|news| news.events = true);
            }
        },
        |news| news.events = true
    );
    on!(
        device_lists,
        |all, frame| if !frame.rows.is_empty() {
            all.tell(|news| news.device_lists = true);
        },
        |news| news.device_lists = true
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
        |news| news.outbound_missed = true
    );
    on!(
        receipts,
        |all, frame| all.tell(|news| {
            let public = frame.rows.iter().filter(|(_, row)| !row.is_private);
            public.for_each(|(_, row)| push(&mut news.receipts, row));
        }),
        |_| {}
    );
    on!(
        typing,
        |all, frame| all.tell(|news| {
            frame.rows.iter().for_each(|(_, row)| push(&mut news.typing, row));
        }),
        |_| {}
    );
    on!(
        presence,
        |all, frame| all.tell(|news| {
            frame.rows.iter().for_each(|(_, row)| push(&mut news.presence, row));
        }),
        |_| {}
    );
}
