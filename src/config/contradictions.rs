//! What the keys of a fleet must not say together. Each refusal names the key, the value and
//! the way out.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    Bind, Config, ConfigError, Listener, ResourceName, StreamName, TaskName, assignment::Runners,
    roles::Role, workers::MAIN,
};

/// Streams that only one instance can write.
const ONE_WRITER: [StreamName; 5] = [
    StreamName::Typing,
    StreamName::ToDevice,
    StreamName::AccountData,
    StreamName::Presence,
    StreamName::PushRules,
];

type WritersOf = BTreeMap<StreamName, Vec<String>>;
type RunnersOf = BTreeMap<TaskName, Runners>;

/// Refuses a configuration that contradicts itself.
pub(crate) fn check(
    config: &Config,
    role: &Role,
    writers: &WritersOf,
    runners: &RunnersOf,
) -> Result<(), ConfigError> {
    check_name(config)?;
    check_instance_map(config)?;
    check_writers(config, role, writers)?;
    check_runners(config, role, runners)?;
    check_legacy_booleans(config, role)?;
    check_listeners(config, role, writers)?;
    check_media(config, role)?;
    check_open_replication(config)?;
    check_shared_parts(config)?;
    check_outbound(config)
}

/// Each entry says in one way where an instance is.
fn check_instance_map(config: &Config) -> Result<(), ConfigError> {
    for (name, address) in &config.workers.instance_map {
        let tcp = address.host.is_some() || address.port.is_some();
        let problem = match (&address.path, &address.host, address.port) {
            (Some(_), ..) if tcp => "has both a path and a host or port",
            (None, Some(_), None) => "has a host and no port",
            (None, None, Some(_)) => "has a port and no host",
            (None, None, None) => "says neither host and port nor path",
            _ => continue,
        };
        return Err(ConfigError::at(format!("instance_map.{name}"), problem)
            .found(address)
            .remedy("give `host` and `port` for TCP, or `path` for a unix socket"));
    }
    Ok(())
}

fn check_name(config: &Config) -> Result<(), ConfigError> {
    let name = config.workers.name.as_deref();
    let reserved = name.filter(|name| [MAIN, "master"].contains(name));
    match reserved {
        Some(name) if !config.workers.is_main() => {
            Err(ConfigError::at("worker_name", "is the name of the main process")
                .found(format!("{name:?}"))
                .remedy("give this worker a name of its own"))
        }
        _ => Ok(()),
    }
}

fn check_writers(config: &Config, role: &Role, writers: &WritersOf) -> Result<(), ConfigError> {
    for (stream, names) in writers {
        let key = format!("stream_writers.{stream}");
        if ONE_WRITER.contains(stream) && names.len() > 1 {
            return Err(ConfigError::at(key, "this stream has one writer only")
                .found(names.join(", "))
                .remedy("name one instance"));
        }
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(ConfigError::at(key, "this instance is named twice")
                    .found(name)
                    .remedy("name it once"));
            }
            reachable(config, &key, name)?;
        }
        let mine = names.iter().any(|name| name == config.instance_name());
        if mine && !role.writers.contains(stream) {
            return Err(ConfigError::at(
                key,
                format!("an instance with the role {} cannot write this stream", role.name),
            )
            .found(config.instance_name())
            .remedy("set its worker_app to synapse.app.generic_worker, or name another instance"));
        }
    }
    Ok(())
}

/// Whether others know how to call `name`.
fn reachable(config: &Config, key: &str, name: &str) -> Result<(), ConfigError> {
    if name == MAIN || config.workers.instance_map.contains_key(name) {
        return Ok(());
    }
    let known = config.workers.instance_map.keys().map(String::as_str);
    let remedy = match crate::suggest::nearest(name, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("add `{name}` to instance_map with its host and port, or its path"),
    };
    Err(ConfigError::at(key, "this instance is not in instance_map, so nobody could reach it")
        .found(name)
        .remedy(remedy))
}

/// The key that gives each task to instances.
pub(crate) fn key_of(task: TaskName) -> &'static str {
    match task {
        TaskName::Cleanup | TaskName::BackgroundUpdates => "run_background_tasks_on",
        TaskName::FederationSender => "federation_sender_instances",
        TaskName::Pusher => "pusher_instances",
        TaskName::AppserviceSender => "notify_appservices_from_worker",
        TaskName::UserDirectory => "update_user_directory_from_worker",
        TaskName::MediaCleanup => "media_instance_running_background_jobs",
    }
}

