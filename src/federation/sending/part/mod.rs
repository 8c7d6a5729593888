//! One sender: it holds the queues of its servers, and decides who gets what when. What takes time
//! is done by tasks, at most so many at once (`filling`); the tables are written once a second while
//! anything happens, and not at all while nothing does (`progress`).

mod filling;
mod greeting;
mod missed;
mod progress;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use chatd_base::{Position, Result};
use chatd_storage::{
    destinations,
    sending::{self, ToSend, Told},
};
use chatd_streams::{Feed, Stream, StreamToken};
use metrics::Gauge;
use ruma_common::{OwnedServerName, ServerName};
use tokio::sync::mpsc;

use self::{
    greeting::Greetings,
    missed::{Early, Seen},
    progress::WRITE_EVERY_MS,
};
use super::{
    Sending,
    delivery::{Done, Outcome},
    destination::{Destination, Ledger, Owed, Queued},
    devices,
    inbox::{Inbox, News},
    routing,
    shards::{least, limited, range, shard_of},
    spread::{Fact, Spread},
};

/// Transactions that are under way at the same time.
const MOST_RUNNING: usize = 100;
/// Events that are read at a time.
const MOST_READ: i64 = 500;
/// A clock that is set cannot stop everything for longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the token of a stream may take to cover a row that folds have been told of.
const TOKEN_WITHIN: Duration = Duration::from_secs(10);
/// A server that is left alone for longer gets no receipts of that time.
const RECEIPTS_WAIT_MS: u64 = 3_600_000;

/// A sender at work.
pub(super) struct Part {
    with: Arc<Sending>,
    inbox: Arc<Inbox>,
    /// With their epochs.
    shards: Vec<(i16, i64)>,
    /// From where on the servers of each shard are to be told: events and device lists.
    began: HashMap<i16, (StreamToken, StreamToken)>,
    /// Up to where it is known who is to be told.
    events: StreamToken,
    device_lists: StreamToken,
    /// Changes of device lists above the least position of `device_lists` that were seen.
    seen_changes: BTreeSet<(Position, i32)>,
    destinations: HashMap<OwnedServerName, Destination>,
    /// Those that can be sent to.
    line: VecDeque<OwnedServerName>,
    /// When those that do not answer are tried again.
    timers: BTreeSet<(u64, OwnedServerName)>,
    /// Up to where rows that are told while they are true have come.
    seen: Seen,
    early: Early,
    spread: Spread,
    greetings: Greetings,
    ledger: Ledger,
    running: usize,
    tell_done: mpsc::Sender<Done>,
    done: mpsc::Receiver<Done>,
    /// What the tables say; and when they were written.
    written: Option<Told>,
    written_ms: u64,
    /// Whether there may be something to write.
    is_dirty: bool,
    pending: [Gauge; 2],
}

fn token(text: &str) -> Result<StreamToken> {
    text.parse().map_err(|_| chatd_base::Error::internal(format!("{text} is not a token")))
}

/// Waits until the token of a feed covers what its folds were told of: that is at once, unless
/// something is wrong.
async fn reach<S: Stream>(feed: &Feed<S>, upto: &StreamToken) -> Result<()> {
    match feed.wait_for(upto, TOKEN_WITHIN).await {
        true => Ok(()),
        false => Err(chatd_base::Error::internal(format!("{} does not get to {upto}", S::NAME))),
    }
}

