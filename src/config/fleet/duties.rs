//! Work that nobody does, or that two would do: writers and runners without an instance, groups
//! of endpoints that no listener has, instances that are there for nothing.

use super::{Finding, Fleet, Member};
use crate::{
    ConfigError, ListenerKind, ProxyPools, ResourceName, RouterName, StreamName, TaskName,
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
    for pool in ProxyPools::NAMES {
        let names = member.config.chatd.proxy_pools.of(pool);
        named.extend(names.iter().map(|name| (format!("chatd.proxy_pools.{pool}"), name.clone())));
    }
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
        let at_key = |problem: String| ConfigError::at(key_of(*task), problem);
        let mistake = match (runners.len(), task) {
            (0, _) => Finding::warning(
                MAIN,
                at_key(format!("names nobody, and the main process is told not to do `{task}`"))
                    .remedy("name an instance, if nobody is not what you want"),
            ),
            (1, _) | (_, TaskName::Pusher | TaskName::FederationSender) => continue,
            _ => Finding::error(
                MAIN,
                at_key(format!("names nobody, and only one instance can do `{task}`"))
                    .remedy(format!("name one of {}", runners.join(", "))),
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
    findings.extend(fleet.members.iter().filter(|member| is_idle(member)).map(idle));
    findings.extend(fleet.members.iter().filter_map(replication_among_others));
    findings
}

fn idle(member: &Member) -> Finding {
    let error = ConfigError::at(
        "worker_name",
        "does nothing: it writes no stream, has no task, and no listener for clients, servers or \
         media",
    )
    .found(member.name())
    .remedy(
        "name it in stream_writers or one of the keys for tasks, give it a listener, or do not \
         start it",
    );
    Finding::warning(member.name(), member.config.origins.locate(error))
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
    let mut listeners = member.config.listeners.iter();
    let index = listeners.position(|listener| {
        listener.kind == ListenerKind::Http
            && listener.serves(ResourceName::Replication)
            && public.iter().any(|name| listener.serves(*name))
    })?;
    let error = ConfigError::at(
        format!("{}.{index}", member.listeners_key()),
        "serves `replication` beside what the reverse proxy needs",
    )
    .found(&member.config.listeners[index])
    .remedy("give `replication` a listener of its own, which the proxy does not know");
    Some(Finding::warning(member.name(), member.config.origins.locate(error)))
}
