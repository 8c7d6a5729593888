//! A server seen from outside: health, what operators are told, the metrics page, `chatd top`,
//! and requests in the logs of two instances.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use chatd_kit::{
    Command, Cost, Database, Server, Settings, Spread, User,
    command::{Ended, Running},
    fleet::{metrics_socket, public_socket, replication_socket},
    http::Http,
    process::free_port,
    prometheus::Page,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");

/// Metrics of what is not to happen, or only to clients who ask for too much.
const RARE: &[&str] = &[
    "chatd_bus_dropped_total",
    "chatd_carry_unreached_total",
    "chatd_http_rate_limited_total",
    "chatd_task_panics_total",
];
/// Metrics that need other servers.
const NOT_ALONE: &[&str] = &[
    "chatd_inbound_pdus_total",
    "synapse_federation_client_sent_",
    "synapse_http_matrixfederationclient_",
];
/// Metrics that need other instances.
const NOT_IN_A_MONOLITH: &[&str] = &[
    "chatd_bus_",
    "chatd_call_seconds",
    "chatd_carry_seconds",
    "chatd_carry_unreached_total",
    "chatd_instances_alive",
    "chatd_notices_connected",
    "synapse_outgoing_replication_requests_total",
    "synapse_pending_outgoing_replication_requests",
    "synapse_replication_tcp_",
];

/// A monolith that shows itself in every way.
struct Watched {
    server: Running,
    client: Http,
    metrics: Http,
    folder: TempDir,
    #[expect(dead_code, reason = "it goes with the server")]
    database: Database,
}

impl Watched {
    async fn start() -> Self {
        let binary = Path::new(BINARY);
        let database = Database::create(binary).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (client, metrics) = (free_port().unwrap(), free_port().unwrap());
        let local = ["127.0.0.1"];
        let once = json!({"per_second": 0.001, "burst_count": 1});
        let config = json!({
            "server_name": "test.local",
            "database": database.config(),
            "enable_registration": true,
            "enable_registration_without_verification": true,
            "bcrypt_rounds": 4,
            "rc_reports": once,
            "rc_login": {"address": once},
            "listeners": [
                {"type": "http", "port": client, "bind_addresses": local,
                 "resources": [{"names": ["client"]}]},
                {"type": "metrics", "port": metrics, "bind_addresses": local},
                {"type": "http", "path": "client.sock", "resources": [{"names": ["client"]}]},
                {"type": "http", "path": "replication.sock",
                 "resources": [{"names": ["replication"]}]},
            ],
        });
        fs::write(folder.path().join("hs.yaml"), config.to_string()).unwrap();
        let mut server = Command::new(binary, folder.path(), "run -c hs.yaml").start("chatd.log");
        server.until_it_says("listening on replication.sock").await;
        let http = |port: u16| Http::new(format!("http://127.0.0.1:{port}"));
        Self { server, client: http(client), metrics: http(metrics), folder, database }
    }

    async fn page(&self) -> Page {
        page(&self.metrics).await
    }

    /// What `curl --unix-socket` says.
    fn curl(&self, socket: &str, path: &str) -> String {
        let line = format!("-sS --max-time 20 --unix-socket {socket} http://x{path}");
        Command::new("curl", self.folder.path(), &line).end().ok().to_owned()
    }
}

async fn page(listener: &Http) -> Page {
    let answer = listener.request("GET", "/_synapse/metrics").await;
    assert_eq!(answer.status, 200, "{answer}");
    Page::parse(&answer.text).unwrap()
}

/// Waits until `check` finds something; panics after a minute.
async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(60), found).await;
    found.unwrap_or_else(|_| panic!("it did not happen: {what}"))
}

/// Name and labels of each metric in the documentation.
fn documented() -> BTreeMap<String, Vec<String>> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"));
    let page = page.unwrap();
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let (name, labels) = (cells.next()?.trim_end_matches('`'), cells.next()?);
        let known = ["chatd_", "synapse_", "process_"].iter().any(|start| name.starts_with(start));
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        known.then(|| (name.to_owned(), labels))
    });
    rows.collect()
}

/// Documented metrics that are on none of these pages, apart from rare ones.
fn not_there(pages: &[Page]) -> Vec<String> {
    let is_there = |name: &str| {
        pages.iter().any(|page| page.families.get(name).is_some_and(|one| !one.samples.is_empty()))
    };
    let of_others = |name: &str| NOT_ALONE.iter().any(|start| name.starts_with(start));
    let all = documented().into_keys();
    let all = all.filter(|name| !RARE.contains(&name.as_str()) && !of_others(name));
    all.filter(|name| !is_there(name)).collect()
}

