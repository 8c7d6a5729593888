//! Notices between instances: what a commit makes of values that others hold in memory.
//!
//! A notice is part of the transaction that makes it true (`pg_notify`), so it is told exactly if
//! that takes effect. Each instance of a fleet listens on a connection of its own. While that is
//! lost nothing is heard, so whoever keeps values is told to drop them all when it goes and again
//! when it is back. An instance that is alone neither tells nor listens.
//!
//! PostgreSQL sends what was told before a query's answer, if it was committed before the query
//! came: so an answer on that connection is also news that all earlier notices have been heard
//! ([`Notices::sound`]).

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chatd_base::{Position, Stop, UserNid, WriterId, tasks};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Notification};

use crate::{Batch, Error, Pool, Result, params, positions, statement::statements};

statements! {
    TELL = "SELECT pg_notify('chatd', $1::text || ':' || notice) FROM unnest($2::text[]) AS notice";
}

/// Something that may be in another instance's memory has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// Access tokens of these devices have ended.
    DevicesEnded { user: UserNid, devices: Vec<String> },
    /// All access tokens of the user but one have ended, or something about the account is
    /// different.
    TokensEnded { user: UserNid, but: Option<i64> },
    /// The profile is different, or the account is new.
    Profile { user: UserNid },
    /// Keys of these devices were added or claimed.
    KeyCounts { devices: Vec<(UserNid, String)> },
    /// Other rooms are published.
    Directory,
    /// The user has forgotten a room.
    Forgotten { user: UserNid, room_id: String },
    /// A room has become known: somebody is invited to it, or on the way into it.
    Room { room_id: String },
    /// Events from before this server was in the room have been fetched.
    History { room_id: String },
    /// An instance has come or gone, or shards have another owner.
    Fleet,
    /// Another server that had not answered is there again.
    ServerAlive { server: String },
    /// Another server that had answered does not any more.
    ServerAway { server: String },
    /// More than fits into a notice.
    Everything,
}

/// What a listener is told.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    Notice(&'a Notice),
    /// Anything may have been told meanwhile.
    Missed,
}

/// Bytes that PostgreSQL takes in one notice, less those of the sender's number.
const MOST_BYTES: usize = 7_900;
/// Devices in one notice.
const MOST_DEVICES: usize = 64;
/// How often the connection is tried, and how long an answer may take.
const ALIVE_EVERY: Duration = Duration::from_secs(4);
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// How long those who ask for a sounding wait.
const SOUND_WITHIN: Duration = Duration::from_secs(2);
/// Pause before another attempt to connect.
const PAUSE: Duration = Duration::from_millis(500);

