//! A fleet of real processes over one database and one Redis, behind a real nginx.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    nginx::{Nginx, Site},
    process::{Door, Process, folder},
    redis::Redis,
    settings::Settings,
};

/// How requests find an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// As `chatd proxy-config` says.
    Generated,
    /// Each request goes to any instance.
    Random,
}

/// The instances beside main.
const WORKERS: &[&str] = &["persister1", "persister2", "stream1", "stream2", "sync1", "sync2"];

/// Parts of all rooms.
const SHARDS: u64 = 64;

/// The running processes of a fleet; all are killed when dropped.
#[derive(Debug)]
pub struct Fleet {
    // Dropped in this order: whoever depends on others goes first.
    nginx: Nginx,
    instances: Vec<Process>,
    redis: Redis,
    folder: Arc<TempDir>,
    binary: PathBuf,
}

impl Fleet {
    /// Main, two event persisters, two instances with the other streams, and two that are left
    /// for reading; returns when all are healthy.
    pub async fn start(
        binary: &Path,
        settings: &Settings,
        database: &Value,
        spread: Spread,
    ) -> Result<Self> {
        let folder = folder()?;
        let redis = Redis::start(folder.path()).await;
        write_files(folder.path(), settings, database)?;
        let made = |name: &str| {
            let process = instance(binary, &folder, name);
            if settings.confines(name) { process.confined() } else { process }
        };
        let mut instances = vec![made("main")];
        instances.extend(WORKERS.iter().map(|name| made(name)));
        launch(&mut instances, folder.path()).await?;
        let sockets: Vec<PathBuf> =
            instances.iter().map(|process| public_socket(folder.path(), process.name())).collect();
        let files = files();
        let site = match spread {
            Spread::Random => Site::Random(&sockets),
            Spread::Generated => Site::Generated { binary, files: &files },
        };
        let nginx = Nginx::start(folder.path(), site, settings.listens()).await?;
        Ok(Self { nginx, instances, redis, folder, binary: binary.to_owned() })
    }

    /// Where nginx listens.
    pub fn url(&self) -> String {
        self.nginx.url()
    }

    /// The folder with all its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The Redis between its instances.
    pub fn redis(&mut self) -> &mut Redis {
        &mut self.redis
    }

    /// All instances, main first.
    pub fn instances(&mut self) -> &mut [Process] {
        &mut self.instances
    }

    /// One of them.
    pub fn instance(&mut self, name: &str) -> &mut Process {
        let found = self.instances.iter_mut().find(|process| process.name() == name);
        found.unwrap_or_else(|| panic!("there is no instance {name}"))
    }

    /// Makes these the event persisters in the shared file. Who runs does not know before it gets
    /// SIGHUP; an instance of a name that is new is started by [`Fleet::add`].
    pub fn set_persisters(&mut self, names: &[&str]) -> Result<()> {
        let file = self.folder.path().join("homeserver.yaml");
        let mut shared: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        shared["stream_writers"]["events"] = json!(names);
        for name in names {
            let socket = replication_socket(self.folder.path(), name);
            shared["instance_map"][*name] = json!({"path": socket});
        }
        std::fs::write(file, format!("{shared:#}\n"))?;
        Ok(())
    }

    /// Starts one more worker; the others are not told.
    pub async fn add(&mut self, name: &str) -> Result<()> {
        write_worker(self.folder.path(), name)?;
        self.instances.push(instance(&self.binary, &self.folder, name));
        self.launch().await
    }

    /// What an instance tells operators of itself.
    pub async fn detail(&self, name: &str) -> Result<Value> {
        let socket = replication_socket(self.folder.path(), name);
        let client = reqwest::Client::builder().no_proxy().unix_socket(socket).build()?;
        Ok(client.get("http://localhost/health?detail").send().await?.json().await?)
    }

