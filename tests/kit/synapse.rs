//! Real Synapse, as installed by `tests/synapse/install.sh`, with SQLite.
//!
//! A start takes seconds of a processor, so [`Synapse::shared`] is one for all test processes of a
//! working tree; it ends half a minute after the last that used it. Its users have to have names of
//! their own: [`Synapse::user`] sees to that. [`Synapse::start`] is one for a test that stops it or
//! cuts it off.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ruma_common::serde::{Base64, base64::Standard};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cluster,
    gate::Gate,
    http::{Http, Request},
    other::Peer,
    process::{Door, Process, folder, free_port, listeners},
    settings::Settings,
    user::User,
};

/// Longest time that Synapse may take from start to a healthy answer.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A running Synapse.
#[derive(Debug)]
pub struct Synapse {
    name: String,
    http: Http,
    folder: PathBuf,
    own: Option<Process>,
}

impl Synapse {
    /// That of this working tree, started if it does not run.
    pub async fn shared() -> Self {
        Self::find_shared().await.unwrap_or_else(|error| panic!("Synapse: {error:?}"))
    }

    async fn find_shared() -> Result<Self> {
        static HERE: OnceLock<File> = OnceLock::new();
        let folder = cluster::shared_folder()?.join("synapse");
        std::fs::create_dir_all(&folder)?;
        let _alone = cluster::lock(&folder.join("start.lock"))?;
        // Held until this process ends, so that the watcher knows that somebody is here.
        let users = cluster::open_lock(&folder.join("users.lock"))?;
        users.lock_shared()?;
        let _ = HERE.set(users);
        if let Some(found) = Self::found_in(&folder)
            && found.is_healthy().await
        {
            return Ok(found);
        }
        let port = free_port()?;
        write_files(&folder, port, &Settings::federating())?;
        let mut watcher = watch(&folder)?;
        let started = Self::found_in(&folder).context("its files have been written")?;
        let deadline = Instant::now() + START_LIMIT;
        while !started.is_healthy().await {
            ensure!(watcher.try_wait()?.is_none(), "it ended at start:\n{}", started.log());
            ensure!(Instant::now() < deadline, "it does not start:\n{}", started.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(started)
    }

    /// One of a test's own.
    pub async fn start() -> Self {
        Self::launch(Settings::federating()).await
    }

    /// The same with a gate between it and all others.
    pub async fn gated() -> (Self, Gate) {
        let (settings, gate) = Settings::gated().await;
        (Self::launch(settings).await, gate)
    }

    async fn launch(settings: Settings) -> Self {
        let started = async {
            let (folder, port): (Arc<TempDir>, u16) = (folder()?, free_port()?);
            write_files(folder.path(), port, &settings)?;
            let arguments = ["-m", "synapse.app.homeserver", "-c", "homeserver.yaml"];
            let door = Door::Port(port);
            let program = program()?;
            let mut own = Process::of_program(program, folder, "synapse", &arguments, door);
            own.launch()?;
            own.until_healthy().await?;
            let mut found = Self::found_in(own.folder()).context("its files have been written")?;
            found.own = Some(own);
            anyhow::Ok(found)
        };
        started.await.unwrap_or_else(|error| panic!("Synapse: {error:?}"))
    }

    /// The one whose files are in `folder`, whether it runs or not.
    fn found_in(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join("homeserver.yaml")).ok()?;
        let settings: Value = serde_json::from_str(&text).ok()?;
        let url = format!("http://127.0.0.1:{}", settings["listeners"][0]["port"].as_u64()?);
        Some(Self {
            name: settings["server_name"].as_str()?.to_owned(),
            http: Http::new(url).unchecked(),
            folder: folder.to_owned(),
            own: None,
        })
    }

    async fn is_healthy(&self) -> bool {
        let answer = self.http.request("GET", "/health").send().await;
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// Its `server_name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        self.http.base().to_owned()
    }

    /// It as other servers of the test ask it.
    pub fn peer(&self) -> Peer {
        Peer { name: self.name.clone(), http: self.http.clone() }
    }

    /// What it has logged so far, tests before this one included if it is shared.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("synapse.log")).unwrap_or_default()
    }

    /// A room as its database has it, in the lines of a recorded one (`tests/synapse/room.py`).
    pub fn record(&self, room: &str, made: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../synapse/room.py");
        let arguments = [&*self.folder.to_string_lossy(), room, made].map(str::to_owned);
        let program = program().unwrap_or_else(|error| panic!("Synapse: {error:?}"));
        let ended = Command::new(program).arg(script).args(arguments).output();
        let ended = ended.expect("Python starts");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{room} cannot be written down: {told}");
        String::from_utf8(ended.stdout).expect("JSON is UTF-8")
    }

    /// Its process, to kill and restart it; only of one that is a test's own.
    pub fn process(&mut self) -> &mut Process {
        self.own.as_mut().expect("a Synapse that belongs to this test")
    }

    /// A request without an access token.
    pub fn request(&self, method: &str, path: impl Into<String>) -> Request {
        self.http.request(method, path)
    }

    /// Registers a user, and logs it in. Its name begins with `name`, and nobody has had it.
    pub async fn user(&self, name: &str) -> User {
        User::register(&self.http, &format!("{name}-{:08x}", rand::random::<u32>())).await
    }
}

/// Synapse reads what chatd reads.
fn write_files(folder: &Path, port: u16, settings: &Settings) -> Result<()> {
    // A shared one begins anew.
    let database = folder.join("synapse.db");
    for leftover in ["synapse.db", "synapse.db-wal", "synapse.db-shm", "synapse.log"] {
        let _ = std::fs::remove_file(folder.join(leftover));
    }
    let seed: [u8; 32] = rand::random();
    let seed = Base64::<Standard, _>::new(seed.as_slice()).encode();
    std::fs::write(folder.join("signing.key"), format!("ed25519 a_kit {seed}\n"))?;
    let yaml = settings
        .clone()
        .without("chatd")
        .with("listeners", listeners(port, settings.listens()))
        .with("ip_range_blacklist", json!([]))
        .with("suppress_key_server_warning", true)
        .with("macaroon_secret_key", "macaroons of the test kit")
        .with("form_secret", "forms of the test kit")
        .with("media_store_path", json!(folder.join("media")))
        .with("enable_media_repo", false)
        .to_yaml(&json!({"name": "sqlite3", "args": {"database": database}}), folder);
    std::fs::write(folder.join("homeserver.yaml"), yaml)?;
    Ok(())
}

/// Starts the one in `folder`, and stops it when nobody has used it for a while.
fn watch(folder: &Path) -> Result<Child> {
    const SCRIPT: &str = "\"$1\" -m synapse.app.homeserver -c homeserver.yaml & own=$!; idle=0; \
        while [ $idle -lt 6 ] && kill -0 $own; do sleep 5; \
        if flock -n -x users.lock true; then idle=$((idle+1)); else idle=0; fi; done; \
        kill -9 $own";
    let log = File::create(folder.join("synapse.log"))?;
    Command::new("setsid")
        .args(["sh", "-c", SCRIPT, "sh"])
        .arg(program()?)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the watcher")
}

/// The Python of the environment that has Synapse in it, in the target folder of this test.
fn program() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let mut folders = test.ancestors().map(|folder| folder.join("synapse/bin/python"));
    folders
        .find(|program| program.exists())
        .context("it is not installed: run tests/synapse/install.sh (`make test` does)")
}
