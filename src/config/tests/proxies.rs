//! Generated configurations of reverse proxies, tried with nginx and HAProxy themselves: servers
//! that answer with their name stand in for the instances.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Certificate, Fleet, Overrides, ProxyKind, ProxyListen, ProxyOptions, ProxyRoute, StreamName,
    proxy_config,
};

const START_LIMIT: Duration = Duration::from_secs(20);

/// Workers with a listener for the proxy, and their `worker_app`.
const WORKERS: &[(&str, &str)] = &[
    ("client_sync1", "generic_worker"),
    ("client_sync2", "generic_worker"),
    ("initial_sync1", "generic_worker"),
    ("rooms1", "generic_worker"),
    ("rooms2", "generic_worker"),
    ("fed1", "federation_reader"),
    ("fed2", "federation_reader"),
    ("typist1", "generic_worker"),
    ("media1", "media_repository"),
    ("generic1", "generic_worker"),
];

/// Which instance must take a request; several if any of them may.
const EXPECTED: &[(&str, &[&str])] = &[
    ("/_matrix/client/v3/sync?since=s1", &["client_sync1", "client_sync2"]),
    ("/_matrix/client/r0/sync?since=s1", &["client_sync1", "client_sync2"]),
    ("/chat/client/v2_alpha/sync?since=s1", &["client_sync1", "client_sync2"]),
    ("/_matrix/client/v3/sync?timeout=0", &["initial_sync1"]),
    ("/_matrix/client/api/v1/initialSync", &["initial_sync1"]),
    ("/_matrix/client/v3/rooms/!a:b/initialSync", &["initial_sync1"]),
    ("/_matrix/client/v3/events?from=s1", &["client_sync1", "client_sync2"]),
    ("/_matrix/client/v3/rooms/!a:b/typing/@u:b", &["typist1"]),
    ("/chat/client/api/v1/rooms/%21a%3Ab/typing/%40u%3Ab", &["typist1"]),
    ("/_matrix/client/v3/sendToDevice/m.x/1", &["typist1"]),
    ("/_matrix/client/v3/user/@u:b/account_data/m.x", &["main"]),
    ("/_matrix/client/v3/user/@u:b/rooms/!a:b/tags/x", &["main"]),
    ("/_matrix/client/v3/rooms/!a:b/receipt/m.read/$e", &["main"]),
    ("/_matrix/client/v3/keys/upload", &["main"]),
    ("/_matrix/client/v3/keys/upload/other", &["generic1"]),
    ("/_matrix/client/unstable/org.example.a/b", &["main"]),
    ("/_matrix/client/unstable/org.exampleZa/b", &["generic1"]),
    ("/_matrix/client/v3/join/%21a:b?server_name=x", &["rooms1", "rooms2"]),
    ("/_matrix/client/v3/rooms/!a:b/send/m.room.message/1", &["rooms1", "rooms2"]),
    ("/_matrix/client/v3/rooms/!a:b/messages?limit=1", &["rooms1", "rooms2"]),
    ("/_matrix/client/v1/rooms/!a:b/threads", &["rooms1", "rooms2"]),
    ("/_matrix/federation/v1/send/1", &["fed1", "fed2"]),
    ("/_matrix/federation/v2/send_join/!a:b/$e", &["fed1", "fed2"]),
    ("/_matrix/key/v2/query", &["fed1", "fed2"]),
    ("/_matrix/media/v3/upload", &["media1"]),
    ("/_matrix/client/v1/media/download/b/x", &["media1"]),
    ("/_matrix/client/versions", &["generic1"]),
    ("/_matrix/client/v3/login", &["generic1"]),
    ("/.well-known/matrix/client", &["generic1"]),
    ("/_synapse/client/pick_idp", &["generic1"]),
    ("/_synapse/admin/v1/users", &[]),
    ("/_chat/admin/v1/users", &[]),
    ("//_synapse/admin/v1/users", &[]),
    ("/_synapse/admin/v1/users/..%2f..%2f..%2f..%2f_matrix%2fclient%2fversions", &[]),
    ("/_synapse/replication/x", &[]),
    ("/_synapse/metrics", &[]),
    ("/metrics", &[]),
    ("/", &[]),
];

/// Endpoints whose work is that of a writer, for a part of those that there are.
const ROUTES: &[(&str, StreamName)] = &[
    ("/_matrix/client/v3/rooms/{roomId}/typing/{userId}", StreamName::Typing),
    ("/_matrix/client/api/v1/rooms/{roomId}/typing/{userId}", StreamName::Typing),
    ("/_matrix/client/v3/sendToDevice/{eventType}/{txnId}", StreamName::ToDevice),
    ("/_matrix/client/v3/user/{userId}/account_data/{type}", StreamName::AccountData),
    ("/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}", StreamName::AccountData),
    ("/_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}", StreamName::Receipts),
    ("/_matrix/client/v3/keys/upload", StreamName::DeviceLists),
    ("/_matrix/client/unstable/org.example.a/{b}", StreamName::DeviceLists),
];

