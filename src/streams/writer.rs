//! The one committer of a stream on this instance: it turns all writes that wait into one
//! transaction (group commit), which also carries the writer's new position.
//!
//! Where the configuration gives the stream to others, there is no committer: a [`Writer`] has one
//! of them write, by a call with a key that is committed with the change, and returns when this
//! instance has the row as well (a client reads here what it has written here).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use chatd_base::{Position, Refusal, Result, Stop, WriterId, tasks};
use chatd_storage::{
    Batch, Error, Pool, effects,
    positions::{self, POSITION_BLOCK, Seat, Step},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::{Feed, Frame, Others, Stream, Streams, seat};

/// How a stream's changes are stored.
pub trait Persist: Stream {
    /// What a caller asks to have written. It may put several rows on the stream.
    type Change: Send + Sync + 'static;

    /// The rows that the change puts on the stream: at least one.
    fn rows(change: &Self::Change) -> Vec<Self::Row>;

    /// Adds the statements that store `changes`, as arrays over all of them. The position of a
    /// change's first row is `currval(sequence) + offset`, its second row's is one more …
    fn persist(batch: &mut Batch, changes: &[(i64, &Self::Change)]);
}

/// Where a change was put: by whom, and where the commit ended that it was part of. Whoever knows
/// the stream up to there knows whole commits.
type Written = (WriterId, Position);

struct Job<S: Persist> {
    change: S::Change,
    /// Of a change that another instance asks for.
    key: Option<Uuid>,
    done: oneshot::Sender<Result<Written, Error>>,
}

/// The way into a stream. Cheap to clone.
pub struct Writer<S: Persist>(Place<S>);

enum Place<S: Persist> {
    Here(Queue<S>),
    Elsewhere(Arc<Away<S>>),
}

/// Handle to the committer.
struct Queue<S: Persist>(mpsc::Sender<Job<S>>);

/// The way to the committers of other instances.
struct Away<S: Persist> {
    feed: Arc<Feed<S>>,
    others: Arc<Others>,
    encode: Encode<S>,
}

/// Makes a call of a change; `None` if it cannot travel.
type Encode<S> = fn(Uuid, &<S as Persist>::Change) -> Option<serde_json::Result<Vec<u8>>>;

impl<S: Persist> Clone for Writer<S> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Place::Here(queue) => Place::Here(queue.clone()),
            Place::Elsewhere(away) => Place::Elsewhere(away.clone()),
        })
    }
}

impl<S: Persist> Clone for Queue<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Changes that may wait for the committer (R8).
const QUEUE: usize = 4096;
/// Changes that one commit may hold.
const MOST_CHANGES: usize = 512;
/// How long a caller waits for a database that is away. What it asked for may still happen; a
/// repeat with the same transaction id finds out.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between questions to a database that is away; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// How long a writer that has nothing to write waits before it follows the others.
const IDLE: Duration = Duration::from_secs(3);
/// How often a transaction is sent again that met another one.
const REPEATS: u32 = 5;

impl<S: Persist> Writer<S>
where
    S::Change: Serialize + DeserializeOwned,
{
    /// The way to the committer, which is started if this instance writes the stream. Others may
    /// call it then.
    pub fn open(streams: &Streams, feed: &Arc<Feed<S>>, pool: &Pool, stop: &Stop) -> Self {
        let writer = Self::open_here(streams, feed, pool, stop);
        match writer.0 {
            Place::Here(queue) => {
                let answers = queue.clone();
                streams.calls.on(call_name::<S>(), move |body| answer(answers.clone(), body));
                Self(Place::Here(queue))
            }
            Place::Elsewhere(_) => {
                let encode: Encode<S> = |key, change| Some(serde_json::to_vec(&(key, change)));
                let (feed, others) = (feed.clone(), streams.others.clone());
                Self(Place::Elsewhere(Arc::new(Away { feed, others, encode })))
            }
        }
    }
}

