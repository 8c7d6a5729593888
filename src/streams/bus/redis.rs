//! The bus of a fleet: one channel of Redis pub/sub. Redis keeps nothing for us, and may be away,
//! be slow or lose messages: then readers see a gap, or nothing, and look at the tables (R4).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chatd_base::{Stop, tasks};
use chatd_config::Redis;
use fred::{clients::SubscriberClient, prelude::*, types::config::Options};
use tokio::sync::{broadcast::error::RecvError, mpsc};

use super::{
    Bus, BusState, Encode,
    state::{Meter, Sent},
    tls, wire,
};
use crate::Streams;

/// Messages that may wait for Redis (R8). What does not fit is dropped.
const QUEUE: usize = 8_192;
/// Messages from Redis that may wait for the folds; what does not fit is read from the tables. The
/// client library takes memory for all of them at once, several times over.
const INBOX: usize = 2_048;
/// How long Redis may take for one message before it counts as lost.
const SLOW: Duration = Duration::from_secs(2);
/// How often positions are read from the tables while Redis is there (besides the beats, which
/// bring them as well), and while it is away.
const CALM: Duration = Duration::from_secs(30);
const ALERT: Duration = Duration::from_secs(1);

struct Outgoing {
    stream: &'static str,
    message: Vec<u8>,
}

/// One instance's connection to the channel.
pub struct RedisBus {
    builder: Builder,
    channel: String,
    instance: String,
    queue: mpsc::Sender<Outgoing>,
    hears: Arc<AtomicBool>,
    meter: Arc<Meter>,
}

impl RedisBus {
    /// Starts to connect; does not wait for it. Fails only if the settings make no sense.
    pub fn start(
        settings: &Redis,
        server_name: &str,
        instance: &str,
        stop: &Stop,
    ) -> Result<Self, String> {
        let mut builder = Builder::from_config(client_config(settings)?);
        builder
            .set_policy(ReconnectPolicy::new_exponential(0, 50, 2_000, 2))
            .with_connection_config(|config| {
                config.connection_timeout = Duration::from_secs(5);
                config.internal_command_timeout = Duration::from_secs(5);
                config.unresponsive.max_timeout = Some(Duration::from_secs(10));
                config.max_command_buffer_len = QUEUE;
            });
        let client = builder.build().map_err(|error| error.to_string())?;
        builder.with_performance_config(|config| config.broadcast_channel_capacity = INBOX);
        let (queue, outgoing) = mpsc::channel(QUEUE);
        let channel = format!("{server_name}/chatd");
        let meter = Arc::new(Meter::new());
        let sender = Sender { client, channel: channel.clone(), meter: meter.clone() };
        tasks::spawn("bus", sender.run(outgoing, stop.clone()));
        let (instance, hears) = (instance.to_owned(), Arc::default());
        Ok(Self { builder, channel, instance, queue, hears, meter })
    }
}

impl Bus for RedisBus {
    fn publish(&self, stream: &'static str, frame: &dyn Encode) {
        let Ok(place) = self.queue.try_reserve() else {
            self.meter.dropped(stream);
            return;
        };
        let message = wire::message(stream, &self.instance, &frame.head(), &frame.rows());
        place.send(Outgoing { stream, message });
    }

    fn listen(&self, streams: &Arc<Streams>, stop: &Stop) {
        let client = match self.builder.build_subscriber_client() {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "redis cannot be listened to; positions are polled");
                return;
            }
        };
        let listener = Listener {
            client,
            channel: self.channel.clone(),
            instance: self.instance.clone(),
            streams: streams.clone(),
            hears: self.hears.clone(),
            meter: self.meter.clone(),
        };
        tasks::spawn("bus listener", listener.run(stop.clone()));
    }

    fn patience(&self) -> Option<Duration> {
        Some(if self.is_calm() { CALM } else { ALERT })
    }

    fn state(&self) -> Option<BusState> {
        Some(self.meter.state(self.queue.max_capacity() - self.queue.capacity()))
    }

    fn is_calm(&self) -> bool {
        self.hears.load(Ordering::Relaxed)
    }
}

struct Sender {
    client: Client,
    channel: String,
    meter: Arc<Meter>,
}

