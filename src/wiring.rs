//! Builds the services bottom-up, starts what the assignment names, and ends them in order.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use chatd_api_client::App;
use chatd_base::{Clock, Stop, tasks};
use chatd_config::{
    Assignment, Config, Database, MAIN, PostgresDatabase, Roles, SigningKeys, StreamName, TaskName,
};
use chatd_federation::Federation;
use chatd_http::{Fleet, Limits, Metrics, Reply, Router, Server, Serving};
use chatd_rooms::{Rooms, Signer, profile::finish_what_was_begun, read::Reader};
use chatd_servers::Servers;
use chatd_storage::{ConnectSettings, Host, Interner, Pool, instances::Card, notices::Notices};
use chatd_streams::{
    Leases, Owners, Roster, Streams,
    bus::{Bus, LocalBus, RedisBus},
    seat,
};
use chatd_sync::Sync;
use chatd_users::{Deps, Users, cleanup};
use tokio::sync::watch;

use crate::{
    embedded::{self, Cluster},
    homes::{Carrier, Fellows, Homes},
    status::Status,
};

/// How long a PostgreSQL that does not answer at the start is waited for.
const WAIT_FOR_DATABASE: Duration = Duration::from_secs(60);
/// How long services may take at the end to write what they know.
const LAST_WRITES: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Runs this instance until `stop`; `changes` tells what the configuration has made of it since.
/// On return all requests and commits are finished.
pub async fn run(
    config: Arc<Config>,
    mine: Assignment,
    changes: watch::Receiver<Assignment>,
    stop: Stop,
) -> Result<()> {
    let metrics = Metrics::install().map_err(|error| anyhow!(error))?;
    // First, so that a port that is taken is told before a database is made.
    let server = Server::bind(&config).await.map_err(|error| anyhow!(error))?;

    let (settings, cluster) = database(&config).await?;
    // Requests that are under way need the services until the last of them is answered.
    let services = Stop::new();
    tasks::spawn("failure", stop_on_failure(services.clone(), stop.clone()));
    let duties = Duties { mine, changes };
    let served = serve(config, duties, settings, server, metrics, &stop, &services).await;
    services.trigger();
    if !services.released(LAST_WRITES).await {
        tracing::warn!("some services have not written all that they know within {LAST_WRITES:?}");
    }
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    match services.failure() {
        Some(reason) => bail!("{reason}"),
        None => served,
    }
}

/// Ends the instance in order when one of its services cannot go on.
async fn stop_on_failure(services: Stop, stop: Stop) {
    tokio::select! {
        () = services.failed() => {
            tracing::error!("ending: {}", services.failure().unwrap_or_default());
            stop.trigger();
        }
        () = services.triggered() => {}
    }
}

/// What this instance does.
struct Duties {
    mine: Assignment,
    /// What the configuration has made of it since.
    changes: watch::Receiver<Assignment>,
}

/// Everything above the database, until `stop`. The services go on until `services`.
async fn serve(
    config: Arc<Config>,
    duties: Duties,
    settings: ConnectSettings,
    server: Server,
    metrics: Metrics,
    stop: &Stop,
    services: &Stop,
) -> Result<()> {
    let Duties { mine, changes } = duties;
    let mine = &mine;
    let pool = Pool::open(&settings)?;
    if !migrate(&pool, stop).await? {
        return Ok(());
    }
    let (deps, owners) = foundation(config, mine, pool, stop, services).await?;
    let leases = Arc::new(Leases::new(crate::duties::duties(mine, &Roles::embedded())));
    let (app, roster) = services_on(deps, &owners, mine, &leases, stop).await?;
    if let Some(roster) = &roster {
        tasks::spawn("duties", follow_duties(roster.clone(), changes, stop.clone()));
    }
    let deps = &app.users.deps;
    let Deps { config, pool, streams, .. } = deps;
    let name = config.server_name.as_str();
    let status = Arc::new(Status::new(mine, name, pool, streams, &owners, roster.clone()));
    let figures = status.clone();
    metrics.source(move |sheet| figures.figures(sheet));
    let homes = Arc::new(Homes::new(mine, deps, &owners, &app.reader, roster, &app.federation));
    let fleet = fleet(deps, mine, &homes, stop)?;
    if let Some(caller) = fleet.as_ref().map(Fleet::caller) {
        streams.others.join(Arc::new(Fellows { homes, caller: caller.clone() }));
        app.federation.deps.servers.join(Arc::new(Carrier(caller)));
    }
    share_limits(&app);
    start_tasks(&app.users, &app.rooms, &app.federation, &leases);
    chatd_api_client::answer_calls(&app);
    let serving = Serving {
        routers: routers(&app),
        mounted: mine.routers.clone(),
        fleet,
        calls: streams.calls.clone(),
        users: app.users.tokens.clone(),
        servers: app.federation.deps.servers.keyring.clone(),
        limits: app.limits.clone(),
        metrics,
        detail: Arc::new(move || Reply::json(&status.detail())),
    };
    tracing::info!("{name} is ready as {}", mine.instance);
    if mine.instance == MAIN {
        say_how_to_make_an_account(config);
    }
    server.serve(serving, stop.clone()).await.map_err(|error| anyhow!(error))
}