impl<S: Persist> Writer<S> {
    /// As [`Writer::open`], for changes that cannot travel: whole requests go to where the stream
    /// is written, and a change elsewhere is an internal error.
    pub fn open_here(streams: &Streams, feed: &Arc<Feed<S>>, pool: &Pool, stop: &Stop) -> Self {
        if !streams.writes(S::KIND) {
            let (feed, others) = (feed.clone(), streams.others.clone());
            return Self(Place::Elsewhere(Arc::new(Away { feed, others, encode: |_, _| None })));
        }
        let (queue, jobs) = mpsc::channel(QUEUE);
        let weak = queue.downgrade();
        feed.lane.watch_queue(move || {
            weak.upgrade().map_or(0, |queue| queue.max_capacity() - queue.capacity())
        });
        let committer = Committer(Line::new(pool, feed, streams.writer, stop));
        tasks::spawn_vital(S::NAME, stop, committer.run(jobs));
        Self(Place::Here(Queue(queue)))
    }

    /// Writes `change`. On return it is durable (R1) and known on this instance. Refuses
    /// ([`Refusal::repeat`]) what violates a unique constraint.
    pub async fn append(&self, change: S::Change) -> Result<()> {
        match &self.0 {
            Place::Here(queue) => queue.append(change, None).await.map(drop),
            Place::Elsewhere(away) => away.append(&change).await,
        }
    }
}

impl<S: Persist> Queue<S> {
    async fn append(&self, change: S::Change, key: Option<Uuid>) -> Result<Written> {
        let (done, outcome) = oneshot::channel();
        let gone = || Error::Lost("the server is stopping".to_owned());
        let written = async {
            self.0.send(Job { change, key, done }).await.map_err(|_| gone())?;
            outcome.await.map_err(|_| gone())?
        };
        let late = |_| Error::Lost("the database did not answer in time".to_owned());
        let written = tokio::time::timeout(PATIENCE, written).await.map_err(late)?;
        written.map_err(|error| match error.is_unique_violation() {
            true => Refusal::repeat().into(),
            false => error.into(),
        })
    }
}

impl<S: Persist> Away<S> {
    async fn append(&self, change: &S::Change) -> Result<()> {
        let elsewhere = || format!("{} is written by another instance", S::NAME);
        let body = (self.encode)(Uuid::from_u128(rand::random()), change)
            .ok_or_else(|| chatd_base::Error::internal(elsewhere()))?
            .map_err(chatd_base::Error::internal)?;
        let answer = self.others.ask_writer(S::KIND, &call_name::<S>(), body.into()).await?;
        let (writer, position) =
            serde_json::from_slice(&answer).map_err(chatd_base::Error::internal)?;
        self.feed.reach(writer, position).await;
        Ok(())
    }
}

/// What a call to a committer is named.
fn call_name<S: Stream>() -> String {
    format!("append.{}", S::NAME)
}

/// Writes what another instance asks for.
async fn answer<S: Persist>(queue: Queue<S>, body: Bytes) -> Result<Vec<u8>>
where
    S::Change: DeserializeOwned,
{
    let (key, change) = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_json(format!("not a change of {}: {error}", S::NAME)))?;
    let written = queue.append(change, Some(key)).await?;
    serde_json::to_vec(&written).map_err(chatd_base::Error::internal)
}

struct Committer<S: Persist>(Line<S>);

impl<S: Persist> Committer<S> {
    /// Until all handles are gone, or the end was asked for and nothing waits any more.
    async fn run(self, mut jobs: mpsc::Receiver<Job<S>>) {
        let mut waiting = Vec::with_capacity(MOST_CHANGES);
        loop {
            let received = tokio::select! {
                biased;
                count = jobs.recv_many(&mut waiting, MOST_CHANGES) => count,
                () = self.0.stop.triggered() => 0,
                () = self.0.idle() => {
                    self.0.catch_up().await;
                    continue;
                }
            };
            if received == 0 {
                return;
            }
            self.commit_all(std::mem::take(&mut waiting)).await;
        }
    }

