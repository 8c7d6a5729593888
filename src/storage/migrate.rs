//! Embedded, forward-only migrations. The first instance migrates, the others wait for it.

use deadpool_postgres::Client;

use crate::{Error, Pool, Result};

macro_rules! migrations {
    ($($name:literal),* $(,)?) => {
        const MIGRATIONS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("migrations/", $name, ".sql")))),*];
    };
}

migrations![
    "0001_streams",
    "0002_rooms",
    "0003_user_streams",
    "0004_accounts",
    "0005_keys",
    "0006_sync",
    "0007_state_past",
    "0008_event_txns",
    "0009_seats",
    "0010_forks",
    "0011_profile_changes",
    "0012_fleet",
    "0013_effects",
    "0014_inbox_removed",
    "0015_leases",
    "0016_retired_writers",
    "0017_server_keys",
    "0018_sending",
    "0020_inbound",
    "0021_times",
    "0022_openid",
    "0023_sending_edus",
    "0024_partial_rooms",
];

/// Key of the advisory lock that makes instances migrate one after the other.
const MIGRATION_LOCK: i64 = 0x6368_6174_6400;

/// Brings the schema up to date. Each file is one transaction; a failed one leaves the schema
/// as the files before it made it.
pub async fn migrate(pool: &Pool) -> Result<()> {
    // Not given back to the pool: the lock goes with the connection, whatever happens.
    let mut client = Client::take(pool.client().await?);
    let lost = |cause| Error::from_postgres("migration", cause);
    client
        .batch_execute(&format!("SELECT pg_advisory_lock({MIGRATION_LOCK})"))
        .await
        .map_err(lost)?;
    // `IF NOT EXISTS` would be a notice in the log at each start.
    let found = client.query_one("SELECT to_regclass('schema_migrations') IS NOT NULL", &[]).await;
    if !found.map_err(lost)?.get::<_, bool>(0) {
        client
            .batch_execute(
                "CREATE TABLE schema_migrations (
                     name text PRIMARY KEY,
                     applied_at timestamptz NOT NULL DEFAULT now())",
            )
            .await
            .map_err(lost)?;
    }
    let done: Vec<String> = client
        .query("SELECT name FROM schema_migrations", &[])
        .await
        .map_err(lost)?
        .iter()
        .map(|row| row.get(0))
        .collect();
    for (name, sql) in MIGRATIONS.iter().filter(|(name, _)| !done.iter().any(|d| d == name)) {
        tracing::info!(migration = name, "migrating the database");
        let txn = client.transaction().await.map_err(lost)?;
        txn.batch_execute(sql).await.map_err(|cause| Error::from_postgres(name, cause))?;
        txn.execute("INSERT INTO schema_migrations (name) VALUES ($1)", &[name])
            .await
            .map_err(lost)?;
        txn.commit().await.map_err(lost)?;
    }
    Ok(())
}
