//! `database`: where PostgreSQL is.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use figment::Figment;
use serde::Deserialize;

use crate::{ConfigError, units::Secret};

/// Where the data is.
#[derive(Clone, Debug)]
pub enum Database {
    /// A private PostgreSQL cluster under the data directory, started and stopped by chatd.
    Embedded {
        /// Connections to keep.
        pool: PoolSize,
    },
    /// A server that somebody else runs.
    Postgres(PostgresDatabase),
}

impl Database {
    /// Connections to keep.
    pub fn pool(&self) -> PoolSize {
        match self {
            Self::Embedded { pool } => *pool,
            Self::Postgres(postgres) => postgres.pool,
        }
    }
}

/// `database.args` of a server that somebody else runs.
#[derive(Clone, Debug)]
pub struct PostgresDatabase {
    /// `host`: a name, an address, or the folder of a unix socket (it starts with `/`).
    pub host: String,
    /// `port`. Default 5432.
    pub port: u16,
    /// `user`.
    pub user: Option<String>,
    /// `password` or `password_path`.
    pub password: Option<Secret>,
    /// `dbname` or `database`; PostgreSQL's default is the user's name.
    pub dbname: Option<String>,
    /// `sslmode` and `sslrootcert`.
    pub tls: DatabaseTls,
    /// `connect_timeout`. Default 10 seconds.
    pub connect_timeout: Duration,
    /// `application_name`. Default `chatd`.
    pub application_name: String,
    /// `cp_min` and `cp_max`.
    pub pool: PoolSize,
}

/// Number of connections that one instance keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// `cp_min`. Default 1.
    pub min: usize,
    /// `cp_max`. Default 10.
    pub max: usize,
}

impl Default for PoolSize {
    fn default() -> Self {
        Self { min: 1, max: 10 }
    }
}

/// How a TCP connection to PostgreSQL is secured. A unix socket never is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DatabaseTls {
    /// `disable` and `allow`: not at all.
    Never,
    /// `prefer`: encrypted if the server can; whoever answers is believed.
    #[default]
    IfOffered,
    /// `require`: always encrypted; whoever answers is believed.
    Required,
    /// `verify-ca`: the server's certificate comes from one of the authorities in this PEM file.
    FromAuthority(PathBuf),
    /// `verify-full`: … and is for the host that was asked for.
    ForHost(PathBuf),
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SslMode {
    Disable,
    Allow,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `database` as the files write it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawDatabase {
    name: Option<String>,
    args: RawArgs,
}

/// `database.args`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawArgs {
    host: Option<String>,
    #[serde(deserialize_with = "port")]
    port: Option<u16>,
    user: Option<String>,
    password: Option<Secret>,
    password_path: Option<PathBuf>,
    dbname: Option<String>,
    database: Option<String>,
    sslmode: SslMode,
    sslrootcert: Option<PathBuf>,
    connect_timeout: Option<u64>,
    application_name: Option<String>,
    cp_min: Option<usize>,
    cp_max: Option<usize>,
}

/// Arguments of psycopg2 that change nothing for chatd.
const IGNORED_ARGS: [&str; 8] = [
    "cp_openfun",
    "cp_reconnect",
    "cp_noisy",
    "cp_good_sql",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
];

/// Arguments that [`RawArgs`] has.
const ARGS: [&str; 13] = [
    "host",
    "port",
    "user",
    "password",
    "password_path",
    "dbname",
    "database",
    "sslmode",
    "sslrootcert",
    "connect_timeout",
    "application_name",
    "cp_min",
    "cp_max",
];