/// What all services are built from: the streams with this instance's seat, and who owns the rooms.
async fn foundation(
    config: Arc<Config>,
    mine: &Assignment,
    pool: Pool,
    stop: &Stop,
    services: &Stop,
) -> Result<(Deps, Arc<Owners>)> {
    let bus = bus(&config, mine, services)?;
    let streams = Streams::open(&pool, bus, &mine.instance, &mine.writers, services).await?;
    let owners = Arc::new(Owners::open(&pool, &mine.instance, !streams.has_others()).await?);
    tasks::spawn("seat", seat::watch(pool.clone(), streams.writer, services.clone()));
    let notices = Notices::new(streams.writer.writer, streams.has_others());
    let deps = Deps {
        interner: Arc::new(Interner::new(&pool, config.chatd.id_cache)),
        streams: Arc::new(streams),
        notices,
        config,
        clock: Clock::system(),
        stop: services.clone(),
        closing: stop.clone(),
        pool,
    };
    Ok((deps, owners))
}

/// The services, which see and tell what goes on, and this instance's place in the fleet.
async fn services_on(
    deps: Deps,
    owners: &Arc<Owners>,
    mine: &Assignment,
    leases: &Arc<Leases>,
    stop: &Stop,
) -> Result<(Arc<App>, Option<Arc<Roster>>)> {
    let users = Arc::new(Users::new(deps));
    let Deps { pool, config, clock, stop: services, .. } = &users.deps;
    // Before anything is written, so that its memory is complete from the start.
    let sync = Arc::new(Sync::new(&users));
    // Made at the first start.
    let keys =
        SigningKeys::read_or_create(&config.signing_key_path).map_err(|error| anyhow!(error))?;
    let rooms = Arc::new(Rooms::new(&users, owners.clone(), signer(config, &keys)?));
    rooms.answer_calls();
    let reader = rooms.reader.clone();
    users.deps.streams.follow(pool, services);
    users.deps.notices.listen(pool, services);
    let roster = join_fleet(&users.deps, owners, mine, leases, stop).await?;
    let federation = federation(&users, &rooms, &reader, keys)?;
    tasks::spawn("inbound", federation.inbound.clone().run(services.clone()));
    tasks::spawn("partial_rooms", federation.joining.clone().run(services.clone()));
    let limits = Limits::new(config.rates.clone(), config.chatd.rate_limit_cache, clock.clone());
    let (config, clock, limits) = (config.clone(), clock.clone(), Arc::new(limits));
    let app = App { config, clock, limits, users, rooms, sync, reader, federation };
    Ok((Arc::new(app), roster))
}

/// Rate limits are those of the fleet, whichever of its instances is asked.
fn share_limits(app: &App) {
    const SUBJECT: &str = "limits";
    let Deps { streams, stop, .. } = &app.users.deps;
    if !streams.has_others() {
        return;
    }
    let heard = app.limits.clone();
    streams.on_told(SUBJECT, move |said| heard.hear(said));
    let (limits, streams, stop) = (app.limits.clone(), streams.clone(), stop.clone());
    let tell = move |said| streams.tell(SUBJECT, said);
    tasks::spawn("limits", async move { limits.share(tell, stop).await });
}

