//! A server with a database of its own, in either shape, and everything that a scenario asks of
//! it.

use std::{path::Path, process::ExitStatus, sync::Arc};

use anyhow::Result;

use crate::{
    database::Database,
    example::Example,
    fleet::{Fleet, Spread},
    http::Http,
    http::Request,
    other::Peer,
    process::Process,
    settings::Settings,
    user::User,
};

/// The processes of a server. Killed when dropped.
#[derive(Debug)]
enum Shape {
    Monolith(Process),
    Fleet(Fleet),
    Shared(Arc<Example>),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    // Dropped in this order: the processes before the database that they are connected to.
    shape: Shape,
    database: Arc<Database>,
    http: Http,
    settings: Settings,
    /// What is added to the names of users, where others have theirs on the same server.
    suffix: String,
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
        let (database, suffix) = (Arc::new(database), String::new());
        Self { shape: Shape::Monolith(process), database, http, settings, suffix }
    }

    /// A fleet on a fresh database of the shared cluster.
    pub async fn fleet(binary: impl AsRef<Path>, settings: Settings, spread: Spread) -> Self {
        let binary = binary.as_ref();
        let database = Database::create(binary).await.expect("a database for the test");
        Self::fleet_on(binary, settings, spread, database).await
    }

    /// A fleet on `database`.
    pub async fn fleet_on(
        binary: impl AsRef<Path>,
        settings: Settings,
        spread: Spread,
        database: Database,
    ) -> Self {
        // Scenarios look at once for what they have done, also where syncs show it.
        let settings = settings.with_chatd("fresh", "always");
        let fleet = Fleet::start(binary.as_ref(), &settings, &database.config(), spread)
            .await
            .unwrap_or_else(|error| panic!("the fleet does not start: {error:?}"));
        let http = Http::new(fleet.url());
        let (database, suffix) = (Arc::new(database), String::new());
        Self { shape: Shape::Fleet(fleet), database, http, settings, suffix }
    }

    /// An example's fleet, which several scenarios share; `number` tells their users apart. They may
    /// not stop it or look behind its back.
    pub fn shared(example: &Arc<Example>, number: usize) -> Self {
        Self {
            shape: Shape::Shared(example.clone()),
            database: example.database().clone(),
            http: example.http(),
            settings: Settings::new(),
            suffix: format!(".{number}"),
        }
    }

    /// Its `server_name`.
    pub fn name(&self) -> &str {
        self.settings.server_name()
    }

    /// It as other servers of the test ask it.
    pub fn peer(&self) -> Peer {
        Peer::new(self.name(), &self.url())
    }

    /// Where other servers find it; panics if it is not made by [`Settings::federating`].
    pub fn federation_port(&self) -> u16 {
        self.settings.federation().expect("a server among others")
    }

    /// The process of a monolith, to kill and restart it.
    pub fn process(&mut self) -> &mut Process {
        match &mut self.shape {
            Shape::Monolith(process) => process,
            Shape::Fleet(_) | Shape::Shared(_) => panic!("a fleet has many processes"),
        }
    }

    /// The processes of a fleet.
    pub fn members(&mut self) -> &mut Fleet {
        match &mut self.shape {
            Shape::Monolith(_) => panic!("a monolith is no fleet"),
            Shape::Shared(_) => panic!("others are here, too"),
            Shape::Fleet(fleet) => fleet,
        }
    }

    fn processes(&mut self) -> &mut [Process] {
        match &mut self.shape {
            Shape::Monolith(process) => std::slice::from_mut(process),
            Shape::Fleet(fleet) => fleet.instances(),
            Shape::Shared(_) => panic!("others are here, too"),
        }
    }

    /// How many processes it is.
    pub fn instances(&mut self) -> usize {
        self.processes().len()
    }

    /// Ends all of it as `kill -9` does.
    pub fn kill9(&mut self) -> Result<()> {
        self.processes().iter_mut().try_for_each(Process::kill9)
    }

    /// Asks all of it to end, and waits until it has; the first bad status, if there is one.
    pub async fn sigterm(&mut self) -> Result<ExitStatus> {
        let ended = self.processes().iter_mut().map(Process::sigterm);
        let mut statuses = futures::future::try_join_all(ended).await?;
        statuses.sort_by_key(ExitStatus::success);
        Ok(statuses.remove(0))
    }

    /// Starts all of it again with the same files; returns when it is healthy.
    pub async fn restart(&mut self) -> Result<()> {
        match &mut self.shape {
            Shape::Monolith(process) => process.restart().await,
            Shape::Shared(_) => panic!("others are here, too"),
            Shape::Fleet(fleet) => {
                fleet.instances().iter_mut().try_for_each(Process::kill9)?;
                fleet.launch().await
            }
        }
    }

    /// The folder with its configuration, its logs and its data.
    pub fn folder(&self) -> &Path {
        match &self.shape {
            Shape::Monolith(process) => process.folder(),
            Shape::Fleet(fleet) => fleet.folder(),
            Shape::Shared(example) => example.folder(),
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        match &self.shape {
            Shape::Monolith(process) => process.log(),
            Shape::Fleet(fleet) => fleet.log(),
            Shape::Shared(example) => example.instances().map(Process::log).collect(),
        }
    }

    /// Its database, to look behind its back.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        self.http.base().to_owned()
    }

    /// A request without an access token.
    pub fn request(&self, method: &str, path: impl Into<String>) -> Request {
        self.http.request(method, path)
    }

    /// Registers `name` with the password `password of <name>` and logs it in.
    pub async fn user(&self, name: &str) -> User {
        User::register(&self.http, &format!("{name}{}", self.suffix)).await
    }

    /// Logs `name` in with the password that [`Server::user`] gave it, as another device.
    pub async fn login(&self, name: &str) -> User {
        User::login(&self.http, &format!("{name}{}", self.suffix)).await
    }
}
