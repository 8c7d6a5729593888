//! Events that wait for what they refer to: one task a room, as long as something waits there. It
//! lives where the room's owner is; whoever takes the room over finds the events in the table.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use chatd_base::{Error, Refusal, Result, Stop, tasks};
use chatd_rooms::{Door, Verdict};
use chatd_storage::inbound::{self, Staged};
use chatd_streams::Owner;
use parking_lot::Mutex;
use ruma_common::{OwnedRoomId, OwnedServerName, RoomId};
use tokio::sync::{Notify, Semaphore};

use super::{
    Inbound,
    missing::Fetched,
    room::{Pdu, is_unknown},
};

/// Rooms that are worked on at a time, and those that have a task (R8). The others are found when
/// the table is looked at.
const AT_ONCE: usize = 16;
const MOST_ROOMS: usize = 1_000;
/// Events of one step.
const STEP: i64 = 50;
/// How often the table is looked at for rooms without a task.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Between attempts to fetch what nobody gives; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How often it is tried before an event is given up, and how often if servers do answer.
const ATTEMPTS: u32 = 9;
const HOPELESS_ATTEMPTS: u32 = 2;

/// The rooms in which something waits.
pub(super) struct Backlog {
    rooms: Mutex<HashMap<OwnedRoomId, Arc<Notify>>>,
    places: Semaphore,
}

impl Default for Backlog {
    fn default() -> Self {
        Self { rooms: Mutex::default(), places: Semaphore::new(AT_ONCE) }
    }
}

/// What came of one step in a room.
enum Step {
    /// Nothing waits any more, or it is somebody else's to care.
    Done,
    /// Some of what waits has gone.
    Went,
    /// What is missing cannot be had; the oldest event that waits for it, and whether servers have
    /// answered.
    Stuck { oldest: i64, is_answered: bool },
}