impl Part {
    /// Takes over the shards and reads what their servers are owed.
    pub(super) async fn open(with: &Arc<Sending>, mine: &[i16]) -> Result<Self> {
        let inbox = with.inboxes.open();
        let pool = with.pool();
        let mut began = HashMap::new();
        let mut shards = Vec::new();
        let mut seen = None::<Seen>;
        for shard in sending::take(pool, mine).await? {
            let told = &shard.told;
            began.insert(shard.id, (token(&told.events)?, token(&told.device_lists)?));
            shards.push((shard.id, shard.epoch));
            let of_shard = Seen::of(told)?;
            seen = Some(seen.map_or(of_shard.clone(), |seen| seen.least(&of_shard)));
        }
        let both = |a: (StreamToken, StreamToken), b: &(StreamToken, StreamToken)| {
            (least(&a.0, &b.0), least(&a.1, &b.1))
        };
        let first = began.values().next().cloned().unwrap_or_default();
        let (events, device_lists) = began.values().fold(first, both);
        let (tell_done, done) = mpsc::channel(MOST_RUNNING);
        let config = &with.deps.config;
        let rate = u64::from(config.federation.receipts_per_second);
        let spread = Spread::new(with.own_name(), rate);
        let mut part = Self {
            with: with.clone(),
            inbox,
            shards,
            began,
            events,
            device_lists,
            seen_changes: BTreeSet::new(),
            destinations: HashMap::new(),
            line: VecDeque::new(),
            timers: BTreeSet::new(),
            seen: seen.unwrap_or_default(),
            early: Early::default(),
            spread,
            greetings: Greetings::default(),
            ledger: Ledger::default(),
            running: 0,
            tell_done,
            done,
            written: None,
            written_ms: 0,
            is_dirty: true,
            pending: ["destinations", "pdus"].map(|what| {
                metrics::gauge!(format!("synapse_federation_transaction_queue_pending_{what}"))
            }),
        };
        part.read_owed().await?;
        Ok(part)
    }

    async fn read_owed(&mut self) -> Result<()> {
        let pool = self.with.pool().clone();
        for owed in sending::list_owed_rooms(&pool).await? {
            let Some(one) = self.named(&owed.server) else { continue };
            one.is_behind = true;
            one.owed.insert(owed.room, Owed { since: owed.since, ahead: owed.ahead });
        }
        for (server, since) in sending::list_owed_devices(&pool).await? {
            let since = token(&since)?;
            let Some(one) = self.named(&server) else { continue };
            one.is_behind = true;
            one.owed_devices = Some(since);
        }
        self.read_outbound().await?;
        self.read_failing().await
    }

    /// Reads which servers are left alone; the others are sent to.
    async fn read_failing(&mut self) -> Result<()> {
        for one in self.destinations.values_mut() {
            one.retry_at = 0;
        }
        for failing in destinations::list(self.with.pool()).await? {
            let Ok(server) = OwnedServerName::try_from(failing.server) else { continue };
            if let Some(one) = self.destinations.get_mut(&server) {
                one.is_failing = true;
                one.retry_at = u64::try_from(failing.retry_at).unwrap_or_default();
            }
        }
        self.wake_all();
        Ok(())
    }

    fn wake_all(&mut self) {
        let all: Vec<OwnedServerName> = self.destinations.keys().cloned().collect();
        all.iter().for_each(|server| self.wake(server));
    }

    async fn read_outbound(&mut self) -> Result<()> {
        for server in sending::list_outbound_servers(self.with.pool()).await? {
            if let Some(one) = self.named(&server) {
                one.has_outbound = true;
            }
        }
        Ok(())
    }

    /// The server of that name, if it is one of this sender's.
    fn named(&mut self, server: &str) -> Option<&mut Destination> {
        let server = OwnedServerName::try_from(server).ok()?;
        self.mine(&server).then(|| self.destinations.entry(server).or_default())
    }

    fn mine(&self, server: &ServerName) -> bool {
        self.began.contains_key(&shard_of(server))
    }

    /// Until something fails.
    pub(super) async fn run(&mut self) -> Result<()> {
        let mut news = News::of_the_tables();
        let mut upto = self.seen_now();
        loop {
            if let Some(upto) = news.events.take() {
                reach(&self.with.streams().events, &upto).await?;
                self.consider_events().await?;
            }
            if let Some(upto) = news.device_lists.take() {
                reach(&self.with.streams().device_lists, &upto).await?;
                self.consider_device_lists().await?;
            }
            self.read_missed(&mut news, upto).await?;
            self.take_news(&mut news).await?;
            self.start().await?;
            self.write_if_due().await?;
            let pause = self.pause();
            tokio::select! {
                biased;
                Some(done) = self.done.recv() => self.finish_all(done),
                () = self.inbox.has_news() => {}
                () = tokio::time::sleep(pause) => {}
            }
            // Whatever this covers is in the inbox by now, or was.
            upto = self.seen_now();
            news = self.inbox.take();
        }
    }

