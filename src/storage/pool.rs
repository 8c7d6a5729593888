//! Connections to PostgreSQL and the few ways to use one.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chatd_base::cost;
use chatd_config::DatabaseTls;
use deadpool_postgres::{
    Client, Hook, HookError, Manager, ManagerConfig, RecyclingMethod, Runtime,
};
use tokio_postgres::{Config, NoTls, Row, types::ToSql};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{Batch, BatchRows, Error, PoolState, Result, Statement, meter, tls};

/// Where PostgreSQL listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Tcp {
        host: String,
        port: u16,
    },
    /// Folder of the unix socket, and the port that is part of the socket's name.
    Socket {
        folder: PathBuf,
        port: u16,
    },
}

/// What it takes to connect.
#[derive(Clone, Debug)]
pub struct ConnectSettings {
    pub host: Host,
    pub user: String,
    pub password: Option<String>,
    pub database: String,
    pub max_connections: usize,
    /// Not looked at on a unix socket, which never speaks TLS.
    pub tls: DatabaseTls,
    pub connect_timeout: Duration,
    pub application_name: String,
}

/// How long a PostgreSQL on this machine may take to accept a connection.
const CONNECT_LOCALLY: Duration = Duration::from_secs(10);

impl ConnectSettings {
    /// A database without a password on a unix socket of this machine; PostgreSQL's usual port.
    pub fn on_socket(folder: PathBuf, user: &str, database: &str, max_connections: usize) -> Self {
        Self {
            host: Host::Socket { folder, port: 5432 },
            user: user.to_owned(),
            password: None,
            database: database.to_owned(),
            max_connections,
            tls: DatabaseTls::Never,
            connect_timeout: CONNECT_LOCALLY,
            application_name: "chatd".to_owned(),
        }
    }
}

/// A bounded set of connections. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: deadpool_postgres::Pool,
    /// For connections that are not part of the set.
    connector: Arc<(Config, Option<MakeRustlsConnect>)>,
    /// Whether the last attempt found no database, so that the log says it once.
    is_away: Arc<AtomicBool>,
}

/// How long a request waits for a free connection, or a new one.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(10);

/// How long a single statement may take. A database that is silent for longer is as good as away.
pub(crate) const LONGEST_STATEMENT: Duration = Duration::from_secs(60);

/// When a connection over which nothing comes is found to be dead.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Said on each new connection. A process that is stopped in the middle of a transaction must not
/// keep its locks (R5).
const GREETING: &str = "SET idle_in_transaction_session_timeout = '10s'";

impl Pool {
    /// Prepares the pool; connects lazily.
    pub fn open(settings: &ConnectSettings) -> Result<Self> {
        let mut config = Config::new();
        config
            .user(&settings.user)
            .dbname(&settings.database)
            .application_name(&settings.application_name)
            .connect_timeout(settings.connect_timeout.min(WAIT_FOR_CONNECTION))
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(UNACKNOWLEDGED);
        if let Some(password) = &settings.password {
            config.password(password);
        }
        match &settings.host {
            Host::Tcp { host, port } => config.host(host).port(*port),
            Host::Socket { folder, port } => config.host_path(folder).port(*port),
        };
        // libpq ignores its `sslmode` on a unix socket too.
        let mode = match settings.host {
            Host::Socket { .. } => &DatabaseTls::Never,
            Host::Tcp { .. } => &settings.tls,
        };
        config.ssl_mode(tls::ssl_mode(mode));
        let fast = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let connector = Arc::new((config.clone(), tls::connector(mode)?));
        let manager = match connector.1.clone() {
            None => Manager::from_config(config, NoTls, fast),
            Some(tls) => Manager::from_config(config, tls, fast),
        };
        let inner = deadpool_postgres::Pool::builder(manager)
            .max_size(settings.max_connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(WAIT_FOR_CONNECTION))
            .create_timeout(Some(WAIT_FOR_CONNECTION))
            .post_create(Hook::async_fn(|client, _| {
                Box::pin(async { client.batch_execute(GREETING).await.map_err(HookError::Backend) })
            }))
            .build()
            .map_err(|error| Error::Lost(error.to_string()))?;
        Ok(Self { inner, connector, is_away: Arc::default() })
    }

    /// What a connection of one's own is made with.
    pub(crate) fn connector(&self) -> (&Config, Option<MakeRustlsConnect>) {
        (&self.connector.0, self.connector.1.clone())
    }

