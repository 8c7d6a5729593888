//! Instances that lack one of the others: main, Redis, or the plain way to each other.

use std::{fs, path::Path};

use chatd_kit::{
    Command, Database, Fleet, Settings, User, eventually, fleet::replication_socket, http::Http,
    path, process::free_port, redis::Redis,
};
use serde_json::json;

use super::{BINARY, at, fleet, users};

/// Main has no duty that the others need for what they are configured for.
#[tokio::test]
async fn others_go_on_while_main_is_away() {
    let (mut fleet, _database) = fleet(&Settings::new()).await;
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    let room = alice.create_room().member(&bob).await;
    let (here, there) = (at(fleet.folder(), "sync1"), at(fleet.folder(), "sync2"));
    let (alice, bob) = (alice.at(&here), bob.at(&there));
    let mut feed = bob.feed().await;
    fleet.instance("main").kill9().unwrap();

    let event = alice.send(&room, "without main").await;
    feed.until_event(&room, &event).await;
    bob.read(&room, &event).await.ok();
    alice.typing(&room, true).await.ok();
    alice.set_account_data("m.test", &json!({"without": "main"})).await.ok();
    alice.to_device("m.test", "1", &bob, &json!({})).await.ok();
    alice.set_state(&room, "m.room.topic", "", &json!({"topic": "alone"})).await.ok();
    let name = path("/profile/{}/displayname", &[&alice.id]);
    alice.put(name, &json!({"displayname": "Alice"})).await.ok();
    assert!(!bob.messages(&room, "b").await.ok()["chunk"].as_array().unwrap().is_empty());
    let carol = User::register(&there, "carol").await;
    let own = carol.create_room().await;
    carol.at(&here).send(&own, "new, and at home").await;

    fleet.launch().await.unwrap();
    let back = alice.at(&at(fleet.folder(), "main"));
    assert_eq!(back.get_state(&room, "m.room.topic", "").await.ok()["topic"], "alone");
}

#[tokio::test]
async fn a_redis_that_is_not_there_yet_is_waited_for() {
    let folder = tempfile::Builder::new().prefix("chatd-late-").tempdir().unwrap();
    let socket = folder.path().join("late.sock");
    let settings = Settings::new().with("redis", json!({"enabled": true, "path": socket}));
    let (mut fleet, _database) = fleet(&settings).await;
    let state = async |fleet: &Fleet, name: &str| {
        fleet.detail(name).await.unwrap()["bus"]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state(&fleet, "sync1").await, "polling");
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    let room = alice.create_room().member(&bob).await;
    let mut feed = bob.at(&at(fleet.folder(), "sync2")).feed().await;
    let event = alice.at(&at(fleet.folder(), "sync1")).send(&room, "without Redis").await;
    feed.until_event(&room, &event).await;

    std::os::unix::fs::symlink(fleet.redis().socket(), &socket).unwrap();
    for name in ["main", "sync1", "persister1"] {
        eventually("Redis is found", || async {
            let now = state(&fleet, name).await;
            if now == "connected" { Ok(()) } else { Err(now) }
        })
        .await;
    }
    let event = alice.at(&at(fleet.folder(), "sync1")).send(&room, "with Redis").await;
    feed.until_event(&room, &event).await;
    assert!(replication_socket(fleet.folder(), "main").exists());
}

/// Main's replication listener speaks TLS, with a certificate of an authority that the system knows.
#[tokio::test]
async fn instances_talk_over_tls() {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let folder = tempfile::Builder::new().prefix("chatd-tls-").tempdir().unwrap();
    let redis = Redis::start(folder.path()).await;
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("server.crt"), key.cert.pem()).unwrap();
    fs::write(folder.path().join("server.key"), key.signing_key.serialize_pem()).unwrap();
    let (client, replication, worker) =
        (free_port().unwrap(), free_port().unwrap(), free_port().unwrap());
    let local = ["127.0.0.1"];
    let shared = json!({
        "server_name": "test.local",
        "database": database.config(),
        "enable_registration": true,
        "enable_registration_without_verification": true,
        "bcrypt_rounds": 4,
        "worker_replication_secret": "a secret",
        "redis": {"enabled": true, "path": redis.socket()},
        "tls_certificate_path": "server.crt",
        "tls_private_key_path": "server.key",
        "instance_map": {"main": {"host": "localhost", "port": replication, "tls": true}},
        "listeners": [
            {"type": "http", "port": client, "bind_addresses": local,
             "resources": [{"names": ["client"]}]},
            {"type": "http", "port": replication, "bind_addresses": local, "tls": true,
             "resources": [{"names": ["replication"]}]},
        ],
    });
    let own = json!({
        "worker_app": "generic_worker",
        "worker_name": "worker1",
        "worker_listeners": [{"type": "http", "port": worker, "bind_addresses": local,
                              "resources": [{"names": ["client"]}]}],
    });
    fs::write(folder.path().join("hs.yaml"), shared.to_string()).unwrap();
    fs::write(folder.path().join("worker.yaml"), own.to_string()).unwrap();
    let start = |line: &str, log: &str| {
        let command = Command::new(BINARY, folder.path(), line);
        command.variable("SSL_CERT_FILE", "server.crt").start(log)
    };
    let mut main = start("run -c hs.yaml", "main.log");
    main.until_it_says(&format!("listening on 127.0.0.1:{replication}")).await;
    let mut other = start("run -c hs.yaml -c worker.yaml", "worker.log");
    other.until_it_says(&format!("listening on 127.0.0.1:{worker}")).await;

    // Rooms are main's: what comes to the worker is carried there.
    let http = |port: u16| Http::new(format!("http://127.0.0.1:{port}"));
    let alice = User::register(&http(worker), "alice").await;
    let room = alice.create_room().await;
    let event = alice.send(&room, "over TLS").await;
    assert_eq!(alice.at(&http(client)).event(&room, &event).await.string("event_id"), event);
}