/// Asserts that nothing is on the page that is not documented, label by label.
fn is_documented(page: &Page) {
    let documented = documented();
    for (name, family) in &page.families {
        let labels = documented.get(name).unwrap_or_else(|| panic!("{name} is not documented"));
        assert!(!family.help.is_empty(), "{name} has no help");
        for sample in &family.samples {
            let found: Vec<_> = sample.labels.keys().filter(|label| *label != "le").collect();
            let mut labels: Vec<_> = labels.iter().collect();
            labels.sort();
            assert_eq!(found, labels, "{sample:?}");
        }
    }
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_is_there() {
    let watched = Watched::start().await;
    let alice = User::register(&watched.client, "alice").await;
    let room = alice.create_room().await;
    alice.send(&room, "hello").await;
    // Until there is nothing new, and one of them waits.
    let mut token = alice.sync().await.next_batch();
    while watched.page().await.sum("synapse_notifier_listeners", &[]).is_none() {
        token = alice.sync().since(&token).timeout_ms(20).await.next_batch();
    }
    for _ in 0..2 {
        let login = json!({"type": "m.login.password", "password": "wrong",
            "identifier": {"type": "m.id.user", "user": "alice"}});
        watched.client.request("POST", "/login").json(&login).await;
    }
    watched.client.request("GET", "/_matrix/nothing").unchecked().await;

    let page = watched.page().await;
    is_documented(&page);
    assert!(page.sum("chatd_http_rate_limited_total", &[]) > Some(0.0));
    let not_there = not_there(std::slice::from_ref(&page));
    let of_fleets = |name: &&String| NOT_IN_A_MONOLITH.iter().any(|start| name.starts_with(start));
    assert!(not_there.iter().all(|name| of_fleets(&name)), "{not_there:?}");
    let sends = [("servlet", "RoomSendEventRestServlet"), ("code", "200"), ("method", "PUT")];
    assert_eq!(page.sum("synapse_http_server_response_time_seconds_count", &sends), Some(1.0));
    assert_eq!(page.sum("chatd_db_connected", &[]), Some(1.0));
    let events = page.sum("synapse_storage_events_persisted_events_total", &[]).unwrap();
    let rows = page.sum("chatd_lane_batch_rows_sum", &[("lane", "events")]);
    assert!(events > 6.0 && rows == Some(events), "{events} {rows:?}");
    let position = page.sum("chatd_stream_position", &[("stream", "events"), ("writer", "main")]);
    assert_eq!(position, page.sum("synapse_event_persisted_position", &[]));
    assert_eq!(page.sum("chatd_stream_lag", &[("writer", "main")]), Some(0.0));
    assert_eq!(page.sum("chatd_shards_owned", &[]), Some(64.0));
    assert!(page.sum("process_resident_memory_bytes", &[]) > Some(1e6));
}

#[tokio::test]
async fn health_is_told_everywhere_and_details_to_operators_only() {
    let watched = Watched::start().await;
    for path in ["/health", "/health?detail"] {
        assert_eq!(watched.curl("client.sock", path), "OK");
        assert_eq!(watched.client.request("GET", path).await.text, "OK");
        assert_eq!(watched.metrics.request("GET", path).await.text, "OK");
    }
    assert_eq!(watched.curl("replication.sock", "/health"), "OK");
    let detail: Value =
        serde_json::from_str(&watched.curl("replication.sock", "/health?detail")).unwrap();
    assert_eq!(
        (&detail["instance"], &detail["server_name"]),
        (&json!("main"), &json!("test.local"))
    );
    assert_eq!(detail["bus"], json!({"state": "local"}));
    assert_eq!(detail["database"]["is_connected"], true);
    assert_eq!(detail["shards"], json!({"owned": 64, "of": 64}));
    let lanes = detail["lanes"].as_array().unwrap();
    assert!(lanes.iter().any(|lane| lane["lane"] == "events"), "{detail:#}");
    let pid = detail["process"]["pid"].as_u64().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(watched.server.sigterm().await, Some(0));
}

/// The sockets of one instance of a fleet.
struct Instance {
    public: Http,
    metrics: Http,
    replication: Http,
}

impl Instance {
    fn of(server: &Server, name: &str) -> Self {
        let at =
            |socket: fn(&Path, &str) -> PathBuf| Http::on_socket(&socket(server.folder(), name));
        Self {
            public: at(public_socket),
            metrics: at(metrics_socket),
            replication: at(replication_socket),
        }
    }

    async fn detail(&self) -> Value {
        self.replication.request("GET", "/health?detail").await.ok().clone()
    }
}

const EVERYBODY: &[&str] =
    &["main", "persister1", "persister2", "stream1", "stream2", "sync1", "sync2"];

#[tokio::test]
async fn a_fleet_counts_what_goes_between_its_instances() {
    let server = Server::fleet(BINARY, Settings::new(), Spread::Random).await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    alice.invite(&room, &bob).await.ok();
    bob.join(&room).await.ok();
    for _ in 0..10 {
        let event = alice.send(&room, "hello").await;
        bob.read(&room, &event).await.ok();
        bob.sync().await;
    }
    let mut pages = Vec::new();
    for name in EVERYBODY {
        let page = page(&Instance::of(&server, name).metrics).await;
        is_documented(&page);
        assert_eq!(page.sum("chatd_bus_connected", &[]), Some(1.0), "{name}");
        assert_eq!(page.sum("chatd_instances_alive", &[]), Some(7.0), "{name}");
        pages.push(page);
    }
    assert_eq!(not_there(&pages), ["synapse_notifier_listeners"]);
    let sum = |name: &str| pages.iter().filter_map(|page| page.sum(name, &[])).sum::<f64>();
    assert_eq!(sum("chatd_shards_owned"), 64.0);
    assert_eq!(sum("synapse_outgoing_replication_requests_total"), sum("chatd_carried_in_total"));
    assert_eq!(sum("synapse_pending_outgoing_replication_requests"), 0.0);
}

#[tokio::test]
async fn rows_that_nobody_wants_are_not_read_and_not_missed() {
    let server = Server::fleet(BINARY, Settings::new(), Spread::Random).await;
    let (sync1, sync2) = (Instance::of(&server, "sync1"), Instance::of(&server, "sync2"));
    let bob = server.user("bob").await;
    let alice = server.user("alice").await.at(&sync1.public);
    let room = alice.create_room().member(&bob).await;
    let since = bob.at(&sync1.public).sync().await.next_batch();
    let mut sent = Vec::new();
    for number in 0..10 {
        sent.push(alice.send(&room, &format!("m{number}")).await);
    }
    until("frames pass where nobody is", async || {
        let passed = page(&sync2.metrics).await;
        let passed = passed.sum("chatd_stream_passes_total", &[("stream", "events")]);
        (passed > Some(0.0)).then_some(())
    })
    .await;
    let synced = bob.at(&sync2.public).sync().since(&since).await;
    assert_eq!(synced.timeline_ids(&room), sent);
    // From now on somebody wants them.
    let live = alice.send(&room, "live").await;
    let synced = bob.at(&sync2.public).sync().since(&synced.next_batch()).await;
    assert_eq!(synced.timeline_ids(&room), [live]);
}

/// What a cache that instances share could save at most: an instance asks once for what others know.
#[tokio::test]
async fn a_worker_that_has_not_seen_a_user_asks_little_and_once() {
    let server = Server::fleet(BINARY, Settings::new(), Spread::Random).await;
    let (sync1, sync2) = (Instance::of(&server, "sync1"), Instance::of(&server, "sync2"));
    let quiet = json!({"presence": {"types": []}});
    let mut first = Vec::new();
    for (name, rooms) in [("alice", 1), ("bob", 30)] {
        let user = server.user(name).await;
        for number in 0..rooms {
            let room = user.create_room().await;
            user.send(&room, &format!("text {number}")).await;
        }
        let mut since = user.at(&sync1.public).sync().filter(&quiet).await.next_batch();
        for number in 0..3 {
            let synced = user.at(&sync2.public).sync().since(&since).filter(&quiet).await;
            since = synced.next_batch();
            match number {
                0 => first.push(synced.cost()),
                1 => {}
                _ => assert_eq!(synced.cost(), Cost::ZERO, "{name}"),
            }
        }
    }
    assert_eq!(first[0], first[1], "the number of rooms makes no difference");
    assert_eq!(first[0], Cost { statements: 4, round_trips: 4 });
}

#[tokio::test]
async fn redis_that_is_lost_is_seen_and_so_is_its_return() {
    let mut server = Server::fleet(BINARY, Settings::new(), Spread::Random).await;
    let sync1 = Instance::of(&server, "sync1");
    let bus_is = async |state: &str| {
        let (detail, page) = (sync1.detail().await, page(&sync1.metrics).await);
        let connected = if state == "connected" { 1.0 } else { 0.0 };
        let is_told = page.sum("chatd_bus_connected", &[]) == Some(connected);
        (detail["bus"]["state"] == state && is_told).then_some(page)
    };
    until("redis is there", async || bus_is("connected").await).await;
    server.members().redis().kill9();
    until("redis is lost", async || bus_is("polling").await).await;
    assert_eq!(sync1.public.request("GET", "/health").await.text, "OK");
    server.members().redis().restart().await;
    let page = until("redis is back", async || bus_is("connected").await).await;
    assert!(page.sum("chatd_bus_reconnects_total", &[]) >= Some(1.0));
}

#[tokio::test]
async fn a_carried_request_has_one_id_in_the_logs_of_both_instances() {
    let folder = tempfile::tempdir().unwrap();
    let log_config = folder.path().join("log.yaml");
    let text = "version: 1\nformatters: {plain: {format: '%(request)s %(message)s'}}\n\
                handlers: {all: {class: logging.StreamHandler, formatter: plain}}\n\
                root: {level: INFO, handlers: [all]}\n\
                loggers: {synapse.access: {level: DEBUG}}\n";
    fs::write(&log_config, text).unwrap();
    let settings = Settings::new().with("worker_log_config", log_config.to_string_lossy());
    let mut server = Server::fleet(BINARY, settings, Spread::Random).await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let sync1 = Instance::of(&server, "sync1");
    alice.at(&sync1.public).send(&room, "hello").await;

    // The answer is logged when it has gone out.
    let id_in = |log: &str| {
        let line = log.lines().find(|line| line.contains("/send/m.room.message"))?;
        line.split(' ').next().map(str::to_owned)
    };
    let here =
        until("the request is logged", async || id_in(&server.members().instance("sync1").log()))
            .await;
    assert!(here.starts_with("sync1-PUT-"), "{here}");
    let there = until("it is logged where it was carried to", async || {
        let logs = ["persister1", "persister2"];
        logs.iter().find_map(|name| id_in(&server.members().instance(name).log()))
    })
    .await;
    assert_eq!(there, here);
}

/// What `chatd top` says in the fleet's folder.
fn top(server: &Server, arguments: &str) -> Ended {
    let line = format!("top --once -c homeserver.yaml {arguments}");
    Command::new(BINARY, server.folder(), &line).end()
}

#[tokio::test]
async fn top_shows_every_instance_and_who_is_away() {
    let mut server = Server::fleet(BINARY, Settings::new(), Spread::Random).await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    alice.send(&room, "hello").await;
    let look =
        |server: &Server| -> Value { serde_json::from_str(top(server, "--json").ok()).unwrap() };
    let seen = look(&server);
    let names: Vec<_> =
        seen["instances"].as_array().unwrap().iter().map(|one| one["name"].as_str()).collect();
    assert_eq!(names, EVERYBODY.iter().map(|name| Some(*name)).collect::<Vec<_>>());
    for instance in seen["instances"].as_array().unwrap() {
        assert_eq!(instance["reachable"], true, "{instance:#}");
        assert_eq!(instance["detail"]["fleet"].as_array().unwrap().len(), 7, "{instance:#}");
    }
    let of_events =
        seen["streams"].as_array().unwrap().iter().filter(|one| one["stream"] == "events");
    let furthest = of_events.max_by_key(|one| one["position"].as_i64()).unwrap();
    assert!(furthest["position"].as_i64() > Some(0), "{furthest}");
    assert!(furthest["writer"].as_str().unwrap().starts_with("persister"), "{furthest}");
    until("everybody has seen everything", async || {
        let seen = look(&server);
        let streams = seen["streams"].as_array().unwrap();
        streams.iter().all(|one| one["behind"] == json!({})).then_some(())
    })
    .await;

    // An instance that this file does not name is heard of from the others.
    let file = fs::read_to_string(server.folder().join("homeserver.yaml")).unwrap();
    let mut config: Value = serde_json::from_str(&file).unwrap();
    config["instance_map"].as_object_mut().unwrap().remove("sync1");
    fs::write(server.folder().join("partial.yaml"), config.to_string()).unwrap();
    let line = "top --once --json -c partial.yaml";
    let seen = Command::new(BINARY, server.folder(), line).end();
    let seen: Value = serde_json::from_str(seen.ok()).unwrap();
    let is_sync1 = |one: &&Value| one["name"] == "sync1" && one["reachable"] == true;
    assert!(seen["instances"].as_array().unwrap().iter().any(|one| is_sync1(&one)), "{seen:#}");

    server.members().instance("sync2").kill9().unwrap();
    let text = top(&server, "").ok().to_owned();
    assert!(text.starts_with("test.local   6 of 7 instances answer\n"), "{text}");
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(line("sync2").contains("unreachable: "), "{text}");
    assert!(
        line("sync1").contains("generic_worker") && line("sync1").contains("connected"),
        "{text}"
    );
    assert!(line("events").contains("persister"), "{text}");

    server.kill9().unwrap();
    top(&server, "").failed(69, &["no instance answers"]);
}

#[tokio::test]
async fn top_is_live_at_a_terminal() {
    let mut watched = Watched::start().await;
    let folder = watched.folder.path();
    let mut terminal = Command::new(BINARY, folder, "top -c hs.yaml --interval 0.2").on_terminal();
    terminal.shows("test.local   1 of 1 instances answer");
    terminal.shows("main");
    terminal.shows("local");
    // It is drawn again.
    terminal.shows("test.local   1 of 1 instances answer");
    terminal.types("q");
    assert_eq!(terminal.end().0, Some(0));
    Command::new(BINARY, folder, "top -c hs.yaml").end().failed(2, &["--once"]);
    watched.server.until_it_says("listening").await;
}