    /// A connection for work that the other functions do not cover (migrations, copies).
    pub(crate) async fn client(&self) -> Result<Client> {
        let asked = Instant::now();
        let client = self.inner.get().await.map_err(|error| Error::from_pool(&error));
        meter::SCHEDULE.record(asked.elapsed());
        client.inspect_err(|error| self.note_lost(error))
    }

    /// The connections of this moment.
    pub fn state(&self) -> PoolState {
        let status = self.inner.status();
        PoolState {
            is_connected: !self.is_away.load(Ordering::Relaxed),
            max: status.max_size,
            size: status.size,
            in_use: status.size.saturating_sub(status.available),
            waiting: status.waiting,
        }
    }

    fn note_lost(&self, error: &Error) {
        if matches!(error, Error::Lost(_)) && !self.is_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "lost the database");
        }
    }

    fn note_answer(&self) {
        if self.is_away.load(Ordering::Relaxed) && self.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!("the database is back");
        }
    }

    /// Notes of an outcome whether the database is there.
    pub(crate) fn noting<T>(&self, outcome: Result<T>) -> Result<T> {
        match &outcome {
            Err(error @ Error::Lost(_)) => self.note_lost(error),
            _ => self.note_answer(),
        }
        outcome
    }

    /// Runs one reading statement and returns its rows. One round trip.
    pub async fn query(
        &self,
        statement: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        self.alone(statement, async |client, prepared| client.query(prepared, params).await).await
    }

    /// Runs one statement in a transaction of its own.
    async fn alone<T>(
        &self,
        statement: &'static Statement,
        run: impl AsyncFnOnce(&Client, &tokio_postgres::Statement) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T> {
        // If the caller goes away, the driver passes over the answer that is still to come.
        let client = self.client().await?;
        let begun = Instant::now();
        let work = async {
            let prepared = client.prepare_cached(statement.sql).await?;
            cost::note_round_trip(1);
            meter::STATEMENTS.increment(1);
            run(&client, &prepared).await
        };
        let outcome = match tokio::time::timeout(LONGEST_STATEMENT, work).await {
            Ok(outcome) => outcome.map_err(|cause| Error::from_postgres(statement.name, cause)),
            Err(_) => Err(Error::Lost(format!("{}: no answer", statement.name))),
        };
        statement.meter.note(begun.elapsed());
        match &outcome {
            Err(error @ Error::Lost(_)) => {
                self.note_lost(error);
                drop(Client::take(client));
            }
            _ => self.note_answer(),
        }
        outcome
    }

    /// Like [`Pool::query`] for statements that return at most one row.
    pub async fn query_opt(
        &self,
        statement: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>> {
        Ok(self.query(statement, params).await?.into_iter().next())
    }

    /// Runs one writing statement on its own (auto-commit) and returns the rows that it touched.
    pub async fn execute(
        &self,
        statement: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64> {
        self.alone(statement, async |client, prepared| client.execute(prepared, params).await).await
    }

    /// Runs all statements of `batch` in one transaction and one round trip. On return the
    /// transaction is durable (R1). [`Error::Lost`] means that the outcome is not known.
    pub async fn commit(&self, batch: Batch) -> Result<BatchRows> {
        let client = self.client().await?;
        cost::note_round_trip(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        meter::STATEMENTS.increment(batch.len() as u64);
        meter::COMMITS.increment(1);
        let begun = Instant::now();
        let mut guard = Unfinished::new(client);
        let outcome = batch.run(guard.client()).await;
        meter::COMMIT.note(begun.elapsed());
        if !matches!(outcome, Err(Error::Lost(_))) {
            guard.finish();
        }
        self.noting(outcome)
    }
}

/// Keeps a connection with an unfinished transaction from going back to the pool when the task
/// that runs it is cancelled or fails.
pub(crate) struct Unfinished(Option<Client>);

impl Unfinished {
    pub(crate) fn new(client: Client) -> Self {
        Self(Some(client))
    }

    pub(crate) fn client(&self) -> &Client {
        self.0.as_ref().expect("only `finish` and `drop` take the client")
    }

    /// The transaction is over: the connection may be used again.
    pub(crate) fn finish(&mut self) {
        drop(self.0.take());
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Client::take(client));
        }
    }
}