fn check_runners(config: &Config, role: &Role, runners: &RunnersOf) -> Result<(), ConfigError> {
    let me = config.instance_name();
    for (task, runners) in runners {
        let Runners::Named(names) = runners else { continue };
        let mine = names.iter().any(|name| name == me);
        if mine && !role.tasks.contains(task) {
            return Err(ConfigError::at(
                key_of(*task),
                format!("an instance with the role {} cannot do this", role.name),
            )
            .found(me)
            .remedy("set its worker_app to synapse.app.generic_worker, or name another instance"));
        }
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name))
        {
            return Err(ConfigError::at(key_of(*task), "this instance is named twice")
                .found(twice.1)
                .remedy("name it once"));
        }
        // With a role of one purpose, the boolean of the main process decides; see below.
        let named_by_key = names != &[MAIN];
        let purpose = role.tasks.as_slice() == [*task] && role.name != "media_repository";
        if purpose && named_by_key && !mine {
            return Err(ConfigError::at(
                key_of(*task),
                format!("this instance, {me}, is not named, although it is there for nothing else"),
            )
            .found(names.join(", "))
            .remedy(format!("add {me}, or do not start this instance")));
        }
    }
    Ok(())
}

/// The booleans that came before the keys with names: a role of one purpose needs its boolean
/// off, and a key with names must not stand beside a boolean that says the opposite.
fn check_legacy_booleans(config: &Config, role: &Role) -> Result<(), ConfigError> {
    let workers = &config.workers;
    let one = |name: &Option<String>| name.iter().cloned().collect::<Vec<_>>();
    let cases = [
        (
            "start_pushers",
            workers.start_pushers,
            "pusher",
            workers.pusher_instances.clone(),
            TaskName::Pusher,
        ),
        (
            "send_federation",
            workers.send_federation,
            "federation_sender",
            workers.federation_sender_instances.clone(),
            TaskName::FederationSender,
        ),
        (
            "notify_appservices",
            workers.notify_appservices,
            "appservice",
            one(&workers.notify_appservices_from_worker),
            TaskName::AppserviceSender,
        ),
        (
            "update_user_directory",
            workers.update_user_directory,
            "user_dir",
            one(&workers.update_user_directory_from_worker),
            TaskName::UserDirectory,
        ),
    ];
    for (boolean, value, app, names, task) in cases {
        let on_main = value.unwrap_or(true);
        if names.is_empty() && on_main && role.name == app {
            return Err(ConfigError::at(
                boolean,
                "is on, so that the main process does what this instance is there for",
            )
            .found("true")
            .remedy(format!(
                "add `{boolean}: false` to the shared configuration, or name this instance in {}",
                key_of(task)
            )));
        }
        let elsewhere = names.iter().any(|name| super::assignment::canonical(name) != MAIN);
        if value == Some(true) && elsewhere {
            return Err(ConfigError::at(
                boolean,
                format!("contradicts `{}`, which names {}", key_of(task), names.join(", ")),
            )
            .found("true")
            .remedy(format!("remove `{boolean}`")));
        }
    }
    Ok(())
}

fn check_listeners(config: &Config, role: &Role, writers: &WritersOf) -> Result<(), ConfigError> {
    let me = config.instance_name();
    let key = if config.workers.is_main() { "listeners" } else { "worker_listeners" };
    for (index, listener) in config.listeners.iter().enumerate() {
        for name in listener.resources.iter().flat_map(|resources| &resources.names) {
            if !role.serves.contains(name) {
                return Err(ConfigError::at(
                    format!("{key}.{index}.resources"),
                    format!("an instance with the role {} cannot serve this", role.name),
                )
                .found(name)
                .remedy("remove the resource, or use synapse.app.generic_worker"));
            }
        }
    }
    let called = config.workers.instance_map.contains_key(me)
        || (!config.workers.is_main()
            && writers.iter().any(|(stream, names)| {
                *stream != StreamName::Caches && names.iter().any(|name| name == me)
            }));
    let callable =
        config.listeners.iter().any(|listener| listener.serves(ResourceName::Replication));
    if called && !callable {
        let place = config.workers.instance_map.get(me);
        let place = place.map_or_else(|| "instance_map says".to_owned(), ToString::to_string);
        return Err(ConfigError::at(
            key,
            format!(
                "no listener of {me} has the resource `replication`, but other instances are told \
                 to call it"
            ),
        )
        .remedy(format!(
            "add a listener of type http with `resources: [{{names: [replication]}}]` at {place}"
        )));
    }
    Ok(())
}