    /// Waits until an instance owns `count` shards of rooms, as far as it knows.
    pub async fn until_owned(&self, name: &str, count: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let detail = self.detail(name).await?;
            if detail["shards"]["owned"] == count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name} does not come to own {count}: {detail:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all others take an instance for dead, and have all shards of rooms between them.
    pub async fn until_given_up(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let others = self.instances.iter().map(Process::name).filter(|other| *other != name);
            let details = try_join_all(others.map(|other| self.detail(other))).await?;
            let sees = |detail: &&Value| {
                let fleet = detail["fleet"].as_array();
                fleet.is_some_and(|fleet| fleet.iter().any(|peer| peer["name"] == name))
            };
            let waiting: Vec<&Value> =
                details.iter().filter(sees).map(|detail| &detail["instance"]).collect();
            let owned: u64 = details.iter().filter_map(|it| it["shards"]["owned"].as_u64()).sum();
            if waiting.is_empty() && owned == SHARDS {
                return Ok(());
            }
            let why = format!("{waiting:?} wait for it, the others own {owned} shards");
            ensure!(Instant::now() < deadline, "{name} is not given up: {why}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts all of them that do not run.
    pub async fn launch(&mut self) -> Result<()> {
        launch(&mut self.instances, self.folder.path()).await
    }

    /// What all of them have logged.
    pub fn log(&self) -> String {
        self.instances.iter().map(Process::log).collect()
    }
}

/// Starts those that do not run; main first, since it makes the key that all sign with.
async fn launch(instances: &mut [Process], folder: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    for process in instances.iter_mut().filter(|process| process.pid().is_none()) {
        process.launch()?;
        while !folder.join("signing.key").exists() {
            ensure!(Instant::now() < deadline, "there is no key: {}", process.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    try_join_all(instances.iter_mut().map(Process::until_healthy)).await?;
    Ok(())
}

fn instance(binary: &Path, folder: &Arc<TempDir>, name: &str) -> Process {
    let file = format!("{name}.yaml");
    let data = format!("data-{name}");
    let mut arguments = vec!["run", "-c", "homeserver.yaml"];
    if name != "main" {
        arguments.extend(["-c", &file]);
    }
    arguments.extend(["--data-dir", &data]);
    let door = Door::Socket(public_socket(folder.path(), name));
    Process::new(binary, folder.clone(), name, &arguments, door)
}

/// The files on a command line that speaks of the whole fleet.
fn files() -> String {
    let workers: Vec<_> = WORKERS.iter().map(|name| format!("{name}.yaml")).collect();
    format!("-c homeserver.yaml {}", workers.join(" "))
}

/// Where an instance takes the requests of clients.
pub fn public_socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.sock"))
}

/// Where it takes those of other instances.
pub fn replication_socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}-replication.sock"))
}

/// Where its metrics page is.
pub fn metrics_socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}-metrics.sock"))
}

fn write_files(folder: &Path, settings: &Settings, database: &Value) -> Result<()> {
    let everybody = std::iter::once(&"main").chain(WORKERS);
    let map: serde_json::Map<String, Value> = everybody
        .map(|name| ((*name).to_owned(), json!({"path": replication_socket(folder, name)})))
        .collect();
    let redis = json!({"enabled": true, "path": folder.join("redis.sock")});
    let shared = settings
        .clone()
        .or("redis", redis)
        .with("worker_replication_secret", "the replication secret of the test kit")
        .with("instance_map", map)
        .with("run_background_tasks_on", "stream2")
        .with(
            "stream_writers",
            json!({
                "events": ["persister1", "persister2"],
                "typing": ["stream1"],
                "to_device": ["stream1"],
                "account_data": ["stream1"],
                "receipts": ["stream1", "stream2"],
                "presence": ["stream2"],
                "push_rules": ["stream2"],
                "device_lists": ["stream1", "stream2"],
            }),
        )
        .with("listeners", listeners(folder, "main"))
        .with_chatd("proxy_pools", json!({"sync": ["sync1", "sync2"]}));
    std::fs::write(folder.join("homeserver.yaml"), shared.to_yaml(database, folder))?;
    for name in WORKERS {
        write_worker(folder, name)?;
    }
    Ok(())
}

fn write_worker(folder: &Path, name: &str) -> Result<()> {
    let file = json!({
        "worker_app": "synapse.app.generic_worker",
        "worker_name": name,
        "worker_listeners": listeners(folder, name),
    });
    Ok(std::fs::write(folder.join(format!("{name}.yaml")), format!("{file:#}\n"))?)
}

fn listeners(folder: &Path, name: &str) -> Value {
    json!([
        {
            "type": "http",
            "path": public_socket(folder, name),
            "mode": "666",
            "x_forwarded": true,
            "resources": [{"names": ["client", "federation"], "compress": false}],
        },
        {
            "type": "http",
            "path": replication_socket(folder, name),
            "resources": [{"names": ["replication"]}],
        },
        {
            "type": "http",
            "path": metrics_socket(folder, name),
            "resources": [{"names": ["metrics"]}],
        },
    ])
}