impl Inbound {
    /// Looks for rooms in which events wait, until `stop`.
    pub(super) async fn work_on_backlog(self, stop: Stop) {
        loop {
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "events that wait cannot be looked for");
            }
            if !stop.sleep(LOOK_EVERY).await {
                return;
            }
        }
    }

    async fn look(&self) -> Result<()> {
        if !self.0.rooms.owner.owns_any() {
            return Ok(());
        }
        let (count, since_ms) = inbound::count_all(&self.0.pool).await?;
        self.measure(count, since_ms);
        if count == 0 {
            return Ok(());
        }
        let most = i64::try_from(MOST_ROOMS).unwrap_or(i64::MAX);
        for room in inbound::list_rooms(&self.0.pool, most).await? {
            let Ok(room) = OwnedRoomId::try_from(room) else { continue };
            if matches!(self.0.rooms.owner.whose(&room), Owner::Here { .. }) {
                self.kick(room);
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn measure(&self, count: i64, since_ms: i64) {
        let age_ms = if count == 0 { 0 } else { self.now_ms().saturating_sub(since_ms) };
        metrics::gauge!("synapse_federation_server_number_inbound_pdu_in_staging")
            .set(count as f64);
        metrics::gauge!("synapse_federation_server_oldest_inbound_pdu_in_staging")
            .set(age_ms as f64);
    }

    /// Has the events that wait in a room looked at.
    pub(super) fn kick(&self, room: OwnedRoomId) {
        let wake = Arc::new(Notify::new());
        {
            let mut rooms = self.0.backlog.rooms.lock();
            if let Some(wake) = rooms.get(&room) {
                wake.notify_one();
                return;
            }
            if rooms.len() >= MOST_ROOMS {
                return;
            }
            rooms.insert(room.clone(), wake.clone());
        }
        tasks::spawn("inbound_room", self.clone().work(room, wake));
    }

    async fn work(self, room: OwnedRoomId, wake: Arc<Notify>) {
        let (mut pause, mut attempts) = (FIRST_PAUSE, (0, 0));
        while !self.0.stop.is_triggered() {
            let step = match self.0.backlog.places.acquire().await {
                Ok(_place) => self.step(&room).await,
                Err(_) => break,
            };
            match step {
                Ok(Step::Went) => pause = FIRST_PAUSE,
                Ok(Step::Done) => {
                    if self.is_over(&room, &wake).await {
                        return;
                    }
                }
                Ok(Step::Stuck { oldest, is_answered }) => {
                    attempts = (oldest, if attempts.0 == oldest { attempts.1 + 1 } else { 1 });
                    let most = if is_answered { HOPELESS_ATTEMPTS } else { ATTEMPTS };
                    if attempts.1 >= most {
                        self.give_up(&room, oldest).await;
                    } else {
                        self.wait(&mut pause, &wake).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(room.id = %room, %error, "events that wait are tried later");
                    self.wait(&mut pause, &wake).await;
                }
            }
        }
        self.0.backlog.rooms.lock().remove(&room);
    }

    /// Ends the task, unless something has come meanwhile.
    async fn is_over(&self, room: &RoomId, wake: &Notify) -> bool {
        let mut rooms = self.0.backlog.rooms.lock();
        let came = futures::FutureExt::now_or_never(wake.notified()).is_some();
        if !came {
            rooms.remove(room);
        }
        !came
    }

    /// Waits for the next attempt; a new event may bring it forward.
    async fn wait(&self, pause: &mut Duration, wake: &Notify) {
        if !self.0.stop.sleep(FIRST_PAUSE).await {
            return;
        }
        let rest = pause.saturating_sub(FIRST_PAUSE);
        tokio::select! {
            _ = self.0.stop.sleep(rest) => {}
            () = wake.notified() => {}
        }
        *pause = (*pause * 2).min(LONGEST_PAUSE);
    }

    async fn give_up(&self, room: &RoomId, id: i64) {
        self.0.meters.became("given_up");
        tracing::warn!(room.id = %room, "an event is given up: what it refers to cannot be had");
        if let Err(error) = inbound::delete(&self.0.pool, &[id]).await {
            tracing::warn!(room.id = %room, %error, "an event that was given up is still there");
        }
    }

    /// Places what can be placed, or fetches what is missing.
    async fn step(&self, room: &RoomId) -> Result<Step> {
        let staged = inbound::list(&self.0.pool, room.as_str(), STEP).await?;
        let Some(oldest) = staged.first() else { return Ok(Step::Done) };
        let origin = origin_of(oldest)?;
        let door = match self.0.rooms.owner.door(room, &origin).await {
            Ok(door) => door,
            Err(Error::Refused(why)) if why.errcode == Refusal::NOT_OWNER => {
                return Ok(Step::Done);
            }
            Err(Error::Refused(why)) if is_unknown(&why) => return self.drop_all(&staged).await,
            Err(error) => return Err(error),
        };
        if !door.is_joined {
            return self.drop_all(&staged).await;
        }
        let mut pdus = Vec::with_capacity(staged.len());
        let mut gone = Vec::new();
        for staged in staged {
            match Pdu::parse(&staged.event, &door, room) {
                Ok(pdu) => pdus.push((staged, pdu)),
                Err(_) => gone.push(staged.id),
            }
        }
        let events = pdus.iter().map(|(_, pdu)| pdu.json.clone()).collect();
        let received = self.0.rooms.owner.receive_all(room, events).await?;
        let mut waiting = Vec::new();
        for ((staged, pdu), received) in pdus.into_iter().zip(received) {
            match received {
                Ok(received) if matches!(received.verdict, Verdict::Missing(_)) => {
                    waiting.push((staged, pdu));
                }
                Ok(received) => {
                    self.tell(room, &pdu, &received);
                    gone.push(staged.id);
                }
                Err(why) => {
                    tracing::info!(room.id = %room, event.id = %pdu.id(), %why, "not an event");
                    gone.push(staged.id);
                }
            }
        }
        inbound::delete(&self.0.pool, &gone).await?;
        match gone.is_empty() {
            true => self.fetch(room, &door, waiting).await,
            false => Ok(Step::Went),
        }
    }

    /// Fetches what is missing from those who have sent what waits for it.
    async fn fetch(&self, room: &RoomId, door: &Door, waiting: Vec<(Staged, Pdu)>) -> Result<Step> {
        let oldest = waiting.first().map_or(0, |(staged, _)| staged.id);
        let mut by_origin: BTreeMap<OwnedServerName, Vec<Pdu>> = BTreeMap::new();
        for (staged, pdu) in waiting {
            by_origin.entry(origin_of(&staged)?).or_default().push(pdu);
        }
        let mut is_answered = true;
        for (origin, waiting) in by_origin {
            match self.fetch_missing(room, door, &origin, &waiting).await? {
                Fetched::Something => return Ok(Step::Went),
                Fetched::Nothing => {}
                Fetched::NoAnswer(why) => {
                    tracing::info!(server.name = %origin, room.id = %room, why, "missing events");
                    is_answered = false;
                }
            }
        }
        Ok(Step::Stuck { oldest, is_answered })
    }

    async fn drop_all(&self, staged: &[Staged]) -> Result<Step> {
        let ids: Vec<i64> = staged.iter().map(|staged| staged.id).collect();
        inbound::delete(&self.0.pool, &ids).await?;
        Ok(Step::Went)
    }
}

fn origin_of(staged: &Staged) -> Result<OwnedServerName> {
    OwnedServerName::try_from(staged.origin.as_str()).map_err(Error::internal)
}