    /// Commits `jobs`; a batch that the database refuses is split in halves, so that one bad
    /// change fails alone.
    async fn commit_all(&self, jobs: Vec<Job<S>>) {
        let mut stack = vec![jobs];
        while let Some(mut jobs) = stack.pop() {
            let mut count = 0;
            let fits = jobs.iter().take_while(|job| {
                count += S::rows(&job.change).len() as i64;
                count <= POSITION_BLOCK
            });
            let fits = fits.count().max(1);
            if fits < jobs.len() {
                stack.push(jobs.split_off(fits));
            }
            match self.commit(&jobs).await {
                Ok(position) => {
                    for job in jobs {
                        // A caller that has gone away needs no answer.
                        let _ = job.done.send(Ok((self.0.seat.writer, position)));
                    }
                }
                Err(Error::Lost(why)) => {
                    for job in jobs {
                        let _ = job.done.send(Err(Error::Lost(why.clone())));
                    }
                }
                Err(error) if jobs.len() == 1 => {
                    if let Some(job) = jobs.pop() {
                        let outcome = self.earlier(&job, error).await;
                        let _ = job.done.send(outcome);
                    }
                }
                Err(_) => {
                    let second = jobs.split_off(jobs.len() / 2);
                    stack.push(second);
                    stack.push(jobs);
                }
            }
        }
    }

    /// What a change that failed by itself has come to: one that was asked for twice gets the
    /// answer of the first.
    async fn earlier(&self, job: &Job<S>, error: Error) -> Result<Written, Error> {
        match job.key.filter(|_| error.is_unique_violation()) {
            Some(key) => {
                let earlier = effects::get(&self.0.pool, key).await?;
                earlier.and_then(|effect| effect.at).ok_or(error)
            }
            None => Err(error),
        }
    }

    /// One commit of all `jobs`; returns its last position.
    async fn commit(&self, jobs: &[Job<S>]) -> Result<Position, Error> {
        let mut rows = Vec::new();
        let mut offsets = Vec::with_capacity(jobs.len());
        for job in jobs {
            offsets.push(rows.len() as i64);
            rows.extend(S::rows(&job.change));
        }
        let last = rows.len() as i64 - 1;
        let base = self.0.durable(|seat, after| {
            let mut batch = Batch::new();
            let begun = positions::begin(&mut batch, S::ID, seat, after);
            let changes: Vec<_> =
                offsets.iter().copied().zip(jobs.iter().map(|job| &job.change)).collect();
            S::persist(&mut batch, &changes);
            let keys = jobs.iter().filter_map(|job| job.key).collect();
            effects::insert_positions(&mut batch, S::ID, seat.writer, last, keys);
            positions::advance(&mut batch, S::ID, seat.writer, rows.len());
            (batch, begun)
        });
        let base = base.await?;
        self.0.publish(base, rows);
        Ok(Position(base.0 + last))
    }
}

/// Puts rows that need no commit, or have one, on the feed.
pub(crate) fn publish<S: Stream>(
    feed: &Feed<S>,
    writer: WriterId,
    base: Position,
    rows: Vec<S::Row>,
) {
    let rows: Arc<[_]> =
        rows.into_iter().zip(base.0..).map(|(row, at)| (Position(at), row)).collect();
    let Some((position, _)) = rows.last() else { return };
    feed.publish(&Frame {
        writer,
        previous: feed.position_of(writer),
        position: *position,
        rows: rows.clone(),
    });
}

/// The way of one writer's commits to one stream, one after the other.
pub struct Line<S: Stream> {
    pool: Pool,
    feed: Arc<Feed<S>>,
    seat: Seat,
    pub stop: Stop,
}

/// What became of a commit.
enum Fate {
    Happened(Position),
    /// It has not happened and never will.
    Gone,
}

impl<S: Stream> Line<S> {
    /// The line of the writer that holds `seat`; it must be the only one of its stream.
    pub fn new(pool: &Pool, feed: &Arc<Feed<S>>, seat: Seat, stop: &Stop) -> Self {
        Self { pool: pool.clone(), feed: feed.clone(), seat, stop: stop.clone() }
    }

    /// Puts the rows of a commit that is durable on the feed.
    pub fn publish(&self, base: Position, rows: Vec<S::Row>) {
        self.feed.lane.published(rows.len());
        publish(&self.feed, self.seat.writer, base, rows);
    }