impl Sender {
    /// Publishes what comes out of `outgoing`, in order. A message that Redis does not take in time
    /// is dropped: rows that wait are worth less than rows that are fresh.
    async fn run(self, mut outgoing: mpsc::Receiver<Outgoing>, stop: Stop) {
        let Self { client, channel, meter } = self;
        client.connect();
        let once = client.with_options(&Options {
            max_attempts: Some(1),
            timeout: Some(SLOW),
            fail_fast: true,
            ..Options::default()
        });
        let (mut is_lost, mut sent) = (false, Sent::default());
        loop {
            let next = tokio::select! {
                biased;
                next = outgoing.recv() => next,
                () = stop.triggered() => None,
            };
            let Some(Outgoing { stream, message }) = next else { break };
            let length = message.len();
            let taken: Result<(), _> = once.publish(&channel, bytes::Bytes::from(message)).await;
            match taken {
                Ok(()) => {
                    sent.note(&meter, stream, length);
                    is_lost = false;
                }
                Err(error) => {
                    meter.dropped(stream);
                    if !is_lost {
                        tracing::warn!(%error, "redis takes no messages; the others poll positions");
                    }
                    is_lost = true;
                }
            }
        }
        // It is only being polite to Redis.
        let _ = client.quit().await;
    }
}

struct Listener {
    client: SubscriberClient,
    channel: String,
    instance: String,
    streams: Arc<Streams>,
    hears: Arc<AtomicBool>,
    meter: Arc<Meter>,
}

impl Listener {
    /// Hands messages on until `stop`.
    async fn run(self, stop: Stop) {
        let mut messages = self.client.message_rx();
        let mut reconnects = self.client.reconnect_rx();
        let mut errors = self.client.error_rx();
        self.client.connect();
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Ok(message) => self.take(&message),
                    // What was missed shows as a gap, or in the positions.
                    Err(RecvError::Lagged(_)) => self.streams.look(),
                    Err(RecvError::Closed) => break,
                },
                _ = reconnects.recv() => self.subscribe().await,
                _ = errors.recv() => self.deaf(),
                () = stop.triggered() => break,
            }
        }
        let _ = self.client.quit().await;
    }

    async fn subscribe(&self) {
        match self.client.subscribe(&self.channel).await {
            Ok(()) => {
                tracing::info!("listening to redis");
                self.hears.store(true, Ordering::Relaxed);
                self.meter.connected();
                // Nobody has kept what was published before.
                self.streams.look();
            }
            Err(error) => tracing::warn!(%error, "cannot subscribe at redis"),
        }
    }

    fn deaf(&self) {
        if self.hears.swap(false, Ordering::Relaxed) {
            tracing::warn!("lost redis; positions are polled from PostgreSQL");
            self.meter.lost();
            self.streams.look();
        }
    }

    fn take(&self, message: &fred::types::Message) {
        let Some(bytes) = message.value.as_bytes() else { return };
        let Some(parsed) = wire::parse(bytes) else { return };
        if parsed.instance == self.instance {
            return;
        }
        self.meter.came_in(bytes.len());
        if let Err(error) = self.streams.receive(parsed.stream, &parsed.head, parsed.rows) {
            tracing::debug!(%error, stream = parsed.stream, "a frame of another release");
            self.streams.look();
        }
    }
}

/// The settings as the client library wants them.
fn client_config(settings: &Redis) -> Result<Config, String> {
    let mut config = match (&settings.url, &settings.path) {
        (Some(url), _) => Config::from_url(url).map_err(|error| format!("redis.url: {error}"))?,
        (None, Some(path)) => {
            Config { server: ServerConfig::Unix { path: path.clone() }, ..Config::default() }
        }
        (None, None) => Config {
            server: ServerConfig::new_centralized(settings.host.clone(), settings.port),
            ..Config::default()
        },
    };
    if let Some(password) = &settings.password {
        config.password = Some(password.expose().to_owned());
    }
    if settings.url.is_none() {
        let dbid = settings.dbid.parse().map_err(|_| {
            format!("redis.dbid: `{}` is not the number of a database", settings.dbid)
        })?;
        config.database = Some(dbid);
    }
    let wants_tls =
        settings.use_tls || settings.url.as_ref().is_some_and(|url| url.starts_with("rediss"));
    config.tls = match wants_tls {
        true => Some(tls::connector(settings)?.into()),
        false => None,
    };
    config.fail_fast = false;
    Ok(config)
}