/// A listener that is there for media on an instance that may not serve it.
fn check_media(config: &Config, role: &Role) -> Result<(), ConfigError> {
    let key = if config.workers.is_main() { "listeners" } else { "worker_listeners" };
    if config.workers.enable_media_repo || role.name == "media_repository" {
        return Ok(());
    }
    let names_media = |listener: &Listener| {
        listener.resources.iter().any(|one| one.names.contains(&ResourceName::Media))
    };
    match config.listeners.iter().position(names_media) {
        Some(index) => {
            Err(ConfigError::at(format!("{key}.{index}.resources"), "`enable_media_repo` is false")
                .found("media")
                .remedy(
                    "remove the resource, or set worker_app to synapse.app.media_repository, whose \
             instances serve media all the same",
                ))
        }
        None => Ok(()),
    }
}

/// Whoever can call an instance can do everything: beyond this machine and private networks,
/// callers must know a secret.
fn check_open_replication(config: &Config) -> Result<(), ConfigError> {
    let key = if config.workers.is_main() { "listeners" } else { "worker_listeners" };
    if config.workers.replication_secret.is_some() || config.chatd.allow_open_replication {
        return Ok(());
    }
    let open = |listener: &Listener| match &listener.bind {
        Bind::Tcp { addresses, .. } => {
            listener.serves(ResourceName::Replication) && !addresses.iter().all(is_private)
        }
        Bind::Unix { .. } => false,
    };
    match config.listeners.iter().enumerate().find(|(_, listener)| open(listener)) {
        Some((index, listener)) => Err(ConfigError::at(
            format!("{key}.{index}"),
            format!(
                "serves `replication` at {listener} without a secret, so that whoever reaches it \
                 is trusted"
            ),
        )
        .remedy(
            "add worker_replication_secret, or bind it to 127.0.0.1 or a private address; \
             `allow_open_replication: true` under `chatd` if a firewall is in front of it",
        )),
        None => Ok(()),
    }
}

/// Loopback and the addresses that are routed nowhere. "All interfaces" is none of them.
fn is_private(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// What instances need in common: a database that all can reach, the address of main.
fn check_shared_parts(config: &Config) -> Result<(), ConfigError> {
    if config.workers.is_main() {
        return Ok(());
    }
    if matches!(config.database, crate::Database::Embedded { .. }) {
        return Err(ConfigError::at("database", "a worker needs the PostgreSQL server that the main process uses too")
            .remedy("add `database:` with `name: psycopg2` and its args to the shared configuration, and give it with -c before the worker's own file"));
    }
    if !config.workers.instance_map.contains_key(MAIN) {
        return Err(ConfigError::at(
            "instance_map.main",
            "is missing, so this worker cannot call the main process",
        )
        .remedy("add `main` with the host and port, or the path, of its replication listener"));
    }
    if !config.workers.redis.enabled {
        return Err(ConfigError::at(
            "redis.enabled",
            "is off, so this worker would not hear what others write",
        )
        .found("false")
        .remedy(
            "add `redis: {enabled: true}`, with host and port or path, to the shared configuration",
        ));
    }
    Ok(())
}

fn check_outbound(config: &Config) -> Result<(), ConfigError> {
    let key = "outbound_federation_restricted_to";
    let names = &config.workers.outbound_federation_restricted_to;
    for name in names {
        reachable(config, key, &super::assignment::canonical(name))?;
    }
    if !names.is_empty() && config.workers.replication_secret.is_none() {
        return Err(ConfigError::at(key, "needs a secret between the instances")
            .found(names.join(", "))
            .remedy("add worker_replication_secret or worker_replication_secret_path"));
    }
    Ok(())
}
