//! What an instance has seen of a stream, and who is told of new rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use chatd_base::{Position, WriterId};
use chatd_config::StreamName;
use chatd_storage::positions::{Step, StreamId};
use metrics::Counter;
use parking_lot::{Mutex, RwLock};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::{
    Concerns, Key, StreamToken,
    bus::{Bus, Encode},
    meter::LaneMeter,
};

/// How long a frame that is on its way is waited for.
const FRAMES_WITHIN: Duration = Duration::from_secs(1);

/// A kind of facts.
pub trait Stream: Send + Sync + Sized + 'static {
    const NAME: &'static str;
    /// What the configuration calls it.
    const KIND: StreamName;
    const ID: StreamId;
    /// One fact; carries all that readers need, so that nobody reads it back.
    type Row: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Whom a row concerns. Views that see every row see it whatever this says.
    fn concerns(_row: &Self::Row) -> Concerns {
        Concerns::Everybody
    }
}

/// Rows of one commit, in order. `previous` is where the writer was before it.
#[derive(Clone, Debug)]
pub struct Frame<S: Stream> {
    pub writer: WriterId,
    pub previous: Position,
    pub position: Position,
    pub rows: Arc<[(Position, S::Row)]>,
}

/// What is known of a frame before its rows are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub writer: WriterId,
    pub previous: Position,
    pub position: Position,
    pub concerns: Concerns,
}

impl<S: Stream> Encode for Frame<S> {
    fn head(&self) -> Head {
        let Self { writer, previous, position, .. } = *self;
        let concerns = Concerns::of_all(self.rows.iter().map(|(_, row)| S::concerns(row)));
        Head { writer, previous, position, concerns }
    }

    fn rows(&self) -> Vec<u8> {
        serde_json::to_vec(&*self.rows).expect("rows are plain data, which always serialises")
    }
}

impl<S: Stream> Frame<S> {
    /// Reads what another instance has encoded. Fails on what are no rows of this stream.
    pub fn decode(head: &Head, rows: &[u8]) -> Result<Self, serde_json::Error> {
        let Head { writer, previous, position, .. } = *head;
        let rows: Vec<_> = serde_json::from_slice(rows)?;
        Ok(Self { writer, previous, position, rows: rows.into() })
    }
}

type Fold<S> = Box<dyn Fn(&Frame<S>) + Send + Sync>;
type Forget = Box<dyn Fn(WriterId, Position) + Send + Sync>;
type Part = Box<dyn Fn(WriterId) + Send + Sync>;

/// A view that wants the rows of some rooms or users only.
pub trait Picky: Send + Sync + 'static {
    /// Whether it wants rows that concern one of `keys`.
    fn wants(&self, keys: &BTreeSet<Key>) -> bool;

    /// Takes note that a frame which concerns `keys`, and which it did not want, has passed it by:
    /// its rows are in the tables.
    fn pass(&self, writer: WriterId, upto: Position, keys: &BTreeSet<Key>);
}

/// What is told of rows.
struct Views<S: Stream> {
    folds: Vec<Fold<S>>,
    /// Whether one of them has to see every row.
    sees_all: bool,
    picky: Vec<Arc<dyn Picky>>,
    forgets: Vec<Forget>,
    parts: Vec<Part>,
    /// Counts gaps.
    skips: Counter,
    /// Counts frames that nobody here wanted.
    passes: Counter,
}

/// One stream as this instance sees it.
pub struct Feed<S: Stream> {
    bus: Arc<dyn Bus>,
    /// Held while a frame is folded, so that frames of several writers do not interleave.
    views: Mutex<Views<S>>,
    writers: RwLock<BTreeMap<WriterId, Position>>,
    moved: watch::Sender<StreamToken>,
    /// By how much the tables were ahead of each other writer when they were compared last.
    lags: Mutex<BTreeMap<WriterId, i64>>,
    came_in: Counter,
    /// What this instance's committer does.
    pub lane: LaneMeter,
}

impl<S: Stream> Feed<S> {
    /// A feed that stands where the tables say; `known` lists positions of all streams.
    pub(crate) fn new(bus: Arc<dyn Bus>, known: &[(i16, WriterId, Position)]) -> Arc<Self> {
        let writers: BTreeMap<_, _> = known
            .iter()
            .filter(|(stream, ..)| *stream == S::ID.number)
            .map(|(_, writer, position)| (*writer, *position))
            .collect();
        let (moved, _) = watch::channel(StreamToken::from_writers(&writers));
        let skips = metrics::counter!("chatd_stream_skips_total", "stream" => S::NAME);
        let passes = metrics::counter!("chatd_stream_passes_total", "stream" => S::NAME);
        let views = Views {
            folds: Vec::new(),
            sees_all: false,
            picky: Vec::new(),
            forgets: Vec::new(),
            parts: Vec::new(),
            skips,
            passes,
        };
        Arc::new(Self {
            bus,
            views: Mutex::new(views),
            writers: RwLock::new(writers),
            moved,
            lags: Mutex::default(),
            came_in: metrics::counter!(
                "synapse_replication_tcp_protocol_inbound_rdata_count_total",
                "stream_name" => S::NAME
            ),
            lane: LaneMeter::new(S::NAME),
        })
    }

