//! What all instances must say alike: a key in the file of one worker replaces the shared one for
//! that worker only, and then two instances believe different things.

use super::{Finding, Fleet, Member};
use crate::{ConfigError, Database};

/// A part of a configuration as text.
type Show = fn(&Member) -> String;

/// What is compared, and how it reads in a message.
const COMMON: &[(&str, Show)] = &[
    ("server_name", |one| one.config.server_name.to_string()),
    ("database", |one| database(&one.config.database)),
    ("redis", |one| {
        let redis = &one.config.workers.redis;
        match (&redis.url, &redis.path) {
            (Some(url), _) => without_password(url),
            (None, Some(path)) => format!("{} database {}", path.display(), redis.dbid),
            (None, None) => format!("{}:{} database {}", redis.host, redis.port, redis.dbid),
        }
    }),
];

/// Two of one name, and keys that one instance has otherwise than the others.
pub(super) fn check(fleet: &Fleet) -> Vec<Finding> {
    let mut findings = same_names(fleet);
    findings.extend(differences(fleet));
    findings.extend(fleet.members.iter().filter_map(wrong_listeners));
    findings
}

fn same_names(fleet: &Fleet) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, member) in fleet.members.iter().enumerate() {
        if fleet.members[..index].iter().any(|other| other.name() == member.name()) {
            let error = ConfigError::at("worker_name", "is the name of two instances")
                .found(member.name())
                .remedy("give each worker a worker_name of its own");
            findings.push(Finding::error(member.name(), member.config.origins.locate(error)));
        }
    }
    findings
}

fn differences(fleet: &Fleet) -> Vec<Finding> {
    let Some(main) = fleet.main() else { return Vec::new() };
    let mut findings = Vec::new();
    for member in fleet.members.iter().filter(|member| !member.is_main()) {
        let mut differ = |key: &str, differs: bool, mine: String| {
            if differs {
                let error = ConfigError::at(key, "differs from what the main process has")
                    .found(mine)
                    .remedy("keep it in the shared configuration only");
                findings.push(Finding::error(member.name(), member.config.origins.locate(error)));
            }
        };
        for (key, show) in COMMON {
            differ(key, show(member) != show(main), show(member));
        }
        for (stream, writers) in &member.assignment.writers_of {
            let differs = writers.as_slice() != main.assignment.writers_of(*stream);
            differ(&format!("stream_writers.{stream}"), differs, writers.join(", "));
        }
        let secret = |one: &Member| {
            one.config.workers.replication_secret.as_ref().map(|secret| secret.expose().to_owned())
        };
        let secrets_differ = secret(member) != secret(main);
        differ("worker_replication_secret", secrets_differ, "***".to_owned());
        for (name, address) in &member.config.workers.instance_map {
            let theirs = main.config.workers.instance_map.get(name);
            let differs = theirs.is_some_and(|theirs| theirs.to_string() != address.to_string());
            differ(&format!("instance_map.{name}"), differs, address.to_string());
        }
    }
    findings
}

fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
    match rest.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://***@{place}"),
        None => url.to_owned(),
    }
}

fn database(database: &Database) -> String {
    match database {
        Database::Embedded { .. } => "embedded".to_owned(),
        Database::Postgres(postgres) => format!(
            "{}, port {}, {}",
            postgres.host,
            postgres.port,
            postgres.dbname.as_deref().or(postgres.user.as_deref()).unwrap_or("the default")
        ),
    }
}

/// `listeners` in the file of a worker has no effect: it belongs to the main process.
fn wrong_listeners(member: &Member) -> Option<Finding> {
    let own = member.own.as_ref().filter(|_| !member.is_main())?;
    let misplaced = own.values.contains_key("listeners");
    let error = ConfigError::at("listeners", "has no effect in the file of a worker")
        .remedy("call it `worker_listeners`")
        .in_file(&own.file);
    misplaced.then(|| Finding::warning(member.name(), member.config.origins.locate(error)))
}
