//! Every way to name a Redis: address and password, TLS, sentinels, a cluster. (A unix socket is what
//! the fleets of the other tests have.)

use std::{fs, path::Path, time::Duration};

use chatd_kit::{Command, Server, Settings, Spread, command::Running, process::free_port};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");

/// A Redis on a port of the loopback address, with further settings.
async fn redis(folder: &Path, port: u16, line: &str) -> Running {
    let line = format!("--bind 127.0.0.1 --dir {} {line} --appendonly no --save", folder.display());
    let running = Command::new("redis-server", folder, &line).argument("").start("redis.log");
    listens(port).await;
    running
}

async fn listens(port: u16) {
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A fleet over the Redis of these settings hears what its instances write from there.
async fn rows_go_over(redis: Value) {
    let settings = Settings::new().with("redis", redis);
    let mut server = Server::fleet(BINARY, settings, Spread::Random).await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().member(&bob).await;
    let mut feed = bob.feed().await;
    let event = alice.send(&room, "over Redis").await;
    feed.until_event(&room, &event).await;
    for name in ["main", "sync1", "persister1"] {
        let heard = async {
            loop {
                let detail = server.members().detail(name).await.unwrap();
                let bus = &detail["bus"];
                if bus["state"] == "connected" && bus["frames_in"].as_u64() > Some(0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), heard).await;
        assert!(in_time.is_ok(), "{name} hears nothing: {}", server.log());
    }
}

#[tokio::test]
async fn a_redis_with_a_password_and_a_database() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port().unwrap());
    let line = format!("--port {port} --requirepass sesame");
    let _redis = redis(folder.path(), port, &line).await;
    rows_go_over(json!({
        "enabled": true, "host": "127.0.0.1", "port": port, "password": "sesame", "dbid": 3,
    }))
    .await;
}

#[tokio::test]
async fn a_redis_with_tls() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port().unwrap());
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, private) = (folder.path().join("r.crt"), folder.path().join("r.key"));
    fs::write(&certificate, key.cert.pem()).unwrap();
    fs::write(&private, key.signing_key.serialize_pem()).unwrap();
    let line = format!(
        "--port 0 --tls-port {port} --tls-cert-file {} --tls-key-file {} --tls-ca-cert-file {} \
         --tls-auth-clients no",
        certificate.display(),
        private.display(),
        certificate.display()
    );
    let _redis = redis(folder.path(), port, &line).await;
    rows_go_over(json!({
        "enabled": true, "host": "localhost", "port": port, "use_tls": true, "ca_file": certificate,
    }))
    .await;
}

#[tokio::test]
async fn a_redis_that_sentinels_name() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port().unwrap());
    let _redis = redis(folder.path(), port, &format!("--port {port}")).await;
    let watch = free_port().unwrap();
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "port {watch}\nbind 127.0.0.1\ndir {}\nsentinel monitor chatd 127.0.0.1 {port} 1\n",
        folder.path().display()
    );
    fs::write(&file, text).unwrap();
    let line = format!("{} --sentinel", file.display());
    let _sentinel = Command::new("redis-server", folder.path(), &line).start("sentinel.log");
    listens(watch).await;
    let url = format!("redis-sentinel://127.0.0.1:{watch}?sentinelServiceName=chatd");
    rows_go_over(json!({"enabled": true, "url": url})).await;
}

#[tokio::test]
async fn a_redis_that_is_a_cluster() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port().unwrap());
    // Nodes talk to each other on another port, which may not be above the last.
    let bus = free_port().unwrap();
    let line = format!(
        "--port {port} --cluster-enabled yes --cluster-port {bus} --cluster-announce-ip 127.0.0.1"
    );
    let _redis = redis(folder.path(), port, &line).await;
    let give = format!("-p {port} cluster addslotsrange 0 16383");
    Command::new("redis-cli", folder.path(), &give).end().ok();
    let ask = || Command::new("redis-cli", folder.path(), &format!("-p {port} cluster info")).end();
    while !ask().ok().contains("cluster_state:ok") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = format!("redis-cluster://127.0.0.1:{port}");
    rows_go_over(json!({"enabled": true, "url": url})).await;
}