/// The endpoints of all members.
fn routers(app: &Arc<App>) -> Vec<Router> {
    let (config, users, clock) = (app.config.clone(), app.users.clone(), app.clock.clone());
    let admin = chatd_api_admin::App::new(config, users, clock);
    let federation = chatd_api_federation::App { federation: app.federation.clone() };
    let mut routers = chatd_api_client::routers(app);
    routers.extend(chatd_api_admin::routers(&Arc::new(admin)));
    routers.extend(chatd_api_federation::routers(&Arc::new(federation)));
    routers
}

/// What has to do with other servers.
fn federation(
    users: &Arc<Users>,
    rooms: &Arc<Rooms>,
    reader: &Reader,
    keys: SigningKeys,
) -> Result<Arc<Federation>> {
    let Deps { pool, config, clock, stop, .. } = users.deps.clone();
    let notary_keys = config.keys.notary_keys_path.as_ref().map(|path| {
        SigningKeys::read_for("key_server_signing_keys_path", path).map_err(|error| anyhow!(error))
    });
    let deps = chatd_servers::Deps {
        pool,
        config: config.clone(),
        clock,
        stop,
        keys: Arc::new(keys),
        notices: users.deps.notices.clone(),
        well_known_port: chatd_servers::HTTPS,
        notary_keys: notary_keys.transpose()?.map(Arc::new),
    };
    let servers = Servers::new(&deps).map_err(|error| anyhow!(error))?;
    servers.answer_calls(&users.deps.streams.calls);
    let (users, rooms, reader) = (users.clone(), rooms.clone(), reader.clone());
    let deps = chatd_federation::Deps { config, users, rooms, reader, servers };
    Ok(Arc::new(Federation::new(deps)))
}

/// Whoever has just started a server for the first time can do nothing without an account.
fn say_how_to_make_an_account(config: &Config) {
    if config.registration.shared_secret.is_some() {
        let files: Vec<_> =
            config.files.iter().map(|file| format!("-c {}", file.display())).collect();
        tracing::info!("to make an account: chatd register-user -u NAME {}", files.join(" "));
    }
}

/// What carries rows to and from the other instances, if there are any.
fn bus(config: &Config, mine: &Assignment, stop: &Stop) -> Result<Arc<dyn Bus>> {
    let redis = &config.workers.redis;
    if !redis.enabled {
        return Ok(Arc::new(LocalBus));
    }
    let bus = RedisBus::start(redis, config.server_name.as_str(), &mine.instance, stop)
        .map_err(|error| anyhow!(error))?;
    Ok(Arc::new(bus))
}

/// Takes this instance's place among the others, if there are any: until `stop` it owns its share
/// of the rooms.
async fn join_fleet(
    deps: &Deps,
    owners: &Arc<Owners>,
    mine: &Assignment,
    leases: &Arc<Leases>,
    stop: &Stop,
) -> Result<Option<Arc<Roster>>> {
    if !deps.streams.has_others() {
        leases.hold_all();
        return Ok(None);
    }
    let card = Card {
        name: mine.instance.clone(),
        role: mine.role.clone(),
        seat: deps.streams.writer,
        owns_rooms: mine.writes(StreamName::Events),
        address: address_of(deps, mine),
    };
    let roster =
        Roster::join(&deps.pool, card, &deps.streams, owners, &deps.notices, leases).await?;
    roster.start(stop);
    Ok(Some(roster))
}

/// Extends rooms, or ceases to, as the configuration has it, until `stop`.
async fn follow_duties(roster: Arc<Roster>, mut changes: watch::Receiver<Assignment>, stop: Stop) {
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.triggered() => return,
        }
        let wants = changes.borrow_and_update().writes(StreamName::Events);
        if let Err(error) = roster.own_rooms(wants).await {
            tracing::error!(%error, "this instance could not change whether it extends rooms");
        }
    }
}

/// Where the others reach this instance, as its own configuration has it.
fn address_of(deps: &Deps, mine: &Assignment) -> Option<String> {
    let address = deps.config.workers.instance_map.get(&mine.instance)?;
    serde_json::to_string(address).ok()
}

/// The key that signs this server's events.
fn signer(config: &Config, keys: &SigningKeys) -> Result<Signer> {
    let key = keys.current();
    Signer::new(config.server_name.clone(), &key.version, &key.seed).map_err(|error| anyhow!(error))
}

