//! The queue of a room owner that turns many waiting events into one commit.
//!
//! There is one committer and two queues. Interactive jobs go first; a commit takes at most one
//! bulk job more, so that bulk delays a message by one commit at most. No timer: when a commit
//! returns, the next batch is what has arrived meanwhile. A batch that the database refuses is
//! split in halves until the bad job stands alone; jobs of its room that were sealed on top of
//! it are sent back to be sealed again.

use std::{collections::BTreeMap, sync::Arc};

use chatd_base::{Clock, Position, RoomNid, ShardId, Stop, tasks};
use chatd_storage::{
    Error, Pool,
    lane::{self, LaneCommit, NewEvent, NewHeads, NewRoom},
    positions::Seat,
    rooms,
};
use chatd_streams::{
    Feed, Line,
    events::{EventRow, Events},
};
use ruma_common::OwnedEventId;
use tokio::sync::{mpsc, watch};

use crate::owner::Slot;

/// What became of a job.
#[derive(Clone, Debug)]
pub enum Outcome {
    Waiting,
    /// Durable; the ids of its events and the position of the last.
    Done(Arc<[OwnedEventId]>, Position),
    /// An earlier request with the same transaction id made this event.
    Repeat(OwnedEventId),
    /// What it was sealed on has failed, or the shard has moved: seal it again.
    Again,
    Failed(Arc<Error>),
}

/// An event that is ready to be written.
pub struct SealedEvent {
    pub new: NewEvent,
    /// Heads of the room after it.
    pub heads: NewHeads,
    pub row: EventRow,
}

/// Events of one room that become durable together, or not at all.
pub struct Job {
    pub slot: Arc<Slot>,
    pub room: RoomNid,
    pub shard: ShardId,
    pub epoch: i64,
    pub new_room: Option<NewRoom>,
    pub events: Vec<SealedEvent>,
    pub outcome: watch::Sender<Outcome>,
}

/// Jobs that may wait (R8).
const QUEUE: usize = 2048;
/// Jobs that one commit may hold, and the size of their JSON.
const MOST_JOBS: usize = 256;
const MOST_BYTES: usize = 4 << 20;

/// Handle to the committer.
#[derive(Clone)]
pub struct Lane {
    interactive: mpsc::Sender<Job>,
    bulk: mpsc::Sender<Job>,
}

impl Lane {
    /// Starts the committer.
    pub fn start(
        pool: &Pool,
        feed: &Arc<Feed<Events>>,
        seat: Seat,
        clock: &Clock,
        stop: &Stop,
    ) -> Self {
        let (interactive, jobs) = mpsc::channel(QUEUE);
        let (bulk, bulk_jobs) = mpsc::channel(QUEUE);
        let line = Line::new(pool, feed, seat, stop);
        let committer = Committer { pool: pool.clone(), line, clock: clock.clone() };
        tasks::spawn_vital("room_lane", stop, committer.run(jobs, bulk_jobs));
        Self { interactive, bulk }
    }

    /// A place in the queue; waits while it is full. `None` when the server is stopping.
    pub async fn reserve(&self, is_bulk: bool) -> Option<mpsc::Permit<'_, Job>> {
        let queue = if is_bulk { &self.bulk } else { &self.interactive };
        queue.reserve().await.ok()
    }
}

struct Committer {
    pool: Pool,
    line: Line<Events>,
    clock: Clock,
}

impl Committer {
    async fn run(self, mut jobs: mpsc::Receiver<Job>, mut bulk: mpsc::Receiver<Job>) {
        let mut waiting = Vec::with_capacity(MOST_JOBS);
        loop {
            tokio::select! {
                biased;
                count = jobs.recv_many(&mut waiting, MOST_JOBS) => if count == 0 { return },
                Some(job) = bulk.recv() => waiting.push(job),
                () = self.line.stop.triggered() => return,
            }
            if let Ok(job) = bulk.try_recv() {
                waiting.push(job);
            }
            self.commit_all(std::mem::take(&mut waiting)).await;
        }
    }

