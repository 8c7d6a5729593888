//! Notices between instances: what a commit makes of values that others hold in memory.
//!
//! A notice is part of the transaction that makes it true (`pg_notify`), so it is told exactly if
//! that takes effect. Each instance of a fleet listens on a connection of its own. While that is
//! lost nothing is heard, so whoever keeps values is told to drop them all when it goes and again
//! when it is back. An instance that is alone neither tells nor listens.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chatd_base::{Stop, UserNid, WriterId, tasks};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Notification};

use crate::{Batch, Error, Pool, Result, params, statement::statements};

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
    /// An instance has come or gone, or shards have another owner.
    Fleet,
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
/// Pause before another attempt to connect.
const PAUSE: Duration = Duration::from_millis(500);

type Ear = Box<dyn Fn(Heard<'_>) + Send + Sync>;

/// Tells the other instances, and those in this one who want to hear them.
pub struct Notices {
    me: WriterId,
    has_others: bool,
    ears: RwLock<Vec<Ear>>,
    /// Whether the log last said so.
    hears: AtomicBool,
}

impl Notices {
    /// Notices of the instance `me`. Nothing is told where there are no others.
    pub fn new(me: WriterId, has_others: bool) -> Arc<Self> {
        Arc::new(Self { me, has_others, ears: RwLock::default(), hears: AtomicBool::new(true) })
    }

    /// Has the others told of `notice` if the batch takes effect. This instance drops what it
    /// holds itself, when the commit has returned.
    pub fn tell(&self, batch: &mut Batch, notice: Notice) {
        if self.has_others {
            batch.add(&TELL, params![self.me.to_string(), payloads(notice)]);
        }
    }

    /// Adds somebody who wants to hear the others. It must be quick and must not wait. Called
    /// while the instance is wired.
    pub fn on_heard(&self, ear: impl Fn(Heard<'_>) + Send + Sync + 'static) {
        self.ears.write().push(Box::new(ear));
    }

    /// Starts to listen, until `stop`.
    pub fn listen(self: &Arc<Self>, pool: &Pool, stop: &Stop) {
        if self.has_others {
            tasks::spawn("notices", self.clone().run(pool.clone(), stop.clone()));
        }
    }

    async fn run(self: Arc<Self>, pool: Pool, stop: Stop) {
        loop {
            let ended = tokio::select! {
                ended = self.hold(&pool) => ended,
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
    async fn hold(&self, pool: &Pool) -> Result<()> {
        let (config, tls) = pool.connector();
        let lost = |cause| Error::from_postgres("LISTEN", cause);
        match tls {
            Some(tls) => {
                let (client, connection) = config.connect(tls).await.map_err(lost)?;
                self.attend(&client, connection).await
            }
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(lost)?;
                self.attend(&client, connection).await
            }
        }
    }

    async fn attend<S, T>(&self, client: &Client, mut connection: Connection<S, T>) -> Result<()>
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
        let asked = async {
            client.batch_execute("LISTEN chatd").await.map_err(lost)?;
            self.missed();
            self.hears.store(true, Ordering::Relaxed);
            metrics::gauge!("chatd_notices_connected").set(1.0);
            tracing::info!("hearing the other instances");
            loop {
                tokio::time::sleep(ALIVE_EVERY).await;
                let answer = tokio::time::timeout(ANSWER_WITHIN, client.batch_execute("SELECT 1"));
                answer.await.map_err(|_| Error::Lost("no answer".to_owned()))?.map_err(lost)?;
            }
        };
        tokio::select! {
            ended = heard => ended,
            ended = asked => ended,
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