    /// How long nothing has to be done unless something happens.
    fn pause(&self) -> Duration {
        let timer = self.timers.first().map(|(at, _)| *at);
        let write = self.is_dirty.then_some(self.written_ms + WRITE_EVERY_MS);
        let told = [self.spread.due(), self.greetings.due(), self.early.due()];
        let due = [timer, write].into_iter().chain(told).flatten().min();
        let now_ms = self.with.now_ms();
        let until = |due: u64| Duration::from_millis(due.saturating_sub(now_ms));
        due.map_or(Duration::MAX, |due| until(due).min(LONGEST_PAUSE))
    }

    /// Finds out who gets the events that are new.
    async fn consider_events(&mut self) -> Result<()> {
        loop {
            let target = self.with.streams().events.token();
            if self.events.is_at_least(&target) {
                return Ok(());
            }
            let between = range(&self.events, &target);
            let read = sending::list_to_send(self.with.pool(), &between, MOST_READ).await?;
            let is_full = i64::try_from(read.len()).unwrap_or(i64::MAX) >= MOST_READ;
            let end = read.last().filter(|_| is_full).map_or(Position(i64::MAX), |last| last.pos);
            let (config, hosts) = (&self.with.deps.config, &self.with.deps.rooms.hosts);
            let goes_to = routing::destinations(config, hosts, &read).await?;
            for (event, servers) in read.iter().zip(goes_to) {
                self.add(event, servers);
            }
            self.events = limited(&self.events, &target, end);
            self.is_dirty = true;
            if !is_full {
                return Ok(());
            }
        }
    }

    fn add(&mut self, event: &ToSend, servers: BTreeSet<OwnedServerName>) {
        let ToSend { nid, pos, writer, room, .. } = *event;
        let queued = Queued { nid, pos, writer, room, came_ms: self.with.now_ms() };
        let began = &self.began;
        let is_due = |server: &OwnedServerName| {
            began.get(&shard_of(server)).is_some_and(|(events, _)| !events.covers(writer, pos))
        };
        let servers: Vec<OwnedServerName> = servers.into_iter().filter(is_due).collect();
        metrics::counter!("synapse_federation_client_sent_pdu_destinations_count_total")
            .increment(1);
        metrics::counter!("synapse_federation_client_sent_pdu_destinations_total")
            .increment(servers.len() as u64);
        for server in servers {
            let one = self.destinations.entry(server.clone()).or_default();
            one.add(&server, queued, &mut self.ledger);
            self.wake(&server);
        }
    }

    /// Finds out who is told of device lists that are new.
    async fn consider_device_lists(&mut self) -> Result<()> {
        let target = self.with.streams().device_lists.token();
        if self.device_lists.is_at_least(&target) {
            return Ok(());
        }
        let (mut low, high) = (self.device_lists.min, target.max());
        while low < high {
            let (pool, own) = (self.with.pool(), self.with.own_name());
            let (mut changes, end) = devices::changes(pool, own, low, high).await?;
            changes.retain(|change| self.seen_changes.insert((change.pos, change.user.0)));
            let users: BTreeSet<_> = changes.iter().map(|change| change.user).collect();
            let users: Vec<_> = users.into_iter().collect();
            let sharing = self.with.deps.rooms.hosts.sharing(&users).await?;
            for change in changes {
                for server in sharing.get(&change.user).into_iter().flatten() {
                    if self.mine(server) && self.may_talk_to(server) {
                        let one = self.destinations.entry(server.clone()).or_default();
                        one.add_device(server, &change, &mut self.ledger);
                        self.wake(server);
                    }
                }
            }
            low = end;
        }
        // What a slower writer has below `high` may not be in the tables yet, and is read again.
        self.seen_changes.retain(|(pos, _)| *pos > target.min);
        self.device_lists = target;
        self.is_dirty = true;
        Ok(())
    }