/// Reads `database` from the merged tree.
pub(crate) fn read(figment: &Figment, warnings: &mut Vec<String>) -> Result<Database, ConfigError> {
    if figment.contains("databases") {
        return Err(ConfigError::at("databases", "several databases are not supported")
            .remedy("keep all data in one PostgreSQL database and name it in `database`"));
    }
    if !figment.contains("database") {
        return Ok(Database::Embedded { pool: PoolSize::default() });
    }
    let raw: RawDatabase = figment
        .extract_inner("database")
        .map_err(|error| crate::load::explain_inner(error, "database"))?;
    warn_of_args(figment, warnings);
    let args = raw.args;
    let default = PoolSize::default();
    let max = args.cp_max.unwrap_or(default.max.max(args.cp_min.unwrap_or(0)));
    let pool = PoolSize { min: args.cp_min.unwrap_or(default.min.min(max)), max };
    match raw.name.as_deref() {
        Some("embedded") => Ok(Database::Embedded { pool }),
        Some("psycopg2" | "postgres" | "postgresql") => postgres(args, pool),
        Some("sqlite3") => {
            Err(ConfigError::at("database.name", "chatd keeps its data in PostgreSQL only")
                .found("\"sqlite3\"")
                .remedy(
                    "write `name: embedded` for a PostgreSQL that chatd runs by itself, or \
                 `name: psycopg2` with the args of your server",
                ))
        }
        Some(other) => Err(ConfigError::at("database.name", "expected psycopg2 or embedded")
            .found(format!("{other:?}"))),
        None => Err(ConfigError::at("database.name", "is missing")
            .remedy("write `name: psycopg2` or `name: embedded`")),
    }
}

fn postgres(args: RawArgs, pool: PoolSize) -> Result<Database, ConfigError> {
    if let (Some(dbname), Some(database)) = (&args.dbname, &args.database)
        && dbname != database
    {
        return Err(ConfigError::at(
            "database.args.dbname",
            "contradicts `database.args.database`",
        )
        .found(format!("{dbname:?}"))
        .remedy("keep one of the two"));
    }
    Ok(Database::Postgres(PostgresDatabase {
        host: args.host.unwrap_or_else(|| "localhost".to_owned()),
        port: args.port.unwrap_or(5432),
        user: args.user,
        password: crate::secrets::one_of(
            "database.args.password",
            args.password,
            args.password_path.as_ref(),
        )?,
        dbname: args.dbname.or(args.database),
        tls: tls(args.sslmode, args.sslrootcert)?,
        connect_timeout: Duration::from_secs(args.connect_timeout.unwrap_or(10)),
        application_name: args.application_name.unwrap_or_else(|| "chatd".to_owned()),
        pool,
    }))
}

/// As libpq has it, `require` with authorities is `verify-ca`.
fn tls(mode: SslMode, authorities: Option<PathBuf>) -> Result<DatabaseTls, ConfigError> {
    Ok(match (mode, authorities) {
        (SslMode::Disable | SslMode::Allow, _) => DatabaseTls::Never,
        (SslMode::Prefer, _) => DatabaseTls::IfOffered,
        (SslMode::Require, None) => DatabaseTls::Required,
        (SslMode::Require | SslMode::VerifyCa, Some(file)) => DatabaseTls::FromAuthority(file),
        (SslMode::VerifyFull, Some(file)) => DatabaseTls::ForHost(file),
        (SslMode::VerifyCa | SslMode::VerifyFull, None) => {
            return Err(ConfigError::at(
                "database.args.sslrootcert",
                "is missing, and `sslmode` asks for a certificate that can be checked",
            )
            .remedy(
                "name the PEM file of the authority that signed the certificate of PostgreSQL; \
                 those of the system are in /etc/ssl/certs/ca-certificates.crt",
            ));
        }
    })
}

fn warn_of_args(figment: &Figment, warnings: &mut Vec<String>) {
    let Ok(args) = figment.extract_inner::<BTreeMap<String, serde_json::Value>>("database.args")
    else {
        return;
    };
    for arg in args.keys().map(String::as_str) {
        if ARGS.contains(&arg) || IGNORED_ARGS.contains(&arg) {
            continue;
        }
        warnings.push(match crate::suggest::nearest(arg, ARGS) {
            Some(near) => format!("`database.args.{arg}` has no effect; did you mean `{near}`?"),
            None => format!("`database.args.{arg}` has no effect"),
        });
    }
}

/// psycopg2 takes the port as text too.
fn port<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    use serde::de::{Error, Unexpected};
    let text = crate::units::text_or_number(deserializer)?;
    let port = text.parse().ok().filter(|port| *port > 0);
    port.map(Some).ok_or_else(|| Error::invalid_value(Unexpected::Str(&text), &"a port number"))
}
