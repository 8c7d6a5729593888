//! One process of the real binary, started with files of the test, and ended with it.

use std::{
    fs::{File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{ports::Port, settings::Settings};

/// Longest time that chatd may take from start to a healthy answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest time that chatd may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Begins a call of a program without a network.
const CONFINE: &[&str] = &["unshare", "--net", "--"];

/// Where a process takes requests.
#[derive(Clone, Debug)]
pub enum Door {
    /// A port of the loopback address.
    Port(u16),
    /// A unix socket.
    Socket(PathBuf),
}

/// One running chatd. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    binary: PathBuf,
    folder: Arc<TempDir>,
    name: String,
    arguments: Vec<String>,
    door: Door,
    is_confined: bool,
    child: Option<Child>,
}

/// A folder for the files of one server.
pub fn folder() -> Result<Arc<TempDir>> {
    let folder = tempfile::Builder::new().prefix("chatd-").tempdir()?;
    // An embedded PostgreSQL may have to run as another user.
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    Ok(Arc::new(folder))
}

/// A port of the loopback address that nobody else uses while this test process runs.
pub fn free_port() -> Result<u16> {
    static CLAIMED: Mutex<Vec<Port>> = Mutex::new(Vec::new());
    let port = Port::claim()?;
    let number = port.number();
    CLAIMED.lock().expect("nobody panics while it is held").push(port);
    Ok(number)
}

impl Process {
    /// Starts `binary` on a free port of the loopback address; returns when it is healthy.
    pub async fn start(binary: &Path, settings: &Settings, database: &Value) -> Result<Self> {
        let folder = folder()?;
        let port = free_port()?;
        let listeners = listeners(port, settings.listens());
        let yaml = settings.clone().with("listeners", listeners).to_yaml(database, folder.path());
        std::fs::write(folder.path().join("homeserver.yaml"), yaml)?;
        let arguments = ["run", "-c", "homeserver.yaml", "--data-dir", "data"];
        let mut process = Self::new(binary, folder, "chatd", &arguments, Door::Port(port));
        process.launch()?;
        process.until_healthy().await?;
        Ok(process)
    }

    /// One that is not started yet. It is to be called with `arguments` in `folder`, logs to
    /// `<name>.log` there, and is healthy when it says so at `door`.
    pub fn new(
        binary: &Path,
        folder: Arc<TempDir>,
        name: &str,
        arguments: &[&str],
        door: Door,
    ) -> Self {
        // Another build, or another server behind a script, to compare with.
        let binary = std::env::var_os("CHATD_TEST_BINARY").map_or(binary.to_owned(), PathBuf::from);
        Self::of_program(binary, folder, name, arguments, door)
    }

    /// The same for a program that is not chatd, and that tells its health as chatd does.
    pub(crate) fn of_program(
        binary: PathBuf,
        folder: Arc<TempDir>,
        name: &str,
        arguments: &[&str],
        door: Door,
    ) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let name = name.to_owned();
        Self { binary, folder, name, arguments, door, is_confined: false, child: None }
    }

    /// The same in a network namespace of its own, from which no route leads anywhere.
    #[must_use]
    pub(crate) fn confined(mut self) -> Self {
        self.is_confined = true;
        self
    }

    /// Its name: that of its log file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `http://127.0.0.1:…`, of one that listens on a port.
    pub fn url(&self) -> String {
        match &self.door {
            Door::Port(port) => format!("http://127.0.0.1:{port}"),
            Door::Socket(path) => panic!("{} listens on {}", self.name, path.display()),
        }
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
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join(format!("{}.log", self.name))
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

    /// Starts it, and does not wait until it is healthy.
    pub fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file())?;
        // `setpriv` becomes chatd; the kernel kills it when the test's thread ends, however that
        // comes about. So does `unshare`.
        let namespace: &[&str] = if self.is_confined { CONFINE } else { &[] };
        let mut command = Command::new("setpriv");
        // The way to other machines is none to those of a test.
        for name in ["https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"] {
            command.env_remove(name);
        }
        let child = command
            .args(["--pdeathsig", "KILL", "--"])
            .args(namespace)
            .arg(&self.binary)
            .args(&self.arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start chatd")?;
        self.child = Some(child);
        Ok(())
    }

    /// A client that talks to this process, and the URL at which it does.
    pub fn client(&self) -> Result<(reqwest::Client, String)> {
        let client = reqwest::Client::builder().no_proxy();
        Ok(match &self.door {
            Door::Port(port) => (client.build()?, format!("http://127.0.0.1:{port}")),
            Door::Socket(path) => {
                (client.unix_socket(path.as_path()).build()?, "http://localhost".to_owned())
            }
        })
    }

    /// Waits until it says that it is healthy.
    pub async fn until_healthy(&mut self) -> Result<()> {
        let (client, url) = self.client()?;
        let health = format!("{url}/health");
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Ok(answer) = client.get(&health).send().await
                && answer.status().is_success()
            {
                return Ok(());
            }
            let child = self.child.as_mut().context("it does not run")?;
            if let Some(status) = child.try_wait()? {
                bail!("{} ended at start ({status}):\n{}", self.name, self.log());
            }
            if Instant::now() > deadline {
                bail!("{} was not healthy within {START_LIMIT:?}:\n{}", self.name, self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Whether network namespaces can be made here; who is not root may not make them.
pub fn may_confine() -> bool {
    let [program, arguments @ ..] = CONFINE else { unreachable!("the constant is not empty") };
    let tried = Command::new(program).args(arguments).arg("true").stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// For clients on `port`, without TLS; for other servers too where they are talked to.
pub(crate) fn listeners(port: u16, federation: Option<u16>) -> Value {
    let listener = |port: u16, tls: bool, names: &[&str]| {
        json!({
            "type": "http",
            "port": port,
            "tls": tls,
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": names, "compress": false}],
        })
    };
    match federation {
        None => json!([listener(port, false, &["client"])]),
        Some(tls) => {
            let names = ["client", "federation"];
            json!([listener(port, false, &names), listener(tls, true, &names)])
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
            crate::say(format!("the end of the log of {}:", self.name));
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
        "HUP" => Signal::HUP,
        _ => bail!("the kit does not send SIG{name}"),
    };
    let process = Pid::from_raw(i32::try_from(pid)?).context("0 is no process")?;
    kill_process(process, signal).with_context(|| format!("cannot send SIG{name} to {pid}"))
}