    /// Adds a view that is to see every row from now on. A fold must be quick and must not wait;
    /// it may not call back into this feed. Called while the instance is wired.
    pub fn on_rows(&self, fold: impl Fn(&Frame<S>) + Send + Sync + 'static) {
        let mut views = self.views.lock();
        views.sees_all = true;
        views.folds.push(Box::new(fold));
    }

    /// Adds a view to which rows that do not concern everybody mean nothing; it may see them or
    /// not. The same rules hold as for [`Feed::on_rows`].
    pub fn on_common_rows(&self, fold: impl Fn(&Frame<S>) + Send + Sync + 'static) {
        self.views.lock().folds.push(Box::new(fold));
    }

    /// Adds a view that wants the rows which concern everybody, and those of some rooms and users;
    /// it may see more. The same rules hold as for [`Feed::on_rows`].
    pub fn on_wanted_rows(
        &self,
        view: Arc<dyn Picky>,
        fold: impl Fn(&Frame<S>) + Send + Sync + 'static,
    ) {
        let mut views = self.views.lock();
        views.picky.push(view);
        views.folds.push(Box::new(fold));
    }

    /// Adds what a view does when rows have passed it by: those of that writer up to that
    /// position are in the tables, and what the view knows may be older than they are. The same
    /// rules hold as for [`Feed::on_rows`].
    pub fn on_skipped(&self, forget: impl Fn(WriterId, Position) + Send + Sync + 'static) {
        self.views.lock().forgets.push(Box::new(forget));
    }

    /// Adds what a view does when a writer writes this stream no more; then its tokens need not
    /// name it. The same rules hold as for [`Feed::on_rows`].
    pub fn on_retired(&self, part: impl Fn(WriterId) + Send + Sync + 'static) {
        self.views.lock().parts.push(Box::new(part));
    }

    /// How far this instance has folded the stream.
    pub fn token(&self) -> StreamToken {
        self.moved.borrow().clone()
    }

    /// How far it has folded one writer.
    pub fn position_of(&self, writer: WriterId) -> Position {
        self.writers.read().get(&writer).copied().unwrap_or_default()
    }

    /// How far it has folded each writer.
    pub fn positions(&self) -> BTreeMap<WriterId, Position> {
        self.writers.read().clone()
    }

    /// Changes each time that the token does.
    pub fn watch(&self) -> watch::Receiver<StreamToken> {
        self.moved.subscribe()
    }

    /// Waits until everything that `token` covers has been folded here; false after `bound`.
    pub async fn wait_for(&self, token: &StreamToken, bound: Duration) -> bool {
        let mut moved = self.moved.subscribe();
        let reached = moved.wait_for(|now| now.is_at_least(token));
        matches!(tokio::time::timeout(bound, reached).await, Ok(Ok(_)))
    }

    /// Returns when what `writer` has put at `position` is known here: its frame has come, or, if
    /// that takes too long, the views read it from the tables.
    pub(crate) async fn reach(&self, writer: WriterId, position: Position) {
        if self.position_of(writer) >= position {
            return;
        }
        let mut moved = self.moved.subscribe();
        let reached = moved.wait_for(|_| self.position_of(writer) >= position);
        if !matches!(tokio::time::timeout(self.patience(), reached).await, Ok(Ok(_))) {
            self.skip(writer, position);
        }
    }

    /// The same for each writer that `token` names. Its minimum is taken for known.
    pub async fn reach_all(&self, token: &StreamToken) {
        if self.wait_for(token, self.patience()).await {
            return;
        }
        for (writer, position) in &token.ahead {
            // One that is gone needs no name in tokens, and must not get one again.
            if !self.token().covers(*writer, *position) {
                self.skip(*writer, *position);
            }
        }
    }

    /// How long to wait for frames.
    fn patience(&self) -> Duration {
        if self.bus.is_calm() { FRAMES_WITHIN } else { Duration::ZERO }
    }

    /// Takes in a durable frame of this instance's own writer and hands it to the others.
    pub(crate) fn publish(&self, frame: &Frame<S>) {
        self.apply(frame);
        self.bus.publish(S::NAME, frame);
    }

    /// Whether there are other instances.
    pub(crate) fn has_others(&self) -> bool {
        self.bus.patience().is_some()
    }

