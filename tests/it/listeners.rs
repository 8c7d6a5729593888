//! Listeners of every kind, spoken to byte by byte: unix sockets, TLS, proxies, metrics.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use chatd_kit::{Command, Database, User, http::Http};
use rcgen::CertifiedKey;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

/// The ports of the server under test.
struct Ports {
    plain: u16,
    tls: u16,
    metrics: u16,
    openid: u16,
}

impl Ports {
    /// Some that nobody uses.
    fn free() -> Self {
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [listen(), listen(), listen(), listen()];
        let [plain, tls, metrics, openid] =
            sockets.map(|socket| socket.local_addr().unwrap().port());
        Self { plain, tls, metrics, openid }
    }

    fn config(&self, database: &Database) -> String {
        let client = json!([{"names": ["client"], "compress": true}]);
        let local = ["127.0.0.1"];
        let rate = json!({"per_second": 0.001, "burst_count": 1});
        let many = json!({"per_second": 1000, "burst_count": 1000});
        let config = json!({
            "server_name": "test.local",
            "database": database.config(),
            "enable_registration": true,
            "enable_registration_without_verification": true,
            "bcrypt_rounds": 4,
            "tls_certificate_path": "server.crt",
            "tls_private_key_path": "server.key",
            "rc_login": {"address": rate, "account": many, "failed_attempts": many},
            "listeners": [
                {"type": "http", "port": self.plain, "bind_addresses": local,
                 "x_forwarded": true, "resources": client},
                {"type": "http", "port": self.tls, "bind_addresses": local, "tls": true,
                 "resources": [{"names": ["client"]}]},
                {"type": "metrics", "port": self.metrics, "bind_addresses": local},
                {"type": "http", "port": self.openid, "bind_addresses": local,
                 "resources": [{"names": ["openid"]}]},
                {"type": "http", "path": "chatd.sock", "mode": "0o660",
                 "resources": [{"names": ["client"]}]},
            ],
        });
        config.to_string()
    }
}

/// Sends a request, and returns all that is answered. `headers` are whole lines.
async fn ask_with(
    mut to: impl AsyncRead + AsyncWrite + Unpin,
    line: &str,
    headers: &[&str],
    body: &str,
) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nhost: test.local\r\nconnection: close\r\n");
    for header in headers {
        text += &format!("{header}\r\n");
    }
    text += &format!("content-length: {}\r\n\r\n{body}", body.len());
    to.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    to.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn ask(to: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> String {
    ask_with(to, line, &[], "").await
}

async fn tcp(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

async fn tls_listener(port: u16, key: &CertifiedKey<rcgen::KeyPair>) {
    let mut roots = RootCertStore::empty();
    roots.add(key.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("test.local").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp(port).await).await.unwrap();
    let answer = ask(stream, "GET /_matrix/client/versions").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"versions\""), "{answer}");
}

async fn unix_socket(path: &Path) {
    let meta = fs::metadata(path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    for request in ["GET /health", "GET /_matrix/client/versions"] {
        let answer = ask(UnixStream::connect(path).await.unwrap(), request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

async fn metrics_page(ports: &Ports) {
    for request in ["GET /metrics", "GET /_synapse/metrics"] {
        let page = ask(tcp(ports.metrics).await, request).await;
        assert!(page.contains("synapse_http_server_requests_received_total"), "{page}");
    }
    let client = ask(tcp(ports.metrics).await, "GET /_matrix/client/versions").await;
    assert!(client.starts_with("HTTP/1.1 404"), "a metrics listener serves nothing else: {client}");
    let page = ask(tcp(ports.plain).await, "GET /metrics").await;
    assert!(page.starts_with("HTTP/1.1 404"), "clients do not read metrics: {page}");
}

/// Whoever has been given a token learns whose it is, and nothing else.
async fn openid(port: u16) {
    let info = ask(tcp(port).await, "GET /_matrix/federation/v1/openid/userinfo").await;
    assert!(info.starts_with("HTTP/1.1 401") && info.contains("M_MISSING_TOKEN"), "{info}");
    for other in ["federation/v1/version", "client/versions", "key/v2/server"] {
        let other = ask(tcp(port).await, &format!("GET /_matrix/{other}")).await;
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
    }
    let health = ask(tcp(port).await, "GET /health").await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
}

/// The proxy's word counts: each address has a limit of its own.
async fn forwarded_addresses(port: u16) {
    let login = async |address: &str| {
        let body = json!({
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": "nobody"},
            "password": "wrong",
        });
        let line = "POST /_matrix/client/v3/login";
        let forwarded = format!("x-forwarded-for: {address}");
        let answer = ask_with(tcp(port).await, line, &[&forwarded], &body.to_string()).await;
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert!(login("203.0.113.1").await.contains(" 403 "));
    assert!(login("203.0.113.1").await.contains(" 429 "));
    assert!(login("203.0.113.2").await.contains(" 403 "), "another client is not concerned");
}

async fn compression(ports: &Ports) {
    let http = Http::new(format!("http://127.0.0.1:{}", ports.plain));
    let alice = User::register(&http, "alice").await;
    let token = format!("authorization: Bearer {}", alice.token);
    let line = "GET /_matrix/client/v3/pushrules/";
    let zipped =
        ask_with(tcp(ports.plain).await, line, &[&token, "accept-encoding: gzip"], "").await;
    let zipped = zipped.to_lowercase();
    let plain = ask_with(tcp(ports.plain).await, line, &[&token], "").await.to_lowercase();
    assert!(!plain.contains("content-encoding"), "{plain}");
    assert!(zipped.contains("content-encoding: gzip"), "{zipped}");
}

#[tokio::test]
async fn every_kind_of_listener_serves_what_it_is_for() {
    let binary = Path::new(env!("CARGO_BIN_EXE_chatd"));
    let database = Database::create(binary).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let key = rcgen::generate_simple_self_signed(["test.local".to_owned()]).unwrap();
    fs::write(here.join("server.crt"), key.cert.pem()).unwrap();
    fs::write(here.join("server.key"), key.signing_key.serialize_pem()).unwrap();
    let ports = Ports::free();
    fs::write(here.join("hs.yaml"), ports.config(&database)).unwrap();

    let mut server = Command::new(binary, here, "run -c hs.yaml").start("chatd.log");
    server.until_it_says("listening on chatd.sock").await;
    tls_listener(ports.tls, &key).await;
    unix_socket(&here.join("chatd.sock")).await;
    metrics_page(&ports).await;
    openid(ports.openid).await;
    forwarded_addresses(ports.plain).await;
    compression(&ports).await;

    assert_eq!(server.sigterm().await, Some(0));
    assert!(!here.join("chatd.sock").exists(), "the socket goes with the server");
}