fn routes() -> Vec<ProxyRoute> {
    let route = |(pattern, writer): &(&str, StreamName)| ProxyRoute {
        pattern: (*pattern).to_owned(),
        writer: Some(*writer),
    };
    ROUTES.iter().map(route).collect()
}

#[test]
fn nginx_takes_its_file_and_sends_each_request_where_it_belongs() {
    try_out("nginx", ProxyKind::Nginx, |folder, text| {
        let file = folder.join("nginx.conf").display().to_string();
        fs::write(&file, text).unwrap();
        let folder = folder.display();
        let own = format!("daemon off; master_process off; pid {folder}/pid;");
        let arguments = |rest: &[&str]| {
            let all = ["-c", &file, "-e", &format!("{folder}/error.log"), "-g", &own];
            all.iter().chain(rest).map(|one| (*one).to_owned()).collect()
        };
        (arguments(&["-t"]), arguments(&[]))
    });
}

#[test]
fn haproxy_takes_its_file_and_sends_each_request_where_it_belongs() {
    try_out("haproxy", ProxyKind::Haproxy, |folder, text| {
        let file = folder.join("haproxy.cfg").display().to_string();
        fs::write(&file, text).unwrap();
        (vec!["-c".into(), "-f".into(), file.clone()], vec!["-db".into(), "-f".into(), file])
    });
}

#[test]
fn caddy_takes_its_file_and_sends_each_request_where_it_belongs() {
    try_out("caddy", ProxyKind::Caddy, |folder, text| {
        let file = folder.join("Caddyfile").display().to_string();
        // Caddy's own port for orders, which would be the same in every test.
        fs::write(&file, format!("{{\n    admin off\n}}\n{text}")).unwrap();
        let arguments = |command: &str| {
            let all = [command, "--adapter", "caddyfile", "--config", &file];
            all.map(str::to_owned).to_vec()
        };
        (arguments("validate"), arguments("run"))
    });
}

/// Arguments of a proxy that check its file, and that run it.
type Arguments = (Vec<String>, Vec<String>);

fn try_out(program: &str, kind: ProxyKind, write: impl Fn(&Path, &str) -> Arguments) {
    let Some(program) = find(program) else {
        panic!("{program} is not installed; `make test` installs it");
    };
    let folder = tempfile::tempdir().unwrap();
    let (fleet, _stubs) = stubs(folder.path());
    let start = |trust: &[&str]| {
        let port = free_port();
        let address = "127.0.0.1".parse().unwrap();
        let options = ProxyOptions {
            certificate: Certificate::None,
            listen: vec![ProxyListen { address: Some(address), port }],
            trust: trust.iter().map(|network| network.parse().unwrap()).collect(),
            ..ProxyOptions::default()
        };
        let text = proxy_config(&fleet, &routes(), kind, &options).unwrap();
        let (check, run) = write(folder.path(), &text);
        let checked = Command::new(&program).args(check).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        let quiet = !said.contains("[warn") && !said.contains("[WARN");
        assert!(checked.status.success() && quiet, "{said}\n{text}");
        let child = Command::new(&program).args(run).stderr(Stdio::null()).spawn().unwrap();
        wait_for(port);
        (port, Running(child), text)
    };

    let (port, _running, text) = start(&[]);
    for (path, expected) in EXPECTED {
        let got = ask(port, path, "Authorization: Bearer syt_YWxpY2U_abcdefghijklmnopqrst_0123Ab");
        let good = match *expected {
            [] => got.starts_with("404"),
            names => names.iter().any(|name| got == format!("200 {name}")),
        };
        assert!(good, "{path} got {got}, expected {expected:?}\n{text}");
    }
    users_and_rooms_stay_where_they_are(port);
    // What a client says of itself is not believed; what a known proxy says of it is.
    let forged = "X-Forwarded-For: 203.0.113.7";
    assert_eq!(ask(port, WHO_AM_I, forged), "200 127.0.0.1");
    let (port, _running, _) = start(&["127.0.0.0/8", "::1"]);
    assert_eq!(ask(port, WHO_AM_I, forged), "200 203.0.113.7");
}

/// A path for which the stand-ins answer with the first address of the client that they are told.
const WHO_AM_I: &str = "/_matrix/client/v3/who_am_i";

fn users_and_rooms_stay_where_they_are(port: u16) {
    let mut seen = BTreeMap::<String, usize>::new();
    for user in 0..40 {
        let sync = |rest: &str| {
            let token = format!("Authorization: Bearer syt_dXNlcj{user}_{rest}");
            ask(port, "/_matrix/client/v3/sync?since=s1", &token)
        };
        let instance = sync("aaaaaaaaaaaaaaaaaaaa_000000");
        assert_eq!(sync("bbbbbbbbbbbbbbbbbbbb_111111"), instance, "two devices of user {user}");
        let in_query =
            format!("/_matrix/client/v3/sync?since=s1&access_token=syt_dXNlcj{user}_c_2");
        assert_eq!(ask(port, &in_query, ""), instance, "user {user} by the query");
        *seen.entry(instance).or_default() += 1;
        let room = |rest: &str| {
            ask(
                port,
                &format!("/_matrix/client/v3/rooms/!r{user}:b/{rest}"),
                "Authorization: Bearer syt_x_y_z",
            )
        };
        let instance = room("messages");
        assert_eq!(room("send/m.room.message/1"), instance, "room {user}");
        let join = format!("/_matrix/client/v3/join/!r{user}:b");
        assert_eq!(ask(port, &join, "Authorization: Bearer syt_z_y_z"), instance, "room {user}");
    }
    assert_eq!(seen.len(), 2, "users are spread: {seen:?}");
}

