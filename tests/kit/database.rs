//! A database for each test, copied from a template that is migrated once per migration set.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

use anyhow::Result;
use tokio_postgres::Client;

use crate::{
    cluster::{Cluster, USER},
    process::Process,
    settings::Settings,
};

/// A database in a cluster; dropped with this value.
#[derive(Debug)]
pub struct Database {
    cluster: Cluster,
    name: String,
}

impl Database {
    /// A migrated database in the shared cluster. `binary` is the chatd that migrates the
    /// template if nobody has yet.
    pub async fn create(binary: &Path) -> Result<Self> {
        let cluster = Cluster::shared()?;
        let admin = cluster.connect("postgres").await?;
        let template = template(&cluster, &admin, binary).await?;
        let name = new_name();
        admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await?;
        Ok(Self { cluster, name })
    }

    /// An empty database in `cluster`.
    pub async fn empty(cluster: Cluster) -> Result<Self> {
        let name = new_name();
        let admin = cluster.connect("postgres").await?;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        Ok(Self { cluster, name })
    }

    /// A copy of it. Whoever is connected to it is thrown out.
    pub async fn copy(&self) -> Result<Self> {
        let (name, admin) = (new_name(), self.cluster.connect("postgres").await?);
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        admin.query(others, &[&self.name]).await?;
        admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {}", self.name)).await?;
        Ok(Self { cluster: self.cluster.clone(), name })
    }

    /// A connection of the test's own, to look behind the server's back.
    pub async fn connect(&self) -> Result<Client> {
        self.cluster.connect(&self.name).await
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster that it is in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// `database` as homeserver.yaml has it.
    pub fn config(&self) -> serde_json::Value {
        config(&self.cluster, &self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (cluster, name) = (self.cluster.clone(), std::mem::take(&mut self.name));
        // A runtime of its own, since the test's is busy dropping us. What fails here (a killed
        // cluster) is a leftover, and those go at the next start.
        let _ = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let admin = cluster.connect("postgres").await?;
                let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                anyhow::Ok(admin.batch_execute(&sql).await?)
            })
        })
        .join();
    }
}

/// A name that tells to which process the database belongs.
fn new_name() -> String {
    format!("test_{}_{:08x}", std::process::id(), rand::random::<u32>())
}

/// The name of the template of this migration set, made if it is absent.
async fn template(cluster: &Cluster, admin: &Client, binary: &Path) -> Result<String> {
    let name = format!("template_{:016x}", migration_set());
    let _alone = cluster.lock("template.lock")?;
    drop_leftovers(admin).await?;
    if exists(admin, &name).await? {
        return Ok(name);
    }
    let making = format!("making_{}", std::process::id());
    // One that failed in this process stands there still.
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {making} WITH (FORCE)")).await?;
    admin.batch_execute(&format!("CREATE DATABASE {making}")).await?;
    let database = config(cluster, &making);
    let mut process = Process::start(binary, &Settings::new(), &database).await?;
    process.sigterm().await?;
    admin.batch_execute(&format!("ALTER DATABASE {making} RENAME TO {name}")).await?;
    Ok(name)
}

fn config(cluster: &Cluster, name: &str) -> serde_json::Value {
    serde_json::json!({
        "name": "psycopg2",
        "args": {
            "user": USER,
            "dbname": name,
            "host": cluster.socket_folder(),
            "cp_min": 1,
            "cp_max": 10,
        },
    })
}

async fn exists(admin: &Client, name: &str) -> Result<bool> {
    let row = admin.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await?;
    Ok(row.is_some())
}

/// Drops the databases of processes that ended without doing so.
async fn drop_leftovers(admin: &Client) -> Result<()> {
    let sql = "SELECT datname FROM pg_database WHERE datname LIKE 'test\\_%' OR datname LIKE 'making\\_%'";
    for row in admin.query(sql, &[]).await? {
        let name: String = row.get(0);
        let process = name.split('_').nth(1).unwrap_or_default();
        if !Path::new("/proc").join(process).exists() {
            admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        }
    }
    Ok(())
}

/// Changes with any migration.
fn migration_set() -> u64 {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/storage/migrations");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    let mut set = DefaultHasher::new();
    for file in files {
        (file.file_name(), std::fs::read(&file).unwrap_or_default()).hash(&mut set);
    }
    set.finish()
}