/// Starts the work that this instance does by itself, as far as it is its own.
fn start_tasks(users: &Users, rooms: &Arc<Rooms>, federation: &Federation, leases: &Leases) {
    let Deps { pool, clock, stop, .. } = users.deps.clone();
    let (rooms, ending) = (rooms.clone(), stop.clone());
    let clean = move |_| {
        let finishing = finish_what_was_begun(rooms.clone(), ending.clone());
        let cleaning = cleanup::run(pool.clone(), clock.clone(), ending.clone());
        async move {
            tokio::join!(finishing, cleaning);
        }
    };
    tasks::spawn("cleanup", leases.keep(TaskName::Cleanup.as_str(), stop.clone(), clean));
    let parts = leases.parts_of(TaskName::FederationSender.as_str());
    for part in &parts {
        let (sending, name, parts) = (federation.sending.clone(), part.clone(), parts.clone());
        let send = move |_| sending.clone().run(name.clone(), parts.clone());
        tasks::spawn("federation_sender", leases.keep(part, stop.clone(), send));
    }
}

/// The other instances, if there may be any: those that call this one need not be in the
/// configuration.
fn fleet(deps: &Deps, mine: &Assignment, homes: &Arc<Homes>, stop: &Stop) -> Result<Option<Fleet>> {
    let workers = &deps.config.workers;
    let knows_nobody = workers.instance_map.keys().all(|name| *name == mine.instance);
    if knows_nobody && !deps.streams.has_others() {
        return Ok(None);
    }
    let secret = workers.replication_secret.clone();
    Fleet::new(homes.clone(), &workers.instance_map, secret, stop.clone())
        .map(Some)
        .map_err(|error| anyhow!(error))
}

/// Where the database is; starts it if it is ours.
async fn database(config: &Config) -> Result<(ConnectSettings, Option<Cluster>)> {
    match &config.database {
        Database::Embedded { pool } => {
            let cluster = Cluster::start(&config.data_dir, pool.max).await?;
            let folder = cluster.socket_folder();
            let settings =
                ConnectSettings::on_socket(folder, embedded::USER, embedded::DATABASE, pool.max);
            Ok((settings, Some(cluster)))
        }
        Database::Postgres(postgres) => Ok((connect_settings(postgres)?, None)),
    }
}

fn connect_settings(postgres: &PostgresDatabase) -> Result<ConnectSettings> {
    let host = if postgres.host.starts_with('/') {
        Host::Socket { folder: (&postgres.host).into(), port: postgres.port }
    } else {
        Host::Tcp { host: postgres.host.clone(), port: postgres.port }
    };
    // libpq's default is the name of the system's user.
    let user = postgres
        .user
        .clone()
        .or_else(|| std::env::var("USER").ok())
        .context("database.args.user is missing")?;
    Ok(ConnectSettings {
        host,
        password: postgres.password.as_ref().map(|secret| secret.expose().to_owned()),
        database: postgres.dbname.clone().unwrap_or_else(|| user.clone()),
        user,
        max_connections: postgres.pool.max,
        tls: postgres.tls.clone(),
        connect_timeout: postgres.connect_timeout,
        application_name: postgres.application_name.clone(),
    })
}

/// Brings the schema up to date, waiting for PostgreSQL if it is not there yet. Returns false if
/// the end came first.
async fn migrate(pool: &Pool, stop: &Stop) -> Result<bool> {
    let attempts = WAIT_FOR_DATABASE.as_secs() / ASK_AGAIN.as_secs();
    for attempt in 0..attempts {
        let lost = match chatd_storage::migrate(pool).await {
            Ok(()) => return Ok(true),
            Err(error @ chatd_storage::Error::Lost(_)) => error,
            Err(error) => return Err(error).context("cannot bring the database up to date"),
        };
        if attempt % 10 == 0 {
            tracing::warn!(error = %lost, "waiting for PostgreSQL");
        }
        if !stop.sleep(ASK_AGAIN).await {
            return Ok(false);
        }
    }
    bail!("PostgreSQL did not answer within {} s", WAIT_FOR_DATABASE.as_secs())
}
