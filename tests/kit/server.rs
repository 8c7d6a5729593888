//! The real binary, started with a generated homeserver.yaml, and ended with the test.

use std::{
    fs::{File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{database::Database, http::Http, http::Request, settings::Settings, user::User};

/// Longest time that chatd may take from start to a healthy answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest time that chatd may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// One running chatd. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    binary: PathBuf,
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Process {
    /// Starts `binary` on a free port of the loopback address; returns when it is healthy.
    pub async fn start(binary: &Path, settings: &Settings, database: &Value) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("chatd-").tempdir()?;
        // An embedded PostgreSQL may have to run as another user.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listener = json!({
            "type": "http",
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["client"], "compress": false}],
        });
        let path = folder.path().to_string_lossy();
        let yaml = settings.to_yaml(listener, database, &path);
        std::fs::write(folder.path().join("homeserver.yaml"), yaml)?;
        // Another build, or another server behind a script, to compare with.
        let binary = std::env::var_os("CHATD_TEST_BINARY").map_or(binary.to_owned(), PathBuf::from);
        let mut process = Self { binary, folder, port, child: None };
        process.launch()?;
        process.until_healthy().await?;
        Ok(process)
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The folder with its configuration, its log and its data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("chatd.log")).unwrap_or_default()
    }

    /// Ends it as `kill -9` does.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    pub async fn sigterm(&mut self) -> Result<ExitStatus> {
        let pid = self.pid().context("it does not run")?;
        signal(pid, "TERM")?;
        self.ended().await
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("it does not run")?;
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("chatd did not end within {STOP_LIMIT:?}:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts it again with the same files; returns when it is healthy.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill9()?;
        self.launch()?;
        self.until_healthy().await
    }

    fn launch(&mut self) -> Result<()> {
        let log =
            File::options().create(true).append(true).open(self.folder.path().join("chatd.log"))?;
        // `setpriv` becomes chatd; the kernel kills it when the test's thread ends, however that
        // comes about.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.binary)
            .args(["run", "-c", "homeserver.yaml", "--data-dir", "data"])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start chatd")?;
        self.child = Some(child);
        Ok(())
    }

    async fn until_healthy(&mut self) -> Result<()> {
        let health = format!("{}/health", self.url());
        let client = reqwest::Client::builder().no_proxy().build()?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Ok(answer) = client.get(&health).send().await
                && answer.status().is_success()
            {
                return Ok(());
            }
            let child = self.child.as_mut().context("it does not run")?;
            if let Some(status) = child.try_wait()? {
                bail!("chatd ended at start ({status}):\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("chatd was not healthy within {START_LIMIT:?}:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        let _ = self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            crate::say("the end of chatd's log:");
            for line in tail.into_iter().rev() {
                crate::say(line);
            }
        }
    }
}

/// Sends a signal by its name without `SIG`.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let signal = match name {
        "KILL" => Signal::KILL,
        "TERM" => Signal::TERM,
        "INT" => Signal::INT,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        _ => bail!("the kit does not send SIG{name}"),
    };
    let process = Pid::from_raw(i32::try_from(pid)?).context("0 is no process")?;
    kill_process(process, signal).with_context(|| format!("cannot send SIG{name} to {pid}"))
}

/// A chatd with a database of its own, and everything that a scenario asks of it.
#[derive(Debug)]
pub struct Server {
    // Dropped in this order: the process before the database that it is connected to.
    process: Process,
    database: Database,
    http: Http,
}

impl Server {
    /// A monolith on a fresh database of the shared cluster.
    pub async fn start(binary: impl AsRef<Path>, settings: Settings) -> Self {
        let binary = binary.as_ref();
        let database = Database::create(binary).await.expect("a database for the test");
        Self::on(binary, settings, database).await
    }

    /// A monolith on `database`.
    pub async fn on(binary: impl AsRef<Path>, settings: Settings, database: Database) -> Self {
        let process = Process::start(binary.as_ref(), &settings, &database.config())
            .await
            .unwrap_or_else(|error| panic!("chatd does not start: {error:?}"));
        let http = Http::new(process.url());
        Self { process, database, http }
    }

    /// The process, to kill and restart it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its database, to look behind its back.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        self.process.url()
    }

    /// A request without an access token.
    pub fn request(&self, method: &str, path: impl Into<String>) -> Request {
        self.http.request(method, path)
    }

    /// Registers `name` with the password `password of <name>` and logs it in.
    pub async fn user(&self, name: &str) -> User {
        User::register(&self.http, name).await
    }

    /// Logs `name` in with the password that [`Server::user`] gave it, as another device.
    pub async fn login(&self, name: &str) -> User {
        User::login(&self.http, name).await
    }
}
