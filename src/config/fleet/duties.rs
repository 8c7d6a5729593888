//! Work that nobody does, or that two would do: writers and runners without an instance, groups
//! of endpoints that no listener has, instances that are there for nothing.

use super::{Finding, Fleet, Member};
use crate::{
    Bind, ConfigError, ListenerKind, ResourceName, RouterName, StreamName, TaskName,
    assignment::canonical, contradictions::key_of, suggest, workers::MAIN,
};

/// Writers, runners and other instances that are named and not there.
pub(super) fn check(fleet: &Fleet) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !fleet.is_incomplete() {
        findings.extend(absent_instances(fleet));
        findings.extend(tasks_of_roles(fleet));
    }
    findings
}

/// Every name that the keys of `config` give something to, with the key.
fn named(member: &Member) -> Vec<(String, String)> {
    let mut named = Vec::new();
    for (stream, names) in &member.assignment.writers_of {
        if *stream != StreamName::Caches {
            named.extend(
                names.iter().map(|name| (format!("stream_writers.{stream}"), name.clone())),
            );
        }
    }
    for (task, names) in &member.assignment.runners_of {
        named.extend(names.iter().map(|name| (key_of(*task).to_owned(), name.clone())));
    }
    let outbound = &member.config.workers.outbound_federation_restricted_to;
    let key = "outbound_federation_restricted_to";
    named.extend(outbound.iter().map(|name| (key.to_owned(), canonical(name))));
    named
}

fn absent_instances(fleet: &Fleet) -> Vec<Finding> {
    let Some(main) = fleet.main() else { return Vec::new() };
    let mut findings = Vec::new();
    let mut missing = Vec::new();
    for (key, name) in named(main) {
        if fleet.member(&name).is_none() {
            let error = ConfigError::at(
                key,
                "no file has this instance, so that nobody does what is given to it",
            )
            .found(&name)
            .remedy(remedy(fleet, &name));
            let error = main.config.origins.locate(error);
            findings.push(Finding::error(MAIN, error).about([]));
            missing.push(name);
        }
    }
    for name in fleet.instance_map().keys() {
        if fleet.member(name).is_none() && !missing.iter().any(|one| one == name) {
            let error =
                ConfigError::at(format!("instance_map.{name}"), "no file has this instance")
                    .remedy(remedy(fleet, name));
            findings.push(Finding::warning(MAIN, main.config.origins.locate(error)).about([]));
        }
    }
    findings
}

fn remedy(fleet: &Fleet, name: &str) -> String {
    let names = fleet.members.iter().map(Member::name);
    match suggest::nearest(name, names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("give the file with `worker_name: {name}` too, or name another instance"),
    }
}

/// Tasks that a boolean took from the main process, for whoever has the role for them.
fn tasks_of_roles(fleet: &Fleet) -> Vec<Finding> {
    let Some(main) = fleet.main() else { return Vec::new() };
    let mut findings = Vec::new();
    for (task, names) in &main.assignment.runners_of {
        if !names.is_empty() {
            continue;
        }
        let runners: Vec<_> = fleet
            .members
            .iter()
            .filter(|member| member.assignment.runs(*task))
            .map(Member::name)
            .collect();
        let key = key_of(*task);
        let mistake = match (runners.len(), task) {
            (0, _) => Finding::warning(
                MAIN,
                ConfigError::new(format!("nobody does `{task}`: the main process is told not to"))
                    .remedy(format!("name an instance in {key}, if this is not what you want")),
            ),
            (1, _) | (_, TaskName::Pusher | TaskName::FederationSender) => continue,
            _ => Finding::error(
                MAIN,
                ConfigError::new(format!("only one instance can do `{task}`"))
                    .remedy(format!("name one of them in {key}")),
            ),
        };
        findings.push(mistake.about(runners));
    }
    findings
}

/// Groups of endpoints that no instance serves, and instances that do nothing.
pub(super) fn check_coverage(fleet: &Fleet) -> Vec<Finding> {
    let mut findings = Vec::new();
    if fleet.is_incomplete() {
        return findings;
    }
    let wanted = [
        (RouterName::ClientSync, "clients", ResourceName::Client),
        (RouterName::FederationSend, "other servers", ResourceName::Federation),
        (RouterName::Media, "the content repository", ResourceName::Media),
    ];
    for (router, whom, resource) in wanted {
        if !fleet.members.iter().any(|member| member.answers(router)) {
            let text = format!("no listener serves {whom}: none has the resource `{resource}`");
            findings.push(Finding::warning(MAIN, ConfigError::new(text)).about([]));
        }
    }
    findings.extend(fleet.members.iter().filter(|member| is_idle(member)).map(|member| {
        let error = ConfigError::new("does nothing: it writes no stream, has no task, and no listener for clients, servers or media")
            .remedy("name it in stream_writers or one of the keys for tasks, give it a listener, or do not start it");
        Finding::warning(member.name(), error)
    }));
    findings.extend(fleet.members.iter().filter_map(replication_among_others));
    findings
}

fn is_idle(member: &Member) -> bool {
    let routers = [RouterName::ClientVersions, RouterName::FederationSend, RouterName::Media];
    let outbound = &member.config.workers.outbound_federation_restricted_to;
    !member.is_main()
        && member.assignment.tasks.is_empty()
        && member.assignment.writers.iter().all(|stream| *stream == StreamName::Caches)
        && !routers.iter().any(|router| member.answers(*router))
        && !outbound.iter().any(|name| name == member.name())
}

/// A listener for the proxy that other instances use too is one mistake away from the internet.
fn replication_among_others(member: &Member) -> Option<Finding> {
    let public = [ResourceName::Client, ResourceName::Federation, ResourceName::Media];
    let mixed = member.config.listeners.iter().find(|listener| {
        listener.kind == ListenerKind::Http
            && listener.serves(ResourceName::Replication)
            && public.iter().any(|name| listener.serves(*name))
    })?;
    let place = match &mixed.bind {
        Bind::Tcp { port, .. } => format!("port {port}"),
        Bind::Unix { path, .. } => path.display().to_string(),
    };
    let error = ConfigError::new(format!(
        "{place} serves `replication` beside what the reverse proxy needs"
    ))
    .remedy("give `replication` a listener of its own, which the proxy does not know");
    Some(Finding::warning(member.name(), error))
}
