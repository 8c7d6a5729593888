//! The queue of a room owner that turns many waiting events into one commit.
//!
//! There is one committer and two queues. Interactive jobs go first; a commit takes at most one
//! bulk job more, so that bulk delays a message by one commit at most. Only what an interactive
//! job was sealed on goes before it, whichever queue that is in. No timer: when a commit
//! returns, the next batch is what has arrived meanwhile. A batch that the database refuses is
//! split in halves until the bad job stands alone; jobs of its room that were sealed on top of
//! it are sent back to be sealed again.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
};

use chatd_base::{Clock, Position, RoomNid, ShardId, Stop, tasks};
use chatd_config::Chatd;
use chatd_storage::{
    Error, Pool,
    lane::{self, LaneCommit, NewEvent, NewHeads, NewRoom},
    positions::{POSITION_BLOCK, Seat},
    rooms,
};
use chatd_streams::{
    Feed, Line,
    events::{EventRow, Events},
};
use metrics::Counter;
use ruma_common::OwnedEventId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::owner::{Hold, Slot};

/// What became of a job.
#[derive(Clone, Debug)]
pub enum Outcome {
    Waiting,
    /// Durable; the ids of its events and the position of the last.
    Done(Arc<[OwnedEventId]>, Position),
    /// An earlier request with the same transaction id made this event.
    Repeat(OwnedEventId),
    /// What it was sealed on has failed: seal it again.
    Again,
    /// A shard of the commit has gone to another instance, and may be that of this job.
    Moved,
    Failed(Arc<Error>),
}

/// An event that is ready to be written.
pub struct SealedEvent {
    pub new: NewEvent,
    /// Heads of the room after it; `None` if it leaves them as they are.
    pub heads: Option<NewHeads>,
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
    /// Its place in the bulk queue, given back when the job ends.
    pub place: Option<OwnedSemaphorePermit>,
    /// The gate of the room, also if nobody waits for the outcome any more.
    #[expect(dead_code, reason = "it is held, not read")]
    pub hold: Option<Hold>,
}

/// How much may wait, and how much goes into one commit (R8).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `chatd.lane_queue`: jobs in each queue.
    pub queue: usize,
    /// `chatd.lane_batch_events`.
    pub events: usize,
    /// `chatd.lane_batch_bytes`: JSON of the events.
    pub bytes: u64,
}

impl Limits {
    pub fn of(config: &Chatd) -> Self {
        // One commit has at most so many positions.
        let most = usize::try_from(POSITION_BLOCK).unwrap_or(usize::MAX);
        Self {
            queue: config.lane_queue.max(1),
            events: config.lane_batch_events.clamp(1, most),
            bytes: config.lane_batch_bytes,
        }
    }
}

/// Handle to the committer.
#[derive(Clone)]
pub struct Lane {
    interactive: mpsc::Sender<Job>,
    bulk: mpsc::Sender<Job>,
    /// Places in the bulk queue, part of which the committer holds.
    bulk_places: Arc<Semaphore>,
}

/// A place in a queue.
pub enum Permit<'a> {
    Interactive(mpsc::Permit<'a, Job>),
    Bulk(&'a mpsc::Sender<Job>, OwnedSemaphorePermit),
}

impl Permit<'_> {
    /// Puts the job in line. Has to happen while the room is locked, so that the jobs of a room
    /// are in line in the order in which they were sealed.
    pub fn send(self, mut job: Job) {
        match self {
            Self::Interactive(permit) => permit.send(job),
            Self::Bulk(queue, place) => {
                job.place = Some(place);
                // There is a place; without a committer the caller is told that the server stops.
                let _ = queue.try_send(job);
            }
        }
    }
}

impl Lane {
    /// Starts the committer.
    pub fn start(
        pool: &Pool,
        feed: &Arc<Feed<Events>>,
        seat: Seat,
        clock: &Clock,
        stop: &Stop,
        limits: Limits,
    ) -> Self {
        let (interactive, jobs) = mpsc::channel(limits.queue);
        let (bulk, bulk_jobs) = mpsc::channel(limits.queue);
        let bulk_places = Arc::new(Semaphore::new(limits.queue));
        let (places, queue) = (bulk_places.clone(), interactive.downgrade());
        feed.lane.watch_queue(move || {
            let in_queue = |queue: mpsc::Sender<Job>| queue.max_capacity() - queue.capacity();
            let in_bulk = limits.queue - places.available_permits();
            in_bulk + queue.upgrade().map_or(0, in_queue)
        });
        let committer = Committer {
            pool: pool.clone(),
            line: Line::new(pool, feed, seat, stop),
            clock: clock.clone(),
            limits,
            persisted: metrics::counter!("synapse_storage_events_persisted_events_total"),
        };
        tasks::spawn_vital("room_lane", stop, committer.run(jobs, bulk_jobs));
        Self { interactive, bulk, bulk_places }
    }

    /// A place in the queue; waits while it is full. `None` when the server is stopping.
    pub async fn reserve(&self, is_bulk: bool) -> Option<Permit<'_>> {
        if !is_bulk {
            return self.interactive.reserve().await.ok().map(Permit::Interactive);
        }
        let place = self.bulk_places.clone().acquire_owned().await.ok()?;
        (!self.bulk.is_closed()).then_some(Permit::Bulk(&self.bulk, place))
    }
}

