//! PostgreSQL for tests: clusters of our own on a unix socket, never one of the machine's.
//!
//! [`Cluster::shared`] is one for all test processes of a working tree, without fsync. It ends
//! half a minute after the last process that used it. [`Cluster::private`] belongs to one test,
//! writes to disk as in production, and can be killed and started again.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::{Client, Config, NoTls};

/// The superuser of our clusters.
pub const USER: &str = "chatd";

/// Longest time that PostgreSQL may take to accept connections.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A PostgreSQL server; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Holds the data, the socket and the log.
    folder: PathBuf,
}

/// How careful a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    /// Fast; the data may be lost with the machine.
    Scratch,
    /// Every commit is on disk when it returns.
    Durable,
}

impl Cluster {
    /// The cluster of this working tree, started if it does not run.
    pub fn shared() -> Result<Self> {
        static SHARED: OnceLock<(Cluster, File)> = OnceLock::new();
        if let Some((cluster, _)) = SHARED.get() {
            return Ok(cluster.clone());
        }
        let cluster = Self { folder: shared_folder()? };
        let _alone = cluster.lock("start.lock")?;
        // Held until this process ends, so that the watcher knows that somebody is here.
        let users = open_lock(&cluster.folder.join("users.lock"))?;
        users.lock_shared()?;
        if !cluster.accepts() {
            cluster.create(Durability::Scratch)?;
            cluster.start(Durability::Scratch)?;
            cluster.watch()?;
        }
        Ok(SHARED.get_or_init(|| (cluster, users)).0.clone())
    }

    /// A new cluster in `folder`, with fsync, for tests that kill it.
    pub fn private(folder: &Path) -> Result<Self> {
        let cluster = Self { folder: folder.to_owned() };
        std::fs::set_permissions(folder, Permissions::from_mode(0o755))?;
        cluster.create(Durability::Durable)?;
        cluster.start(Durability::Durable)?;
        Ok(cluster)
    }

    /// The folder of the unix socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// An exclusive lock among all test processes, released when the file is dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        lock(&self.folder.join(name))
    }

    /// A connection of our own to `database`.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let (client, connection) = Config::new()
            .host_path(&self.folder)
            .user(USER)
            .dbname(database)
            .connect(NoTls)
            .await
            .with_context(|| format!("cannot connect to the database {database}"))?;
        crate::spawn(async move {
            // An error here shows as an error of the client's next statement.
            let _ = connection.await;
        });
        Ok(client)
    }

    /// Ends every process of the server at once, as a power cut would.
    pub fn kill9(&self) -> Result<()> {
        kill9(&self.data())
    }

    /// Ends one of the processes that serve a connection; PostgreSQL then ends all others and
    /// reads its journal.
    pub fn kill9_one_backend(&self) -> Result<()> {
        let title = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
        let all = children(postmaster(&self.data())?);
        let serves = |pid: &&u32| title(pid).is_ok_and(|title| title.contains("[local]"));
        match all.iter().find(serves) {
            Some(pid) => kill(&[*pid]),
            None => Ok(()),
        }
    }

    /// Starts a cluster again after [`Cluster::kill9`]; returns when it accepts connections.
    pub fn restart(&self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        // Until the last backend of the dead server is gone, PostgreSQL refuses to start.
        loop {
            match self.start(Durability::Durable) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The process id of the server.
    pub fn pid(&self) -> Result<u32> {
        postmaster(&self.data())
    }

    fn accepts(&self) -> bool {
        tool("pg_isready")
            .and_then(|mut tool| Ok(tool.arg("-q").arg("-h").arg(&self.folder).status()?))
            .is_ok_and(|status| status.success())
    }

    fn create(&self, durability: Durability) -> Result<()> {
        let data = self.data();
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        std::fs::create_dir_all(&data)?;
        std::fs::set_permissions(&data, Permissions::from_mode(0o700))?;
        if let Some((uid, gid)) = owner()? {
            std::os::unix::fs::chown(&data, Some(uid), Some(gid))?;
            std::os::unix::fs::chown(&self.folder, Some(uid), Some(gid))?;
        }
        let mut initdb = self.as_owner("initdb")?;
        initdb.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--username", USER]);
        if durability == Durability::Scratch {
            initdb.arg("--no-sync");
        }
        run(initdb.arg("-D").arg(&data))?;
        Ok(())
    }

    fn start(&self, durability: Durability) -> Result<()> {
        let mut options = format!(
            "-k '{}' -c listen_addresses='' -c max_connections=300 -c shared_buffers=64MB \
             -c autovacuum_naptime=10s -c logging_collector=off",
            self.folder.display()
        );
        if durability == Durability::Scratch {
            options.push_str(" -c fsync=off -c synchronous_commit=off -c full_page_writes=off");
        }
        let mut start = self.as_owner("pg_ctl")?;
        start.args(["start", "--wait", "--silent", "-o", &options]);
        run(start.arg("-l").arg(self.data().join("server.log")).arg("-D").arg(self.data()))?;
        ensure!(self.accepts(), "PostgreSQL in {} does not answer", self.folder.display());
        Ok(())
    }

    /// Leaves a process behind that stops the cluster when nobody has used it for a while.
    fn watch(&self) -> Result<()> {
        const SCRIPT: &str = "idle=0; while [ $idle -lt 6 ]; do sleep 5; \
            if flock -n -x \"$1/users.lock\" true; then idle=$((idle+1)); else idle=0; fi; done; \
            exec \"$2\" stop -m immediate -D \"$1/data\"";
        let pg_ctl = binaries()?.join("pg_ctl");
        let mut watcher = Command::new("setsid");
        watcher.args(["sh", "-c", SCRIPT, "sh"]).arg(&self.folder).arg(pg_ctl);
        quiet(&mut watcher);
        as_owner(&mut watcher)?;
        watcher.current_dir(&self.folder).spawn().context("cannot start the watcher")?;
        Ok(())
    }

    fn as_owner(&self, name: &str) -> Result<Command> {
        let mut command = tool(name)?;
        as_owner(&mut command)?;
        command.current_dir(&self.folder);
        quiet(&mut command);
        Ok(command)
    }
}

/// Ends every process of the PostgreSQL that runs on this data folder, as a power cut would. An
/// error when none runs there now.
pub fn kill9(data: &Path) -> Result<()> {
    let postmaster = postmaster(data)?;
    let mut all = children(postmaster);
    all.insert(0, postmaster);
    kill(&all)
}

/// The first process of the PostgreSQL that runs on this data folder. After a kill the file with
/// its number stays until the next start removes it, and is missing for a moment then.
fn postmaster(data: &Path) -> Result<u32> {
    let file = std::fs::read_to_string(data.join("postmaster.pid"))
        .with_context(|| format!("no PostgreSQL runs on {}", data.display()))?;
    let pid = file.lines().next().unwrap_or_default().trim().parse()?;
    let works_in = std::fs::read_link(format!("/proc/{pid}/cwd"))
        .with_context(|| format!("the PostgreSQL of {} has ended", data.display()))?;
    ensure!(works_in == data.canonicalize()?, "process {pid} is not of {}", data.display());
    Ok(pid)
}

fn children(parent: u32) -> Vec<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in brackets may hold anything; state and parent follow it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

fn kill(pids: &[u32]) -> Result<()> {
    // Some may have ended by themselves meanwhile.
    Command::new("kill")
        .arg("-9")
        .args(pids.iter().map(u32::to_string))
        .stderr(Stdio::null())
        .status()?;
    Ok(())
}

/// `/tmp/chatd-kit-<tree>`: short, since a socket's path may have 107 bytes only.
pub(crate) fn shared_folder() -> Result<PathBuf> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut tree = DefaultHasher::new();
    env!("CARGO_MANIFEST_DIR").hash(&mut tree);
    let folder = std::env::temp_dir().join(format!("chatd-kit-{:x}", tree.finish()));
    std::fs::create_dir_all(&folder)?;
    open_to_all(&folder)?;
    Ok(folder)
}