    /// Makes the batch that `build` makes durable and returns its first position. If the
    /// connection is lost, finds out what became of the commit before it tries again, however
    /// long the database is away: so nothing is written twice, nothing that was written is
    /// reported as failed, and the feed never passes over rows.
    ///
    /// `build` may be called several times. It gets what [`positions::begin`] wants.
    /// [`Error::Lost`] means that this process has lost its seat, and is going to end.
    pub async fn durable(
        &self,
        build: impl Fn(Seat, Position) -> (Batch, usize),
    ) -> Result<Position, Error> {
        let begun = Instant::now();
        let base = self.repeat_until_durable(build).await?;
        self.feed.lane.committed(begun.elapsed());
        Ok(base)
    }

    async fn repeat_until_durable(
        &self,
        build: impl Fn(Seat, Position) -> (Batch, usize),
    ) -> Result<Position, Error> {
        let mut repeats = 0;
        loop {
            let after = self.feed.position_of(self.seat.writer);
            let (batch, begun) = build(self.seat, after);
            match self.pool.commit(batch).await {
                Ok(rows) => return positions::base_of(&rows, begun),
                Err(error) if error.is_unseated() => return Err(self.unseated()),
                // The latter is a commit that was thought to be lost and has come in after all.
                Err(error) if matches!(error, Error::Lost(_)) || error.is_out_of_step() => {
                    tracing::debug!(stream = S::NAME, %error, "the outcome of a commit is not known");
                }
                Err(error) if error.is_transient() && repeats < REPEATS => {
                    repeats += 1;
                    continue;
                }
                Err(refused) => return Err(refused),
            }
            if let Fate::Happened(base) = self.fate(after).await? {
                return Ok(base);
            }
        }
    }

    /// What became of a commit that followed `after` and whose answer was lost. Asks until there is
    /// an answer.
    async fn fate(&self, after: Position) -> Result<Fate, Error> {
        let mut pause = FIRST_PAUSE;
        let standing = loop {
            match positions::fate(&self.pool, S::ID, self.seat).await {
                Ok(standing) => break standing,
                Err(error) if error.is_unseated() => return Err(self.unseated()),
                Err(error) => {
                    tracing::debug!(stream = S::NAME, %error, "waiting for the database");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        };
        let settled = standing.position;
        if settled < after {
            self.stop.fail(format!(
                "the database has lost commits that it had confirmed: the stream {} stands at \
                 {settled} and has been at {after}. Was it restored from a backup, or is \
                 synchronous_commit off?",
                S::NAME
            ));
            return Err(Error::Lost("the database has gone back in time".to_owned()));
        }
        if standing.base > after {
            return Ok(Fate::Happened(standing.base));
        }
        tracing::info!(stream = S::NAME, "repeating a commit that did not reach the database");
        if settled > after {
            // Another instance took this one for dead and has moved its position forward.
            let (stream, writer) = (S::ID.number, self.seat.writer);
            let step = Step { stream, writer, stood_at: after, stands_at: settled };
            self.feed.publish_step(&step);
        }
        Ok(Fate::Gone)
    }

    /// Returns when this writer should see whether it stands still, and never if it is alone.
    /// Made anew after each commit.
    pub async fn idle(&self) {
        if !self.feed.has_others() {
            return std::future::pending().await;
        }
        tokio::time::sleep(IDLE).await;
    }

    /// Moves this writer's position to that of the others if it has not written while they have
    /// (R5), so that tokens stay short. Called by the committer between commits.
    pub async fn catch_up(&self) {
        let me = self.seat.writer;
        let known = self.feed.position_of(me);
        if self.feed.token().max() <= known || !self.feed.positions().contains_key(&me) {
            return;
        }
        match positions::catch_up(&self.pool, &[(S::ID.number, me)]).await {
            Ok(steps) => steps.iter().for_each(|step| self.feed.publish_step(step)),
            Err(error) => tracing::debug!(stream = S::NAME, %error, "an idle writer stays behind"),
        }
    }

    fn unseated(&self) -> Error {
        seat::unseated(&self.stop);
        Error::Lost("another process has taken over".to_owned())
    }
}