    async fn commit_all(&self, jobs: Vec<Job>) {
        let mut stack = vec![jobs];
        while let Some(jobs) = stack.pop() {
            let (mut jobs, dead): (Vec<Job>, Vec<Job>) =
                jobs.into_iter().partition(|job| !job.slot.is_dead());
            dead.into_iter().for_each(|job| job.end(Outcome::Again));
            if jobs.is_empty() {
                continue;
            }
            if let Some(rest) = split_by_size(&mut jobs) {
                stack.push(rest);
            }
            match self.commit(&jobs).await {
                Ok(base) => self.finish(jobs, base),
                Err(error) if error.is_fenced() => {
                    tracing::warn!(%error, "shards have moved; their rooms are loaded again");
                    jobs.into_iter().for_each(|job| job.fail(Outcome::Again));
                }
                Err(error @ Error::Lost(_)) => {
                    let error = Arc::new(error);
                    jobs.into_iter().for_each(|job| job.fail(Outcome::Failed(error.clone())));
                }
                Err(error) if jobs.len() == 1 => {
                    if let Some(job) = jobs.pop() {
                        self.fail_alone(job, error).await;
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

    /// One transaction for all `jobs`; returns the position of the first event.
    async fn commit(&self, jobs: &[Job]) -> Result<Position, Error> {
        let started = std::time::Instant::now();
        let events: Vec<&NewEvent> =
            jobs.iter().flat_map(|job| job.events.iter().map(|event| &event.new)).collect();
        let mut heads = BTreeMap::new();
        let mut fence: Vec<(ShardId, i64)> = Vec::new();
        for job in jobs {
            fence.push((job.shard, job.epoch));
            if let Some(last) = job.events.last() {
                heads.insert(job.room, &last.heads);
            }
        }
        fence.sort_unstable();
        fence.dedup();
        let count = events.len();
        let commit = LaneCommit {
            fence,
            rooms: jobs.iter().filter_map(|job| job.new_room.as_ref()).collect(),
            events,
            heads,
            now_ms: i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX),
        };
        let base =
            self.line.durable(count, |seat, after| lane::batch(&commit, seat, after)).await?;
        metrics::histogram!("chatd_lane_batch_events").record(count as f64);
        metrics::histogram!("chatd_lane_commit_seconds").record(started.elapsed().as_secs_f64());
        Ok(base)
    }

    /// After the commit, and only then: the rows go out, and the callers get their answers.
    fn finish(&self, jobs: Vec<Job>, base: Position) {
        let mut rows = Vec::new();
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let ids: Arc<[OwnedEventId]> =
                job.events.iter().map(|event| event.row.event_id.clone()).collect();
            let last = Position(base.0 + rows.len() as i64 + job.events.len() as i64 - 1);
            rows.extend(job.events.into_iter().map(|event| Arc::new(event.row)));
            job.slot.committed();
            answers.push((job.outcome, Outcome::Done(ids, last)));
        }
        self.line.publish(base, rows);
        for (outcome, done) in answers {
            outcome.send_replace(done);
        }
    }

    /// A job that fails by itself: a repeated request gets the event of the first one.
    async fn fail_alone(&self, job: Job, error: Error) {
        let txn = job.events.first().and_then(|event| Some(event.new.txn.as_ref()?.digest));
        let outcome = match txn.filter(|_| error.is_unique_violation()) {
            Some(digest) => match rooms::get_txn_event(&self.pool, digest).await {
                Ok(Some(event_id)) => match OwnedEventId::try_from(event_id) {
                    Ok(event_id) => Outcome::Repeat(event_id),
                    Err(_) => Outcome::Failed(Arc::new(error)),
                },
                // Something else was there already.
                Ok(None) => Outcome::Failed(Arc::new(error)),
                Err(lost) => Outcome::Failed(Arc::new(lost)),
            },
            None => Outcome::Failed(Arc::new(error)),
        };
        job.fail(outcome);
    }
}

impl Job {
    fn end(self, outcome: Outcome) {
        self.slot.committed();
        self.outcome.send_replace(outcome);
    }

    /// Ends the job and throws the room's memory away, which has run ahead of the tables.
    fn fail(self, outcome: Outcome) {
        self.slot.kill();
        self.end(outcome);
    }

    fn bytes(&self) -> usize {
        self.events.iter().map(|event| event.new.content.len() + event.new.rest.len()).sum()
    }
}

/// Cuts off what would make the commit too large.
fn split_by_size(jobs: &mut Vec<Job>) -> Option<Vec<Job>> {
    let mut bytes = 0;
    let fits = jobs
        .iter()
        .take_while(|job| {
            bytes += job.bytes();
            bytes <= MOST_BYTES
        })
        .count()
        .max(1);
    (fits < jobs.len()).then(|| jobs.split_off(fits))
}
