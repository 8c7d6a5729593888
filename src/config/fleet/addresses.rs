//! Where instances are called and where they listen: whether the one fits the other, and whether
//! two want the same port or socket.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use super::{Finding, Fleet, Member};
use crate::{Bind, ConfigError, InstanceAddress, Listener, ResourceName, workers::MAIN};

/// Everything about addresses.
pub(super) fn check(fleet: &Fleet) -> Vec<Finding> {
    let mut findings = same_addresses(fleet);
    findings.extend(fleet.members.iter().filter_map(|member| misdirected(fleet, member)));
    findings.extend(sockets(fleet));
    findings.extend(ports(fleet));
    findings.extend(silent_main(fleet));
    findings
}

/// Two entries of `instance_map` with one address.
fn same_addresses(fleet: &Fleet) -> Vec<Finding> {
    let mut seen = BTreeMap::<String, &str>::new();
    let mut findings = Vec::new();
    for (name, address) in fleet.instance_map() {
        if let Some(other) = seen.insert(address.to_string(), name) {
            let error = ConfigError::at(
                format!("instance_map.{name}"),
                format!("is the address of `{other}` too"),
            )
            .found(address)
            .remedy("give each instance the address of its own replication listener");
            let error = match fleet.main() {
                Some(main) => main.config.origins.locate(error),
                None => error,
            };
            findings.push(Finding::error(name, error).about([other, name]));
        }
    }
    findings
}

/// `instance_map` sends others where this instance does not listen for them.
fn misdirected(fleet: &Fleet, member: &Member) -> Option<Finding> {
    let map = fleet.instance_map();
    let address = map.get(member.name())?;
    let listeners: Vec<_> = member.listeners_for(ResourceName::Replication).collect();
    if listeners.is_empty() || listeners.iter().any(|listener| leads_to(address, listener)) {
        return None;
    }
    let places: Vec<_> = listeners.iter().map(ToString::to_string).collect();
    let error = ConfigError::at(
        format!("instance_map.{}", member.name()),
        format!("{} listens for other instances at {} only", member.name(), places.join(" and ")),
    )
    .found(address)
    .remedy("write the port or path of that listener");
    let error = member.config.origins.locate(error);
    // A port may be mapped to another one between machines, but not on one machine.
    let local = address.path.is_some() || address.host.as_deref().is_some_and(is_this_machine);
    Some(if local {
        Finding::error(member.name(), error)
    } else {
        Finding::warning(member.name(), error)
    })
}

fn leads_to(address: &InstanceAddress, listener: &Listener) -> bool {
    match &listener.bind {
        Bind::Tcp { port, .. } => address.path.is_none() && address.port == Some(*port),
        Bind::Unix { path, .. } => address.path.as_deref() == Some(path),
    }
}

/// One listener of one instance.
#[derive(Clone, Copy)]
struct Place<'a> {
    member: &'a Member,
    index: usize,
    listener: &'a Listener,
}

impl<'a> Place<'a> {
    fn all(fleet: &'a Fleet) -> impl Iterator<Item = Self> {
        fleet.members.iter().flat_map(|member| {
            let listeners = member.config.listeners.iter().enumerate();
            listeners.map(move |(index, listener)| Self { member, index, listener })
        })
    }

    /// What is wrong with it, said of its `part`.
    fn mistake(&self, part: &str, problem: String) -> ConfigError {
        let key = format!("{}.{}.{part}", self.member.listeners_key(), self.index);
        self.member.config.origins.locate(ConfigError::at(key, problem))
    }
}

/// Two instances on one unix socket.
fn sockets(fleet: &Fleet) -> Vec<Finding> {
    let mut users = BTreeMap::<&Path, Vec<Place<'_>>>::new();
    for place in Place::all(fleet) {
        if let Bind::Unix { path, .. } = &place.listener.bind {
            users.entry(path).or_default().push(place);
        }
    }
    let mut findings = Vec::new();
    for (path, users) in users {
        let [first, .., last] = &users[..] else { continue };
        let error = last
            .mistake("path", format!("is a listener of {} too", first.member.name()))
            .found(path.display())
            .remedy("give each instance a socket of its own");
        let names = users.iter().map(|place| place.member.name());
        findings.push(Finding::error(MAIN, error).about(names));
    }
    findings
}

/// Two instances on one port of one address. On different machines, or in containers, that is
/// well; where the configuration does not tell, it is a warning.
fn ports(fleet: &Fleet) -> Vec<Finding> {
    let mut users = BTreeMap::<u16, Vec<(Place<'_>, &[IpAddr])>>::new();
    for place in Place::all(fleet) {
        if let Bind::Tcp { addresses, port } = &place.listener.bind {
            users.entry(*port).or_default().push((place, addresses));
        }
    }
    users.into_iter().flat_map(|(port, users)| at_one_port(fleet, port, &users)).collect()
}

fn at_one_port(fleet: &Fleet, port: u16, users: &[(Place<'_>, &[IpAddr])]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut doubtful = Vec::new();
    for (index, (place, addresses)) in users.iter().enumerate() {
        let name = place.member.name();
        for (earlier, others) in &users[..index] {
            let other = earlier.member.name();
            if other == name || !overlap(addresses, others) {
                continue;
            }
            match on_one_machine(fleet, place.member, earlier.member) {
                Some(true) => {
                    let error = place
                        .mistake(
                            "port",
                            format!("{other} listens at this port of this machine too"),
                        )
                        .found(port)
                        .remedy("give each instance a port of its own");
                    findings.push(Finding::error(name, error).about([other, name]));
                }
                Some(false) => {}
                None => {
                    let new = [other, name].into_iter().filter(|one| !doubtful.contains(one));
                    doubtful.extend(new.collect::<Vec<_>>());
                }
            }
        }
    }
    if !doubtful.is_empty() {
        let error = ConfigError::new(format!(
            "all listen at port {port}, which needs a machine or container for each"
        ));
        findings.push(Finding::warning(MAIN, error).about(doubtful));
    }
    findings
}

fn overlap(these: &[IpAddr], those: &[IpAddr]) -> bool {
    let all = |addresses: &[IpAddr]| addresses.iter().any(IpAddr::is_unspecified);
    all(these) || all(those) || these.iter().any(|address| those.contains(address))
}

/// Whether two instances share a machine, as far as `instance_map` tells: a loopback address in
/// it works on one machine only.
fn on_one_machine(fleet: &Fleet, this: &Member, that: &Member) -> Option<bool> {
    let map = fleet.instance_map();
    let host = |member: &Member| map.get(member.name()).and_then(|one| one.host.as_deref());
    if map.values().any(|one| one.host.as_deref().is_some_and(is_this_machine)) {
        return Some(true);
    }
    match (host(this), host(that)) {
        (Some(this), Some(that)) => Some(this == that),
        _ => None,
    }
}

/// Whether `host` is a name or address of the machine that asks.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Workers call the main process even where its own files do not say where it is.
fn silent_main(fleet: &Fleet) -> Option<Finding> {
    let main = fleet.main().filter(|_| fleet.members.len() > 1)?;
    let silent = main.listeners_for(ResourceName::Replication).next().is_none();
    let error = ConfigError::at("listeners", "no listener of main has the resource `replication`, but its workers call it")
        .remedy("add a listener of type http with `resources: [{names: [replication]}]`, where instance_map says");
    silent.then(|| Finding::error(MAIN, main.config.origins.locate(error)))
}