    fn may_talk_to(&self, server: &ServerName) -> bool {
        self.with.deps.config.federation.may_talk_to(server)
    }

    async fn take_news(&mut self, news: &mut News) -> Result<()> {
        if std::mem::take(&mut news.outbound_missed) {
            self.read_outbound().await?;
            self.wake_all();
        }
        for server in std::mem::take(&mut news.outbound) {
            if self.mine(&server) {
                self.destinations.entry(server.clone()).or_default().has_outbound = true;
                self.wake(&server);
            }
        }
        for server in std::mem::take(&mut news.alive) {
            if let Some(one) = self.destinations.get_mut(&server) {
                one.retry_at = 0;
                self.wake(&server);
            }
        }
        if std::mem::take(&mut news.alive_missed) {
            self.read_failing().await?;
        }
        let now_ms = self.with.now_ms();
        self.hold_early(&mut news.receipts.seen, now_ms);
        self.spread.add(news, now_ms);
        self.greetings.add(std::mem::take(&mut news.joins.seen), now_ms);
        self.greet(now_ms).await?;
        if self.spread.due().is_some_and(|due| due <= now_ms) {
            let facts = self.spread.take(&self.with.deps.rooms.hosts, now_ms).await?;
            facts.into_iter().for_each(|(server, fact)| self.tell(server, fact));
        }
        while let Some((at, _)) = self.timers.first()
            && *at <= now_ms
            && let Some((_, server)) = self.timers.pop_first()
        {
            self.wake(&server);
        }
        Ok(())
    }

    fn tell(&mut self, server: OwnedServerName, fact: Fact) {
        if !self.mine(&server) || !self.may_talk_to(&server) {
            return;
        }
        let soon = self.with.now_ms() + RECEIPTS_WAIT_MS;
        let one = self.destinations.entry(server.clone()).or_default();
        match fact {
            Fact::Receipt(receipt) if !one.is_behind || one.retry_at <= soon => {
                one.ephemeral.add_receipt(&receipt);
            }
            Fact::Receipt(_) => return,
            _ if one.is_behind => return,
            Fact::Presence(presence) => one.ephemeral.add_presence(&presence),
            Fact::Typing(room, user, types) => one.ephemeral.add_typing(&room, &user, types),
        }
        self.wake(&server);
    }

    /// Puts a server in the line if there is something for it and it may be sent to.
    fn wake(&mut self, server: &OwnedServerName) {
        let Some(one) = self.destinations.get_mut(server) else { return };
        if one.is_busy || one.is_in_line || !one.has_work() {
            return;
        }
        if one.retry_at > self.with.now_ms() {
            self.timers.insert((one.retry_at, server.clone()));
            return;
        }
        one.is_in_line = true;
        self.line.push_back(server.clone());
    }

    fn finish_all(&mut self, first: Done) {
        self.finish(first);
        while let Ok(done) = self.done.try_recv() {
            self.finish(done);
        }
    }

    fn finish(&mut self, done: Done) {
        self.running -= 1;
        self.is_dirty = true;
        let server = done.server;
        let Some(one) = self.destinations.get_mut(&server) else { return };
        one.is_busy = false;
        match done.outcome {
            Outcome::Accepted { taken, has_more, then, rest } => {
                one.is_failing = false;
                one.retry_at = 0;
                one.has_outbound |= has_more;
                one.accepted(&server, then, &self.device_lists, &mut self.ledger);
                if one.is_behind {
                    one.prepared.extend(rest);
                }
                self.ledger.taken.extend(taken.into_iter().map(|pos| (server.clone(), pos)));
            }
            Outcome::Failed { until_ms, again, has_more } => {
                one.has_outbound |= has_more;
                one.failed(&server, until_ms, &mut self.ledger);
                if until_ms > self.with.now_ms() + RECEIPTS_WAIT_MS {
                    one.ephemeral.clear();
                }
                one.again = Some(again).filter(|again| !again.is_empty());
            }
        }
        if one.is_idle() {
            self.destinations.remove(&server);
        } else {
            self.wake(&server);
        }
    }
}
