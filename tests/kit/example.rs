//! A fleet as a folder of examples or a guide has it: a `homeserver.yaml` and `workers/`. Places,
//! ports and secrets become those of the test, and nothing else changes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{
    database::Database,
    guide::Guide,
    http::Http,
    nginx::{Nginx, Site},
    process::{Door, Process, folder, free_port},
    redis::Redis,
    settings::Settings,
};

/// In the place of every log configuration.
const LOG: &str = "version: 1\nhandlers: {all: {class: logging.StreamHandler}}\n\
                   root: {level: INFO, handlers: [all]}\n";

/// The running processes; all are killed when dropped.
#[derive(Debug)]
pub struct Example {
    // Dropped in this order: whoever depends on others goes first.
    nginx: Nginx,
    instances: Vec<Process>,
    silent: Vec<Process>,
    _redis: Redis,
    database: Arc<Database>,
    folder: Arc<TempDir>,
}

impl Example {
    /// Starts the fleet in the folder `source`.
    pub async fn start(binary: &Path, source: &Path) -> Result<Self> {
        Self::start_on(Database::create(binary).await?, binary, source).await
    }

    /// The same on `database`.
    pub async fn start_on(database: Database, binary: &Path, source: &Path) -> Result<Self> {
        let mut workers = BTreeMap::new();
        for entry in fs::read_dir(source.join("workers"))? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).context("a file's name")?;
            workers.insert(name.to_owned(), read(&path)?);
        }
        Self::on(database, binary, read(&source.join("homeserver.yaml"))?, workers).await
    }

    /// Starts the fleet of a guide.
    pub async fn of_guide(binary: &Path, guide: Guide) -> Result<Self> {
        let name = |file: &Map<String, Value>| file["worker_name"].as_str().map(str::to_owned);
        let workers = guide.workers.into_iter();
        let workers = workers.map(|file| Some((name(&file)?, Value::Object(file)))).collect();
        let workers: Option<BTreeMap<_, _>> = workers;
        Self::of(binary, Value::Object(guide.shared), workers.context("names are text")?).await
    }

    /// Starts every instance, and nginx as `chatd proxy-config` says; returns when all that listen
    /// are healthy. `workers` has their files by their names.
    pub async fn of(
        binary: &Path,
        shared: Value,
        workers: BTreeMap<String, Value>,
    ) -> Result<Self> {
        Self::on(Database::create(binary).await?, binary, shared, workers).await
    }

    async fn on(
        database: Database,
        binary: &Path,
        shared: Value,
        workers: BTreeMap<String, Value>,
    ) -> Result<Self> {
        let folder = folder()?;
        let redis = Redis::start(folder.path()).await;
        let mut place = Place { folder: folder.path(), ports: BTreeMap::new() };
        fs::create_dir(place.folder.join("workers"))?;
        let shared = place.put("homeserver.yaml", shared)?;
        place.settle(&database)?;

        let mut main = place.instance(binary, &folder, None, &shared)?;
        // It makes the key that all sign with.
        main.process.launch()?;
        main.process.until_healthy().await?;
        let (mut instances, mut silent) = (vec![main.process], Vec::new());
        for (name, file) in workers {
            let file = place.put(&format!("workers/{name}.yaml"), file)?;
            let mut worker = place.instance(binary, &folder, Some(&name), &file)?;
            worker.process.launch()?;
            if worker.listens { &mut instances } else { &mut silent }.push(worker.process);
        }
        try_join_all(instances.iter_mut().map(Process::until_healthy)).await?;
        let files = "-c homeserver.yaml -c test.yaml workers";
        let nginx = Nginx::start(folder.path(), Site::Generated { binary, files }, None).await?;
        Ok(Self { nginx, instances, silent, _redis: redis, database: Arc::new(database), folder })
    }

    /// Requests by way of nginx.
    pub fn http(&self) -> Http {
        Http::new(self.nginx.url())
    }

    /// The folder with its files and sockets.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All instances, those that listen first.
    pub fn instances(&self) -> impl Iterator<Item = &Process> {
        self.instances.iter().chain(&self.silent)
    }

    /// Its database, to look behind its back.
    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// How many instances there are.
    pub fn count(&self) -> usize {
        self.instances.len() + self.silent.len()
    }

    /// Waits until those that listen nowhere say that they are ready, too.
    pub async fn until_ready(&mut self) {
        for process in &self.silent {
            while !process.log().contains("is ready as") {
                assert!(process.pid().is_some(), "{}", process.log());
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

/// Where the files of an example are put.
struct Place<'a> {
    folder: &'a Path,
    /// Free ports, by those of the example.
    ports: BTreeMap<u64, u16>,
}

struct Instance {
    process: Process,
    listens: bool,
}

impl Place<'_> {
    /// Writes a file with places and ports of the test's own; what is in it then.
    fn put(&mut self, name: &str, mut file: Value) -> Result<Value> {
        self.adapt(&mut file)?;
        fs::write(self.folder.join(name), format!("{file:#}\n"))?;
        Ok(file)
    }

    fn adapt(&mut self, value: &mut Value) -> Result<()> {
        match value {
            Value::String(text) => {
                let here = format!("{}/", self.folder.display());
                *text = text.replace("/run/chatd/", &here).replace("/sockets/", &here);
            }
            Value::Array(list) => list.iter_mut().try_for_each(|one| self.adapt(one))?,
            Value::Object(map) => {
                let is_metrics = map.get("type").is_some_and(|kind| kind == "metrics");
                for (key, value) in map {
                    match value.as_u64().filter(|_| key.ends_with("port")) {
                        Some(port) => *value = json!(self.port(port, is_metrics)?),
                        None if key == "worker_log_config" => {
                            *value = json!(self.folder.join("log.yaml"));
                        }
                        None => self.adapt(value)?,
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A port that is free for one of the example. One for metrics is the same in each container.
    fn port(&mut self, port: u64, is_metrics: bool) -> Result<u16> {
        Ok(match self.ports.get(&port) {
            _ if is_metrics => free_port()?,
            Some(known) => *known,
            None => *self.ports.entry(port).or_insert(free_port()?),
        })
    }

    /// What is the test's own: the database, Redis, the key, the log, open registration.
    fn settle(&self, database: &Database) -> Result<()> {
        let mut config = database.config();
        config["args"]["cp_max"] = json!(3);
        fs::write(self.folder.join("log.yaml"), LOG)?;
        let settings = Settings::new()
            .with("redis", json!({"enabled": true, "path": self.folder.join("redis.sock")}))
            .with_chatd("fresh", "always");
        fs::write(self.folder.join("test.yaml"), settings.to_yaml(&config, self.folder))?;
        Ok(())
    }

    fn instance(
        &self,
        binary: &Path,
        folder: &Arc<TempDir>,
        worker: Option<&str>,
        file: &Value,
    ) -> Result<Instance> {
        let name = worker.unwrap_or("main");
        let (path, data) = (format!("workers/{name}.yaml"), format!("data-{name}"));
        let mut arguments = vec!["run", "-c", "homeserver.yaml", "-c", "test.yaml"];
        if worker.is_some() {
            arguments.extend(["-c", &path]);
        }
        arguments.extend(["--data-dir", &data]);
        let key = if worker.is_some() { "worker_listeners" } else { "listeners" };
        let door = door(&file[key])?;
        let listens = door.is_some();
        let door = door.unwrap_or(Door::Port(0));
        Ok(Instance {
            process: Process::new(binary, folder.clone(), name, &arguments, door),
            listens,
        })
    }
}

/// The first listener that tells of health.
fn door(listeners: &Value) -> Result<Option<Door>> {
    let mut listeners = listeners.as_array().into_iter().flatten();
    let Some(first) = listeners.find(|one| one["type"] == "http") else { return Ok(None) };
    Ok(Some(match (first["path"].as_str(), first["port"].as_u64()) {
        (Some(path), _) => Door::Socket(PathBuf::from(path)),
        (None, Some(port)) => Door::Port(u16::try_from(port)?),
        (None, None) => bail!("a listener that is nowhere: {first}"),
    }))
}

fn read(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file)?;
    serde_saphyr::from_str(&text).with_context(|| file.display().to_string())
}