struct Committer {
    pool: Pool,
    line: Line<Events>,
    clock: Clock,
    limits: Limits,
    /// Counts events that have become durable.
    persisted: Counter,
}

impl Committer {
    async fn run(self, mut jobs: mpsc::Receiver<Job>, mut bulk: mpsc::Receiver<Job>) {
        let most = self.limits.events;
        let mut interactive = Vec::with_capacity(most);
        let mut waiting: VecDeque<Job> = VecDeque::new();
        loop {
            if waiting.is_empty() {
                tokio::select! {
                    biased;
                    count = jobs.recv_many(&mut interactive, most) => if count == 0 { return },
                    Some(job) = bulk.recv() => waiting.push_back(job),
                    () = self.line.stop.triggered() => return,
                    () = self.line.idle() => {
                        self.line.catch_up().await;
                        continue;
                    }
                }
            } else if self.line.stop.is_triggered() {
                return;
            }
            while interactive.len() < most
                && let Ok(job) = jobs.try_recv()
            {
                interactive.push(job);
            }
            // After the interactive ones, so that what those were sealed on is seen.
            while let Ok(job) = bulk.try_recv() {
                waiting.push_back(job);
            }
            let batch = batch_of(std::mem::take(&mut interactive), &mut waiting, |job| job.room);
            self.commit_all(batch).await;
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
            if let Some(rest) = split_by_size(&mut jobs, self.limits) {
                stack.push(rest);
            }
            match self.commit(&jobs).await {
                Ok(base) => self.finish(jobs, base),
                Err(error) if error.is_fenced() => {
                    tracing::warn!(%error, "shards have moved; their rooms are loaded again");
                    jobs.into_iter().for_each(|job| job.fail(Outcome::Moved));
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
        let events: Vec<&NewEvent> =
            jobs.iter().flat_map(|job| job.events.iter().map(|event| &event.new)).collect();
        let mut heads = BTreeMap::new();
        let mut fence: Vec<(ShardId, i64)> = Vec::new();
        for job in jobs {
            fence.push((job.shard, job.epoch));
            if let Some(last) = job.events.iter().rev().find_map(|event| event.heads.as_ref()) {
                heads.insert(job.room, last);
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
        let base = self.line.durable(|seat, after| lane::batch(&commit, seat, after)).await?;
        self.persisted.increment(count as u64);
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

    fn bytes(&self) -> u64 {
        let bytes = self.events.iter().map(|event| event.new.content.len() + event.new.rest.len());
        bytes.sum::<usize>() as u64
    }
}

/// The jobs of the next commit: the interactive ones, behind those bulk jobs of the same rooms on
/// which they were sealed, and one bulk job more.
fn batch_of<J>(
    interactive: Vec<J>,
    waiting: &mut VecDeque<J>,
    room: impl Fn(&J) -> RoomNid,
) -> Vec<J> {
    let mut batch = Vec::with_capacity(interactive.len() + 1);
    if !waiting.is_empty() {
        let rooms: HashSet<RoomNid> = interactive.iter().map(&room).collect();
        let (due, rest): (Vec<J>, Vec<J>) =
            waiting.drain(..).partition(|job| rooms.contains(&room(job)));
        batch.extend(due);
        *waiting = rest.into();
        batch.extend(waiting.pop_front());
    }
    batch.extend(interactive);
    batch
}

/// Cuts off what would make the commit too large.
fn split_by_size(jobs: &mut Vec<Job>, limits: Limits) -> Option<Vec<Job>> {
    let (mut bytes, mut events) = (0, 0);
    let fits = jobs
        .iter()
        .take_while(|job| {
            bytes += job.bytes();
            events += job.events.len();
            bytes <= limits.bytes && events <= limits.events
        })
        .count()
        .max(1);
    (fits < jobs.len()).then(|| jobs.split_off(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (room, number in the order of sealing)
    type Job = (i32, u32);

    fn batch(interactive: &[Job], waiting: &mut VecDeque<Job>) -> Vec<Job> {
        batch_of(interactive.to_vec(), waiting, |job| RoomNid(job.0))
    }

    #[test]
    fn bulk_delays_others_by_one_job_at_a_time() {
        let mut waiting = VecDeque::from([(1, 1), (2, 2), (3, 3)]);
        assert_eq!(batch(&[(9, 4), (8, 5)], &mut waiting), [(1, 1), (9, 4), (8, 5)]);
        assert_eq!(batch(&[], &mut waiting), [(2, 2)]);
        assert_eq!(batch(&[], &mut waiting), [(3, 3)]);
        assert_eq!(batch(&[(9, 6)], &mut waiting), [(9, 6)]);
    }

    #[test]
    fn the_jobs_of_a_room_keep_their_order() {
        let mut waiting = VecDeque::from([(1, 1), (2, 2), (1, 3), (2, 5)]);
        assert_eq!(
            batch(&[(2, 6), (1, 7)], &mut waiting),
            [(1, 1), (2, 2), (1, 3), (2, 5), (2, 6), (1, 7)]
        );
        assert!(waiting.is_empty());
    }
}
