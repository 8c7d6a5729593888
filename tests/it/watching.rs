//! A server seen from outside: health, what operators are told, and the metrics page.

use std::{collections::BTreeMap, fs, path::Path};

use chatd_kit::{Command, Database, User, command::Running, http::Http, prometheus::Page};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Metrics that need other instances, or something that goes wrong.
const NOT_IN_A_MONOLITH: &[&str] = &[
    "chatd_bus_",
    "chatd_carry_seconds",
    "chatd_carry_unreached_total",
    "chatd_instances_alive",
    "chatd_notices_connected",
    "chatd_task_panics_total",
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
        let binary = Path::new(env!("CARGO_BIN_EXE_chatd"));
        let database = Database::create(binary).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let free = || {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap().port()
        };
        let (client, metrics) = (free(), free());
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
        let answer = self.metrics.request("GET", "/_synapse/metrics").await;
        assert_eq!(answer.status, 200, "{answer}");
        Page::parse(&answer.text).unwrap()
    }

    /// What `curl --unix-socket` says.
    fn curl(&self, socket: &str, path: &str) -> String {
        let line = format!("-sS --max-time 20 --unix-socket {socket} http://x{path}");
        Command::new("curl", self.folder.path(), &line).end().ok().to_owned()
    }
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
    let is_rare = |name: &str| NOT_IN_A_MONOLITH.iter().any(|start| name.starts_with(start));
    for name in documented().keys().filter(|name| !is_rare(name)) {
        let family = page.families.get(name);
        assert!(family.is_some_and(|family| !family.samples.is_empty()), "{name} is not there");
    }
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