/// A fleet whose instances are servers that answer with their name, on sockets in `folder` and,
/// for half of them, on ports.
fn stubs(folder: &Path) -> (Fleet, Vec<u16>) {
    let mut ports = Vec::new();
    let mut listener = |name: &str, by_port: bool| {
        let socket = folder.join(format!("{name}.sock"));
        if by_port {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            ports.push(port);
            serve(name, listener.incoming_owned());
            return format!("port: {port}, bind_addresses: [127.0.0.1]");
        }
        if let Ok(listener) = UnixListener::bind(&socket) {
            serve(name, listener.incoming_owned());
        }
        format!("path: {}", socket.display())
    };
    let mut shared = format!(
        "server_name: example.org\nredis: {{ enabled: true }}\nenable_media_repo: false\n\
         database: {{ name: psycopg2, args: {{ host: /run, user: chatd }} }}\n\
         worker_replication_secret: hush\nlisteners:\n  \
         - {{ {}, type: http, resources: [{{ names: [client, federation] }}] }}\n  \
         - {{ path: /replication/main.sock, type: http, resources: [{{ names: [replication] }}] }}\n\
         stream_writers: {{ typing: typist1, to_device: typist1 }}\ninstance_map:\n  \
         main: {{ path: /replication/main.sock }}\n  \
         typist1: {{ path: /replication/typist1.sock }}\n",
        listener("main", true)
    );
    let mut files = Vec::new();
    for (index, (name, app)) in WORKERS.iter().enumerate() {
        let resources = if *app == "media_repository" { "media" } else { "client, federation" };
        let mut text = format!(
            "worker_app: {app}\nworker_name: {name}\nworker_listeners:\n  \
             - {{ {}, type: http, resources: [{{ names: [{resources}] }}] }}\n",
            listener(name, index % 2 == 0)
        );
        if *name == "typist1" {
            text += "  - { path: /replication/typist1.sock, type: http, resources: [{ names: [replication] }] }\n";
        }
        files.push((format!("{name}.yaml"), text));
    }
    writeln!(shared, "media_instance_running_background_jobs: media1").unwrap();
    let mut all = vec![("homeserver.yaml", shared.as_str())];
    all.extend(files.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    let fleet = Fleet::from_texts(&all, &Overrides::default()).unwrap();
    assert!(!fleet.has_errors(), "{:#?}", fleet.findings);
    (fleet, ports)
}

/// Connections of a listener, one after the other.
trait Incoming {
    fn incoming_owned(self) -> Box<dyn Iterator<Item = Box<dyn Connection>> + Send>;
}
trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

impl Incoming for TcpListener {
    fn incoming_owned(self) -> Box<dyn Iterator<Item = Box<dyn Connection>> + Send> {
        Box::new(std::iter::from_fn(move || Some(Box::new(self.accept().ok()?.0) as _)))
    }
}

impl Incoming for UnixListener {
    fn incoming_owned(self) -> Box<dyn Iterator<Item = Box<dyn Connection>> + Send> {
        Box::new(std::iter::from_fn(move || Some(Box::new(self.accept().ok()?.0) as _)))
    }
}

/// Answers each connection once with `name`, until the test process ends.
fn serve(name: &str, connections: Box<dyn Iterator<Item = Box<dyn Connection>> + Send>) {
    let name = name.to_owned();
    thread::spawn(move || {
        for mut connection in connections {
            let mut request = BufReader::new(&mut connection);
            let mut head = String::new();
            while request.read_line(&mut head).is_ok_and(|read| read > 2) {}
            let client = head.lines().find_map(|line| {
                let (header, value) = line.split_once(": ")?;
                let is_it = header.eq_ignore_ascii_case("x-forwarded-for");
                is_it.then(|| value.split(',').next().unwrap_or_default().trim())
            });
            let body = if head.contains(WHO_AM_I) { client.unwrap_or_default() } else { &name };
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            // A health check may have gone already.
            let _ = connection.write_all(answer.as_bytes());
        }
    });
}

/// The status and the body of the answer to a request with one more header.
fn ask(port: u16, path: &str, header: &str) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: example.org\r\n{header}Connection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    format!("{status} {}", body.trim())
}

/// Ends the proxy with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn find(program: &str) -> Option<String> {
    let folders = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
    let places = folders.split(':').map(|folder| format!("{folder}/{program}"));
    places.into_iter().find(|place| Path::new(place).is_file())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait_for(port: u16) {
    let deadline = Instant::now() + START_LIMIT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the proxy does not listen");
        thread::sleep(Duration::from_millis(10));
    }
}
