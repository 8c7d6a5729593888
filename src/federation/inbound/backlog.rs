//! Events that wait for what they refer to: one task a room, as long as something waits there. It
//! lives where the room's owner is; whoever takes the room over finds the events in the table.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chatd_base::{Error, Refusal, Result, Stop, tasks};
use chatd_rooms::{Door, Verdict};
use chatd_storage::inbound::{self, Staged};
use chatd_streams::Owner;
use parking_lot::Mutex;
use ruma_common::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::{
    Inbound,
    missing::Fetched,
    room::{Pdu, is_unknown},
};

/// Rooms whose waiting events are looked through at a time, and those that have a task (R8). The
/// others are found when the table is looked at.
const AT_ONCE: usize = 16;
/// Rooms for which something is fetched at a time: from all servers, and from one, so that those
/// that are slow keep nobody from asking others.
const FETCHES: usize = 64;
const FETCHES_OF_ONE: usize = 4;
const MOST_ROOMS: usize = 1_000;
/// Events of one step.
const STEP: i64 = 50;
/// How often the table is looked at for rooms without a task.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Between attempts to fetch what nobody gives; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How often servers that answer are asked before an event is given up.
const ATTEMPTS: u32 = 2;
/// How long an event waits for servers that do not answer.
const PATIENCE_MS: i64 = 60 * 60 * 1_000;
/// Others in the room that are asked for what the sender of an event does not give.
const MOST_OTHERS: usize = 3;

/// The rooms in which something waits.
pub(super) struct Backlog {
    rooms: Mutex<HashMap<OwnedRoomId, Arc<Pause>>>,
    places: Semaphore,
    fetches: Semaphore,
    /// Of servers that are asked at the moment.
    turns: Mutex<HashMap<OwnedServerName, Arc<Semaphore>>>,
}

/// Leave to ask one server; the next has it when this is dropped.
pub(crate) type Turn<'a> = (OwnedSemaphorePermit, SemaphorePermit<'a>);

/// What ends the pause of a room's task.
#[derive(Default)]
struct Pause {
    wake: Notify,
    /// Servers that have not answered.
    silent: Mutex<BTreeSet<OwnedServerName>>,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            rooms: Mutex::default(),
            places: Semaphore::new(AT_ONCE),
            fetches: Semaphore::new(FETCHES),
            turns: Mutex::default(),
        }
    }
}

impl Backlog {
    /// Waits until `server` may be asked. Whoever waits for a server holds up only others who do.
    async fn turn(&self, server: &ServerName) -> Result<Turn<'_>> {
        let of_server = {
            let mut turns = self.turns.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            let new = || Arc::new(Semaphore::new(FETCHES_OF_ONE));
            turns.entry(server.to_owned()).or_insert_with(new).clone()
        };
        let of_server = of_server.acquire_owned().await.map_err(Error::internal)?;
        let of_all = self.fetches.acquire().await.map_err(Error::internal)?;
        Ok((of_server, of_all))
    }

    /// A server has shown a sign of life, or any may have: who waits for it asks again.
    pub(super) fn note_life(&self, server: Option<&ServerName>) {
        for pause in self.rooms.lock().values() {
            if server.is_none_or(|server| pause.silent.lock().contains(server)) {
                pause.wake.notify_one();
            }
        }
    }
}

impl Pause {
    fn note(&self, server: &ServerName, is_answered: bool) {
        let mut silent = self.silent.lock();
        match is_answered {
            true => drop(silent.remove(server)),
            false => drop(silent.insert(server.to_owned())),
        }
    }
}

/// An event that waits for others.
type Waiting = (Staged, Pdu);

/// What came of one step in a room.
enum Step {
    /// Nothing waits any more, or it is somebody else's to care.
    Done,
    /// Some of what waits has gone.
    Went,
    /// What is missing cannot be had now.
    Stuck,
}

/// The oldest event of one server for which nothing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stuck {
    id: i64,
    added_ts: i64,
    /// Whether its sender has answered.
    is_answered: bool,
}

/// How often what is stuck has been tried.
#[derive(Default)]
struct Tries(HashMap<i64, u32>);

impl Tries {
    /// Counts a try; returns what there is no hope for.
    fn note(&mut self, stuck: &[Stuck], now_ms: i64) -> Vec<i64> {
        let before = std::mem::take(&mut self.0);
        let mut hopeless = Vec::new();
        for Stuck { id, added_ts, is_answered } in stuck {
            let tries = before.get(id).copied().unwrap_or_default() + u32::from(*is_answered);
            if tries >= ATTEMPTS || now_ms.saturating_sub(*added_ts) >= PATIENCE_MS {
                hopeless.push(*id);
            } else {
                self.0.insert(*id, tries);
            }
        }
        hopeless
    }
}