type Ear = Box<dyn Fn(Heard<'_>) + Send + Sync>;

/// Positions of all writers: (stream number, writer, position).
type Positions = Vec<(i16, WriterId, Position)>;
type Asker = oneshot::Sender<Positions>;

/// Who may wait for soundings (R8).
const MOST_ASKERS: usize = 1024;

/// Tells the other instances, and those in this one who want to hear them.
pub struct Notices {
    me: WriterId,
    has_others: bool,
    ears: RwLock<Vec<Ear>>,
    /// Whether the log last said so.
    hears: AtomicBool,
    ask: mpsc::Sender<Asker>,
    /// The other end of `ask`, until [`Notices::listen`] takes it.
    asked: Mutex<Option<mpsc::Receiver<Asker>>>,
}

impl Notices {
    /// Notices of the instance `me`. Nothing is told where there are no others.
    pub fn new(me: WriterId, has_others: bool) -> Arc<Self> {
        let (ask, asked) = mpsc::channel(MOST_ASKERS);
        Arc::new(Self {
            me,
            has_others,
            ears: RwLock::default(),
            hears: AtomicBool::new(true),
            ask,
            asked: Mutex::new(Some(asked)),
        })
    }

    /// Has the others told of `notice` if the batch takes effect. This instance drops what it
    /// holds itself, when the commit has returned.
    pub fn tell(&self, batch: &mut Batch, notice: Notice) {
        if self.has_others {
            batch.add(&TELL, params![self.me.to_string(), payloads(notice)]);
        }
    }

    /// What [`Self::tell`] sends, for a statement that decides whether to; `None` if nobody hears it.
    pub(crate) fn text(&self, notice: &Notice) -> Option<String> {
        self.has_others.then(|| format!("{}:{}", self.me, payload(notice)))
    }

    /// Adds somebody who wants to hear the others. It must be quick and must not wait. Called
    /// while the instance is wired.
    pub fn on_heard(&self, ear: impl Fn(Heard<'_>) + Send + Sync + 'static) {
        self.ears.write().push(Box::new(ear));
    }

    /// Starts to listen, until `stop`.
    pub fn listen(self: &Arc<Self>, pool: &Pool, stop: &Stop) {
        let asked = self.asked.lock().take();
        if let Some(asked) = asked.filter(|_| self.has_others) {
            tasks::spawn("notices", self.clone().run(pool.clone(), asked, stop.clone()));
        }
    }

    /// Reads all positions. On return this instance has heard every notice of a commit that had
    /// returned before the call. `None` if it cannot tell; then those who keep values have been
    /// told to drop them. Callers that come at the same time share a query.
    pub async fn sound(&self) -> Option<Positions> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.ask.send(reply).await.ok()?;
            answer.await.ok()
        };
        let positions = tokio::time::timeout(SOUND_WITHIN, asked).await.ok().flatten();
        if positions.is_none() {
            self.missed();
        }
        positions
    }

    async fn run(self: Arc<Self>, pool: Pool, mut asked: mpsc::Receiver<Asker>, stop: Stop) {
        loop {
            let ended = tokio::select! {
                ended = self.hold(&pool, &mut asked) => ended,
                () = stop.triggered() => return,
            };
            self.missed();
            metrics::gauge!("chatd_notices_connected").set(0.0);
            if let Err(error) = ended
                && self.hears.swap(false, Ordering::Relaxed)
            {
                tracing::warn!(%error, "not hearing the other instances; caches are cleared");
            }
            if !stop.sleep(PAUSE).await {
                return;
            }
        }
    }

    /// Listens on one connection until it is lost.
    async fn hold(&self, pool: &Pool, asked: &mut mpsc::Receiver<Asker>) -> Result<()> {
        let (config, tls) = pool.connector();
        let lost = |cause| Error::from_postgres("LISTEN", cause);
        match tls {
            Some(tls) => {
                let (client, connection) = config.connect(tls).await.map_err(lost)?;
                self.attend(&client, connection, asked).await
            }
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(lost)?;
                self.attend(&client, connection, asked).await
            }
        }
    }

    async fn attend<S, T>(
        &self,
        client: &Client,
        mut connection: Connection<S, T>,
        asked: &mut mpsc::Receiver<Asker>,
    ) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let lost = |cause| Error::from_postgres("LISTEN", cause);
        let heard = async {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message.map_err(lost)? {
                    self.take(&notification);
                }
            }
            Err(Error::Lost("the connection was closed".to_owned()))
        };
        let answered = async {
            client.batch_execute("LISTEN chatd").await.map_err(lost)?;
            self.missed();
            self.hears.store(true, Ordering::Relaxed);
            metrics::gauge!("chatd_notices_connected").set(1.0);
            tracing::info!("hearing the other instances");
            let sounding = client.prepare(positions::LIST_POSITIONS.sql).await.map_err(lost)?;
            let mut askers = Vec::new();
            loop {
                tokio::select! {
                    count = asked.recv_many(&mut askers, MOST_ASKERS) => if count == 0 {
                        return Err(Error::Lost("nobody asks any more".to_owned()));
                    },
                    () = tokio::time::sleep(ALIVE_EVERY) => {}
                }
                // Those who come from here on wait for the next answer.
                let answer = async {
                    if askers.is_empty() {
                        client.batch_execute("").await.map(|()| Vec::new())
                    } else {
                        client.query(&sounding, &[]).await
                    }
                };
                let answer = tokio::time::timeout(ANSWER_WITHIN, answer);
                let rows =
                    answer.await.map_err(|_| Error::Lost("no answer".to_owned()))?.map_err(lost)?;
                let positions: Positions = rows.iter().map(positions::known).collect();
                for asker in askers.drain(..) {
                    // One that has gone away needs no answer.
                    let _ = asker.send(positions.clone());
                }
            }
        };
        tokio::select! {
            ended = heard => ended,
            ended = answered => ended,
        }
    }

    fn take(&self, notification: &Notification) {
        let Some((by, notice)) = notification.payload().split_once(':') else { return };
        if by == self.me.to_string() {
            return;
        }
        match serde_json::from_str(notice) {
            Ok(Notice::Everything) => self.missed(),
            Ok(notice) => self.hear(Heard::Notice(&notice)),
            // Of another release: it may mean anything.
            Err(_) => self.missed(),
        }
    }

    fn missed(&self) {
        self.hear(Heard::Missed);
    }

    fn hear(&self, heard: Heard<'_>) {
        self.ears.read().iter().for_each(|ear| ear(heard));
    }
}

/// The notice as PostgreSQL gets it: several if it is long.
fn payloads(notice: Notice) -> Vec<String> {
    match notice {
        Notice::KeyCounts { devices } if devices.len() > MOST_DEVICES => devices
            .chunks(MOST_DEVICES)
            .map(|part| payload(&Notice::KeyCounts { devices: part.to_vec() }))
            .collect(),
        notice => vec![payload(&notice)],
    }
}

fn payload(notice: &Notice) -> String {
    let text = |notice: &Notice| {
        serde_json::to_string(notice).expect("notices are plain data, which always serialises")
    };
    let payload = text(notice);
    if payload.len() > MOST_BYTES { text(&Notice::Everything) } else { payload }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notices_are_cut_or_made_short() {
        let devices = |count: usize, id: &str| Notice::KeyCounts {
            devices: (0..count).map(|n| (UserNid(1), format!("{id}{n}"))).collect(),
        };
        assert_eq!(payloads(devices(64, "ABCDEFGHIJ")).len(), 1);
        let many = payloads(devices(1_000, "ABCDEFGHIJ"));
        assert_eq!(many.len(), 16);
        assert!(many.iter().all(|payload| payload.contains("ABCDEFGHIJ")));
        let long = payloads(devices(64, &"x".repeat(500)));
        assert_eq!(long, ["\"Everything\""]);
    }
}
