//! Every statement is prepared against a freshly migrated database.

use crate::{ALL_STATEMENTS, ConnectSettings, Host, Pool, SslMode, migrate};

/// The database that `CHATD_TEST_SOCKET` (a socket folder) leads to; the test run makes it.
fn scratch() -> Option<ConnectSettings> {
    let folder = std::env::var_os("CHATD_TEST_SOCKET")?;
    Some(ConnectSettings {
        host: Host::Socket { folder: folder.into(), port: 5432 },
        user: "postgres".to_owned(),
        password: None,
        database: "postgres".to_owned(),
        max_connections: 2,
        ssl_mode: SslMode::Disable,
        application_name: "chatd-test".to_owned(),
    })
}

#[tokio::test]
async fn statements_fit_the_schema() {
    let Some(settings) = scratch() else {
        panic!("CHATD_TEST_SOCKET is not set; run the tests with `make test`");
    };
    let name = format!("chatd_statements_{}", std::process::id());
    let admin = Pool::open(&settings).unwrap();
    let client = admin.client().await.unwrap();
    client.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let pool = Pool::open(&ConnectSettings { database: name.clone(), ..settings }).unwrap();
    migrate(&pool).await.unwrap();
    migrate(&pool).await.unwrap();
    let mut wrong = Vec::new();
    {
        let on_it = pool.client().await.unwrap();
        for statement in ALL_STATEMENTS.iter().copied().flatten() {
            if let Err(cause) = on_it.prepare(statement.sql).await {
                let why = cause.as_db_error().map_or(cause.to_string(), ToString::to_string);
                wrong.push(format!("{}: {why}", statement.name));
            }
        }
    }
    drop(pool);
    client.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
