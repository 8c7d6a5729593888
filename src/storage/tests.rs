//! Every statement is prepared against a freshly migrated database.

use chatd_kit::{
    Database,
    cluster::{Cluster, USER},
};

use crate::{ALL_STATEMENTS, ConnectSettings, Host, Pool, migrate};

/// Opens `database` as the server does.
fn open(database: &Database) -> Pool {
    let folder = database.cluster().socket_folder().to_owned();
    Pool::open(&ConnectSettings {
        host: Host::Socket { folder, port: 5432 },
        user: USER.to_owned(),
        password: None,
        database: database.name().to_owned(),
        max_connections: 4,
        tls: chatd_config::DatabaseTls::Never,
        connect_timeout: std::time::Duration::from_secs(10),
        application_name: "chatd-test".to_owned(),
    })
    .unwrap()
}

#[tokio::test]
async fn statements_fit_the_schema() {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    migrate(&pool).await.unwrap();
    migrate(&pool).await.unwrap();
    let client = pool.client().await.unwrap();
    let mut wrong = Vec::new();
    for statement in ALL_STATEMENTS.iter().copied().flatten() {
        if let Err(cause) = client.prepare(statement.sql).await {
            let why = cause.as_db_error().map_or(cause.to_string(), ToString::to_string);
            wrong.push(format!("{}: {why}", statement.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