/// Lets every user into `folder`: servers may run as another one than we.
pub(crate) fn open_to_all(folder: &Path) -> Result<()> {
    if std::fs::metadata(folder)?.permissions().mode() & 0o777 != 0o755 {
        std::fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// An exclusive lock among all test processes, released when the file is dropped.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    file.lock()?;
    Ok(file)
}

pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).read(true).open(path)?;
    // The watcher runs as another user.
    let open_to_all = file.metadata()?.permissions().mode() & 0o777 == 0o666;
    if !open_to_all {
        file.set_permissions(Permissions::from_mode(0o666))?;
    }
    Ok(file)
}

/// The folder of PostgreSQL's programs: the newest under `/usr/lib/postgresql`, else from `PATH`.
fn binaries() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, folder)| folder.join("initdb").exists())
        .collect();
    found.sort();
    if let Some((_, folder)) = found.pop() {
        return Ok(folder);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|folder| folder.join("initdb").exists())
        .context("PostgreSQL's server programs are not installed (Debian: postgresql)")
}

fn tool(name: &str) -> Result<Command> {
    Ok(Command::new(binaries()?.join(name)))
}

/// PostgreSQL refuses to run as root, so there another user has to own the cluster.
fn owner() -> Result<Option<(u32, u32)>> {
    if id(&["-u"])? != 0 {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let (Ok(uid), Ok(gid)) = (id(&["-u", name]), id(&["-g", name])) {
            return Ok(Some((uid, gid)));
        }
    }
    bail!("running as root, and there is no user postgres or nobody to run PostgreSQL as")
}

fn id(arguments: &[&str]) -> Result<u32> {
    let output = run(Command::new("id").args(arguments))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

fn as_owner(command: &mut Command) -> Result<()> {
    if let Some((uid, gid)) = owner()? {
        command.uid(uid).gid(gid);
    }
    Ok(())
}

/// Detaches what lives on from the streams of the test that started it.
fn quiet(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed ({})", output.status);
    Ok(output)
}