impl Inbound {
    /// Waits until `server` may be asked for what is missing in a room.
    pub(crate) async fn turn(&self, server: &ServerName) -> Result<Turn<'_>> {
        self.0.backlog.turn(server).await
    }

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
                self.start(room);
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
    pub(crate) fn kick(&self, room: OwnedRoomId) {
        if let Some(pause) = self.start(room) {
            pause.wake.notify_one();
        }
    }

    /// Starts the task of a room. One that has a task already keeps it, with its pause.
    fn start(&self, room: OwnedRoomId) -> Option<Arc<Pause>> {
        let pause = Arc::<Pause>::default();
        {
            let mut rooms = self.0.backlog.rooms.lock();
            if let Some(pause) = rooms.get(&room) {
                return Some(pause.clone());
            }
            if rooms.len() >= MOST_ROOMS {
                return None;
            }
            rooms.insert(room.clone(), pause.clone());
        }
        tasks::spawn("inbound_room", self.clone().work(room, pause));
        None
    }

    async fn work(self, room: OwnedRoomId, pause: Arc<Pause>) {
        let (mut length, mut tries) = (FIRST_PAUSE, Tries::default());
        while !self.0.stop.is_triggered() {
            match self.step(&room, &pause, &mut tries).await {
                Ok(Step::Went) => length = FIRST_PAUSE,
                Ok(Step::Done) => {
                    if self.is_over(&room, &pause).await {
                        return;
                    }
                }
                Ok(Step::Stuck) => self.wait(&mut length, &pause).await,
                Err(error) => {
                    tracing::warn!(room.id = %room, %error, "events that wait are tried later");
                    self.wait(&mut length, &pause).await;
                }
            }
        }
        self.0.backlog.rooms.lock().remove(&room);
    }

    /// Ends the task, unless something has come meanwhile.
    async fn is_over(&self, room: &RoomId, pause: &Pause) -> bool {
        let mut rooms = self.0.backlog.rooms.lock();
        let came = futures::FutureExt::now_or_never(pause.wake.notified()).is_some();
        if !came {
            rooms.remove(room);
        }
        !came
    }

    /// Waits for the next attempt; a new event, or a sign of life of those who have not answered,
    /// may bring it forward.
    async fn wait(&self, length: &mut Duration, pause: &Pause) {
        if !self.0.stop.sleep(FIRST_PAUSE).await {
            return;
        }
        let rest = length.saturating_sub(FIRST_PAUSE);
        tokio::select! {
            _ = self.0.stop.sleep(rest) => {}
            () = pause.wake.notified() => {}
        }
        *length = (*length * 2).min(LONGEST_PAUSE);
    }

    /// Places what can be placed, or fetches what is missing.
    async fn step(&self, room: &RoomId, pause: &Pause, tries: &mut Tries) -> Result<Step> {
        let place = self.0.backlog.places.acquire().await.map_err(Error::internal)?;
        let staged = inbound::list(&self.0.pool, room.as_str(), STEP).await?;
        let Some(oldest) = staged.first() else { return Ok(Step::Done) };
        let origin = origin_of(oldest)?;
        // First this: they may be there when the room is looked at.
        let is_expected = self.0.rooms.owner.expected(room).is_some();
        let door = match self.0.rooms.owner.door(room, &origin).await {
            Ok(door) => Some(door).filter(|door| door.is_joined),
            Err(Error::Refused(why)) if why.errcode == Refusal::NOT_OWNER => {
                return Ok(Step::Done);
            }
            Err(Error::Refused(why)) if is_unknown(&why) => None,
            Err(error) => return Err(error),
        };
        let Some(door) = door else {
            if !is_expected {
                return self.drop_all(&staged).await;
            }
            // Somebody is on the way into the room: what has come meanwhile waits for that.
            drop((place, staged));
            self.0.rooms.owner.has_waited_for(room, LOOK_EVERY).await;
            return Ok(Step::Went);
        };
        if door.is_partial {
            // Whoever makes it whole has this looked at again.
            return Ok(Step::Done);
        }
        let count = staged.len();
        let staged = self.without_shut_out(room, staged).await?;
        let waiting = self.place_staged(room, &door, staged).await?;
        drop(place);
        if waiting.len() < count {
            return Ok(Step::Went);
        }
        let mut by_origin: BTreeMap<(bool, OwnedServerName), Vec<i64>> = BTreeMap::new();
        for (staged, _) in waiting {
            let origin = origin_of(&staged)?;
            let is_silent = pause.silent.lock().contains(&origin);
            by_origin.entry((is_silent, origin)).or_default().push(staged.id);
        }
        self.fetch(room, &door, by_origin, (pause, tries)).await
    }

    /// Drops events of servers that the room's access control list shuts out: it may have come
    /// later than they.
    async fn without_shut_out(&self, room: &RoomId, staged: Vec<Staged>) -> Result<Vec<Staged>> {
        let mut admitted: BTreeMap<String, bool> = BTreeMap::new();
        for one in &staged {
            if !admitted.contains_key(&one.origin) {
                let door = self.0.rooms.owner.door(room, &origin_of(one)?).await?;
                admitted.insert(one.origin.clone(), door.admits);
            }
        }
        let is_in = |one: &Staged| admitted.get(&one.origin).copied().unwrap_or_default();
        let (staged, shut_out): (Vec<_>, Vec<_>) = staged.into_iter().partition(is_in);
        if !shut_out.is_empty() {
            self.drop_all(&shut_out).await?;
        }
        Ok(staged)
    }

    /// The events that still wait, of those with these ids: they are read anew, for many rooms may
    /// wait for their turn.
    async fn waiting(&self, room: &RoomId, door: &Door, ids: &[i64]) -> Result<Vec<Waiting>> {
        let staged = inbound::list(&self.0.pool, room.as_str(), STEP).await?;
        let mut waiting = Vec::with_capacity(ids.len());
        for staged in staged.into_iter().filter(|staged| ids.contains(&staged.id)) {
            let pdu = Pdu::parse(&staged.event, door, room)?;
            waiting.push((staged, pdu));
        }
        Ok(waiting)
    }

    /// Places what can be placed, which then waits no more; returns what does.
    async fn place_staged(
        &self,
        room: &RoomId,
        door: &Door,
        staged: Vec<Staged>,
    ) -> Result<Vec<Waiting>> {
        let mut pdus = Vec::with_capacity(staged.len());
        let mut gone = Vec::new();
        for staged in staged {
            match Pdu::parse(&staged.event, door, room) {
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
        Ok(waiting)
    }

    /// Fetches what is missing from those who have sent what waits for it; those who have not
    /// answered before are asked last.
    async fn fetch(
        &self,
        room: &RoomId,
        door: &Door,
        by_origin: BTreeMap<(bool, OwnedServerName), Vec<i64>>,
        (pause, tries): (&Pause, &mut Tries),
    ) -> Result<Step> {
        let mut stuck = Vec::with_capacity(by_origin.len());
        for ((_, origin), ids) in &by_origin {
            let turn = self.0.backlog.turn(origin).await?;
            let waiting = self.waiting(room, door, ids).await?;
            let oldest = waiting.first().map(|(staged, _)| (staged.id, staged.added_ts));
            let pdus: Vec<Pdu> = waiting.into_iter().map(|(_, pdu)| pdu).collect();
            let fetched = self.fetch_from(room, door, origin, &pdus).await?;
            drop(turn);
            let is_answered = !matches!(fetched, Fetched::NoAnswer(_));
            pause.note(origin, is_answered);
            match fetched {
                Fetched::Something => return Ok(Step::Went),
                Fetched::Nothing => {}
                Fetched::NoAnswer(why) => {
                    tracing::info!(server.name = %origin, room.id = %room, why, "missing events");
                }
            }
            stuck.extend(oldest.map(|(id, added_ts)| Stuck { id, added_ts, is_answered }));
        }
        let hopeless = tries.note(&stuck, self.now_ms());
        if hopeless.is_empty() {
            return Ok(Step::Stuck);
        }
        let left = self.waiting(room, door, &hopeless).await?;
        self.fetch_elsewhere(room, door, left).await
    }

    /// Fetches what is missing from one server. What that tells may be such that it cannot be kept:
    /// this is as good as nothing, and no reason to ask for ever.
    async fn fetch_from(
        &self,
        room: &RoomId,
        door: &Door,
        server: &ServerName,
        pdus: &[Pdu],
    ) -> Result<Fetched> {
        match self.fetch_missing(room, door, server, pdus).await {
            Err(error) if !may_pass(&error) => {
                tracing::warn!(server.name = %server, room.id = %room, %error, "missing events");
                Ok(Fetched::Nothing)
            }
            fetched => fetched,
        }
    }

    /// Asks others in the room for what the senders of these events do not give; gives up those for
    /// which nothing comes.
    async fn fetch_elsewhere(
        &self,
        room: &RoomId,
        door: &Door,
        left: Vec<Waiting>,
    ) -> Result<Step> {
        let (staged, pdus): (Vec<Staged>, Vec<Pdu>) = left.into_iter().unzip();
        let mut servers = self.0.rooms.hosts.servers_in_room(room).await?;
        self.0.servers.client.put_slow_last(&mut servers);
        let is_sender =
            |server: &OwnedServerName| staged.iter().any(|one| one.origin == server.as_str());
        for server in servers.iter().filter(|server| !is_sender(server)).take(MOST_OTHERS) {
            let _turn = self.0.backlog.turn(server).await?;
            if let Fetched::Something = self.fetch_from(room, door, server, &pdus).await? {
                return Ok(Step::Went);
            }
        }
        for pdu in &pdus {
            self.0.meters.became("given_up");
            tracing::warn!(room.id = %room, event.id = %pdu.id(),
                "an event is given up: what it refers to cannot be had");
        }
        self.drop_all(&staged).await
    }

    async fn drop_all(&self, staged: &[Staged]) -> Result<Step> {
        let ids: Vec<i64> = staged.iter().map(|staged| staged.id).collect();
        inbound::delete(&self.0.pool, &ids).await?;
        Ok(Step::Went)
    }
}

/// Whether the same may go well later: the database is away, or the room is another instance's now.
fn may_pass(error: &Error) -> bool {
    error.is_unavailable() || error.errcode() == Some(Refusal::NOT_OWNER)
}

fn origin_of(staged: &Staged) -> Result<OwnedServerName> {
    OwnedServerName::try_from(staged.origin.as_str()).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuck(id: i64, is_answered: bool) -> Stuck {
        Stuck { id, added_ts: 1_000, is_answered }
    }

    #[test]
    fn what_servers_have_not_is_given_up_soon_and_those_who_are_away_are_waited_for() {
        let mut tries = Tries::default();
        let both = [stuck(1, true), stuck(2, false)];
        assert!(tries.note(&both, 2_000).is_empty());
        assert_eq!(tries.note(&both, 3_000), [1]);
        for at_ms in 4_000..5_000 {
            assert!(tries.note(&[stuck(2, false)], at_ms).is_empty());
        }
        // It is there again, and knows nothing.
        assert!(tries.note(&[stuck(2, true)], 6_000).is_empty());
        assert_eq!(tries.note(&[stuck(2, true)], 7_000), [2]);
        assert_eq!(tries.note(&[stuck(3, false)], 1_000 + PATIENCE_MS), [3]);
    }

    #[tokio::test]
    async fn a_server_that_is_slow_holds_up_nobody_who_asks_another() {
        let backlog = Backlog::default();
        let [slow, quick] =
            ["slow.example", "quick.example"].map(|name| ServerName::parse(name).unwrap());
        let mut held = Vec::new();
        for _ in 0..FETCHES_OF_ONE {
            held.push(backlog.turn(&slow).await.unwrap());
        }
        assert!(futures::FutureExt::now_or_never(backlog.turn(&slow)).is_none());
        let turn = futures::FutureExt::now_or_never(backlog.turn(&quick));
        assert!(turn.is_some_and(|turn| turn.is_ok()));
        held.pop();
        assert!(futures::FutureExt::now_or_never(backlog.turn(&slow)).is_some());
        drop(held);
        drop(backlog.turn(&quick).await);
        assert_eq!(backlog.turns.lock().len(), 1, "who is not asked is forgotten");
    }

    #[test]
    fn signs_of_life_wake_whoever_waits_for_them() {
        let backlog = Backlog::default();
        let pause = Arc::<Pause>::default();
        let room = OwnedRoomId::try_from("!r:a.example").unwrap();
        backlog.rooms.lock().insert(room, pause.clone());
        let [waited, other] =
            ["b.example", "c.example"].map(|name| ServerName::parse(name).unwrap());
        pause.note(&waited, false);
        let is_woken = || futures::FutureExt::now_or_never(pause.wake.notified()).is_some();
        backlog.note_life(Some(&other));
        assert!(!is_woken());
        backlog.note_life(Some(&waited));
        assert!(is_woken());
        pause.note(&waited, true);
        backlog.note_life(Some(&waited));
        assert!(!is_woken());
        backlog.note_life(None);
        assert!(is_woken());
    }
}