    /// Tells the others where a writer stands in the tables.
    pub(crate) fn announce(&self, writer: WriterId, position: Position) {
        let rows = Arc::new([]);
        self.bus.publish(S::NAME, &Frame::<S> { writer, previous: position, position, rows });
    }

    /// Takes in that a writer was moved without rows, and tells the others.
    pub(crate) fn publish_step(&self, step: &Step) {
        let Step { writer, stood_at: previous, stands_at: position, .. } = *step;
        if position > self.position_of(writer) {
            self.publish(&Frame { writer, previous, position, rows: Arc::new([]) });
        }
    }

    /// Writers behind the furthest one, except `living`.
    pub(crate) fn left_behind(&self, living: &[WriterId]) -> Vec<WriterId> {
        let writers = self.writers.read();
        let Some(furthest) = writers.values().max() else { return Vec::new() };
        let behind = writers.iter().filter(|(who, at)| *at < furthest && !living.contains(who));
        behind.map(|(writer, _)| *writer).collect()
    }

    /// Takes in a frame that came over the bus. Its rows are read only if they are news to
    /// somebody here. Fails if they cannot be read.
    pub(crate) fn take(&self, head: &Head, rows: &[u8]) -> Result<(), serde_json::Error> {
        self.came_in.increment(1);
        if head.position > self.position_of(head.writer) && !self.pass(head) {
            self.apply(&Frame::decode(head, rows)?);
        }
        Ok(())
    }

    /// Lets a frame pass that no view wants; false if one does.
    fn pass(&self, head: &Head) -> bool {
        let Concerns::Only(keys) = &head.concerns else { return false };
        let views = self.views.lock();
        let known = self.position_of(head.writer);
        if views.sees_all || keys.is_empty() || views.picky.iter().any(|view| view.wants(keys)) {
            return false;
        }
        if head.position > known {
            if head.previous > known {
                views.skip(head.writer, head.previous);
            }
            views.passes.increment(1);
            views.picky.iter().for_each(|view| view.pass(head.writer, head.position, keys));
            self.advance(head.writer, head.position);
        }
        true
    }

    /// By how much the tables were ahead of `writer` when they were compared last.
    pub(crate) fn lag_of(&self, writer: WriterId) -> i64 {
        self.lags.lock().get(&writer).copied().unwrap_or_default()
    }

    /// Folds a frame, then moves the token. A frame that was seen before is ignored, and one that
    /// comes after a gap makes the views forget first (R4).
    pub fn apply(&self, frame: &Frame<S>) {
        if frame.rows.is_empty() && !self.writers.read().contains_key(&frame.writer) {
            return self.skip(frame.writer, frame.position);
        }
        let views = self.views.lock();
        let known = self.position_of(frame.writer);
        if frame.position <= known {
            return;
        }
        if frame.previous > known {
            views.skip(frame.writer, frame.previous);
        }
        for fold in &views.folds {
            fold(frame);
        }
        self.advance(frame.writer, frame.position);
    }

    /// Takes note that `writer` has rows up to `position` in the tables, which this instance has
    /// not been given. Those at or below the known position change nothing.
    pub fn skip(&self, writer: WriterId, position: Position) {
        let views = self.views.lock();
        // One that is new must be known before its first row, so that tokens do not cover that. It
        // has none yet: tokens that do not name it have passed its place, and must not go back.
        let known = self.writers.read().get(&writer).copied();
        let position = if known.is_none() { position.max(self.token().min) } else { position };
        let lag = known.map_or(0, |known| (position.0 - known.0).max(0));
        self.lags.lock().insert(writer, lag);
        if known.is_some_and(|known| position <= known) {
            return;
        }
        views.skip(writer, position);
        self.advance(writer, position);
    }

    /// Forgets a writer that ended at `position`. One that has been seen further has come back.
    pub(crate) fn retire(&self, writer: WriterId, position: Position) {
        let views = self.views.lock();
        let known = self.writers.read().get(&writer).copied();
        let Some(known) = known.filter(|known| *known <= position) else { return };
        if known < position {
            views.skip(writer, position);
        }
        let token = {
            let mut writers = self.writers.write();
            writers.remove(&writer);
            StreamToken::from_writers(&writers)
        };
        views.parts.iter().for_each(|part| part(writer));
        self.lags.lock().remove(&writer);
        self.moved.send_replace(token);
    }

    fn advance(&self, writer: WriterId, position: Position) {
        let token = {
            let mut writers = self.writers.write();
            writers.insert(writer, position);
            StreamToken::from_writers(&writers)
        };
        self.moved.send_replace(token);
    }
}

impl<S: Stream> Views<S> {
    fn skip(&self, writer: WriterId, position: Position) {
        self.skips.increment(1);
        for forget in &self.forgets {
            forget(writer, position);
        }
    }
}
