//! A fleet as a folder of examples has it: a `homeserver.yaml` and `workers/`. Places, ports and
//! secrets become those of the test, and nothing else changes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    database::Database,
    http::Http,
    nginx::{Nginx, Site},
    process::{Door, Process, folder, free_port},
    redis::Redis,
    settings::Settings,
};

/// The running processes; all are killed when dropped.
#[derive(Debug)]
pub struct Example {
    // Dropped in this order: whoever depends on others goes first.
    nginx: Nginx,
    instances: Vec<Process>,
    silent: Vec<Process>,
    _redis: Redis,
    _database: Database,
    _folder: Arc<TempDir>,
}

impl Example {
    /// Starts every instance, and nginx as `chatd proxy-config` says; returns when all that listen
    /// are healthy.
    pub async fn start(binary: &Path, source: &Path) -> Result<Self> {
        let database = Database::create(binary).await?;
        let folder = folder()?;
        let redis = Redis::start(folder.path()).await;
        let mut place = Place { folder: folder.path(), ports: BTreeMap::new() };
        let mut workers = place.copy_all(source)?;
        place.settle(&database)?;

        let mut main = place.instance(binary, &folder, "homeserver.yaml", "main")?;
        // It makes the key that all sign with.
        main.process.launch()?;
        main.process.until_healthy().await?;
        let (mut instances, mut silent) = (vec![main.process], Vec::new());
        workers.sort();
        for name in &workers {
            let mut worker =
                place.instance(binary, &folder, &format!("workers/{name}.yaml"), name)?;
            worker.process.launch()?;
            if worker.listens { &mut instances } else { &mut silent }.push(worker.process);
        }
        try_join_all(instances.iter_mut().map(Process::until_healthy)).await?;
        let files = "-c homeserver.yaml -c test.yaml workers";
        let nginx = Nginx::start(folder.path(), Site::Generated { binary, files }).await?;
        Ok(Self { nginx, instances, silent, _redis: redis, _database: database, _folder: folder })
    }

    /// Requests by way of nginx.
    pub fn http(&self) -> Http {
        Http::new(self.nginx.url())
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
    ports: BTreeMap<u16, u16>,
}

struct Instance {
    process: Process,
    listens: bool,
}

impl Place<'_> {
    /// Copies the files; the names of the workers.
    fn copy_all(&mut self, source: &Path) -> Result<Vec<String>> {
        fs::create_dir(self.folder.join("workers"))?;
        self.copy(&source.join("homeserver.yaml"), "homeserver.yaml")?;
        let mut names = Vec::new();
        for entry in fs::read_dir(source.join("workers"))? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).context("a file's name")?;
            self.copy(&path, &format!("workers/{name}.yaml"))?;
            names.push(name.to_owned());
        }
        Ok(names)
    }

    fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        let here = format!("{}/", self.folder.display());
        let text =
            fs::read_to_string(from)?.replace("/run/chatd/", &here).replace("/sockets/", &here);
        let mut adapted = String::new();
        let mut is_metrics = false;
        for line in text.lines() {
            if line.trim_start().starts_with("- ") {
                is_metrics = line.contains("type: metrics");
            }
            adapted += &self.with_port(line, is_metrics)?;
            adapted.push('\n');
        }
        fs::write(self.folder.join(to), adapted)?;
        Ok(())
    }

    /// The line with a port that is free. One for metrics is the same in each container.
    fn with_port(&mut self, line: &str, is_metrics: bool) -> Result<String> {
        let Some((before, after)) = line.split_once("port: ") else { return Ok(line.to_owned()) };
        let digits = after.trim_end_matches(|one: char| !one.is_ascii_digit());
        let port: u16 = digits.parse().with_context(|| line.to_owned())?;
        let new = match self.ports.get(&port) {
            Some(known) if !is_metrics => *known,
            _ => free_port()?,
        };
        if !is_metrics {
            self.ports.insert(port, new);
        }
        Ok(format!("{before}port: {new}{}", &after[digits.len()..]))
    }

    /// What is the test's own: the database, Redis, the key, open registration.
    fn settle(&self, database: &Database) -> Result<()> {
        let mut config = database.config();
        config["args"]["cp_max"] = json!(3);
        let settings = Settings::new()
            .with("redis", json!({"enabled": true, "path": self.folder.join("redis.sock")}))
            .with_chatd("fresh", "always");
        fs::write(self.folder.join("test.yaml"), settings.to_yaml(None, &config, self.folder))?;
        Ok(())
    }

    fn instance(
        &self,
        binary: &Path,
        folder: &Arc<TempDir>,
        file: &str,
        name: &str,
    ) -> Result<Instance> {
        let data = format!("data-{name}");
        let mut arguments = vec!["run", "-c", "homeserver.yaml", "-c", "test.yaml"];
        if name != "main" {
            arguments.extend(["-c", file]);
        }
        arguments.extend(["--data-dir", &data]);
        let door = self.door(file)?;
        let listens = door.is_some();
        let door = door.unwrap_or(Door::Port(0));
        Ok(Instance {
            process: Process::new(binary, folder.clone(), name, &arguments, door),
            listens,
        })
    }

    /// The first listener in the file.
    fn door(&self, file: &str) -> Result<Option<Door>> {
        let text = fs::read_to_string(self.folder.join(file))?;
        let lines = text.lines().skip_while(|line| !line.ends_with("listeners:"));
        for line in lines {
            if let Some((_, path)) = line.split_once("path: ") {
                return Ok(Some(Door::Socket(PathBuf::from(path.trim_matches('"')))));
            }
            if let Some((_, port)) = line.split_once("port: ") {
                return Ok(Some(Door::Port(port.parse()?)));
            }
        }
        if text.contains("listeners:") {
            bail!("{file} has listeners that are nowhere");
        }
        Ok(None)
    }
}
