//! Which instances are behind each family of paths, and what else a proxy must know. The same for
//! every kind of proxy.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use super::routes::{Family, ProxyRoute, Target, families};
use crate::{
    Bind, ConfigError, Fleet, ListenerKind, Member, ResourceName, RouterName, StreamName, Tls,
};

/// What a pool of `chatd.proxy_pools` can be.
pub(crate) const POOLS: [(&str, Target); 6] = [
    ("sync", Target::Sync),
    ("initial_sync", Target::InitialSync),
    ("rooms", Target::Rooms),
    ("federation", Target::Federation),
    ("media", Target::Media),
    ("clients", Target::Clients),
];

/// Where a proxy finds an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Upstream {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// Instances that share the requests of some families.
#[derive(Debug)]
pub(crate) struct Pool {
    pub target: Target,
    /// Name of the instance and where it is.
    pub members: Vec<(String, Upstream)>,
    /// Who takes over while the only member is away.
    pub backups: Vec<(String, Upstream)>,
}

/// Everything that a generated file says.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Names under which clients and servers come.
    pub hosts: Vec<String>,
    /// Families in the order in which they are asked, with the pool that each goes to.
    pub families: Vec<(Family, Target)>,
    pub pools: Vec<Pool>,
    pub upload_bytes: u64,
    /// Longest time for an answer.
    pub patience: Duration,
    /// Certificate of the configuration.
    pub tls: Option<Tls>,
    /// Whether other servers come to port 8448.
    pub federation_port: bool,
    /// What an admin should know, for comments.
    pub notes: Vec<String>,
}

/// More than the longest poll, so that the proxy is never the first to give up.
const MARGIN: Duration = Duration::from_secs(60);

impl Plan {
    /// Decides who answers what.
    pub fn of(fleet: &Fleet, routes: &[ProxyRoute]) -> Result<Self, ConfigError> {
        let main = fleet
            .main()
            .ok_or_else(|| ConfigError::new("the configuration of the main process is wrong"))?;
        let mut chooser = Chooser::new(fleet, main);
        let mut pools = BTreeMap::new();
        let mut chosen = Vec::new();
        for family in families(routes) {
            let target = chooser.target(family.target);
            let members = chooser.members(target);
            if members.is_empty() {
                return Err(ConfigError::new(format!(
                    "no instance has a listener for {}",
                    family.what
                ))
                .remedy("give the main process or a worker a listener with the resources client and federation"));
            }
            pools.entry(target).or_insert(members);
            chosen.push((family, target));
        }
        // Sync requests without `since` are told apart by the query, not by the path.
        let initial = chooser.target(Target::InitialSync);
        pools.entry(initial).or_insert_with(|| chooser.members(initial));
        let mut hosts = vec![main.config.server_name.host().to_owned()];
        let public = main.config.public_baseurl.as_deref().and_then(host_of);
        hosts.splice(0..0, public.filter(|host| *host != hosts[0]).map(str::to_owned));
        Ok(Self {
            hosts,
            families: chosen,
            pools: pools
                .into_iter()
                .map(|(target, members)| chooser.pool(target, members))
                .collect(),
            upload_bytes: main.config.max_upload_size.max(main.config.chatd.max_request_body),
            tls: main.config.tls.clone(),
            patience: main.config.chatd.max_sync_timeout + MARGIN,
            federation_port: !main.config.serve_server_wellknown,
            notes: chooser.notes,
        })
    }

    /// The pool of initial syncs, and whether it is one of its own.
    pub fn initial_sync(&self) -> Target {
        let own = self.pools.iter().any(|pool| pool.target == Target::InitialSync);
        if own { Target::InitialSync } else { self.sync() }
    }

    /// The pool of syncs with `since`.
    pub fn sync(&self) -> Target {
        let own = self.pools.iter().any(|pool| pool.target == Target::Sync);
        if own { Target::Sync } else { Target::Clients }
    }
}

fn host_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    rest.split(['/', ':']).next().filter(|host| !host.is_empty())
}

/// Finds the instances of each pool.
struct Chooser<'a> {
    fleet: &'a Fleet,
    /// What each instance is there for; several purposes are possible.
    purposes: BTreeMap<&'a str, Vec<Target>>,
    notes: Vec<String>,
}

impl<'a> Chooser<'a> {
    fn new(fleet: &'a Fleet, main: &'a Member) -> Self {
        let mut purposes = BTreeMap::<&str, Vec<Target>>::new();
        let mut notes = Vec::new();
        for (pool, target) in POOLS {
            for name in main.config.chatd.proxy_pools.of(pool) {
                // An instance that is not there is an error of the fleet.
                let Some(member) = fleet.member(name) else { continue };
                purposes.entry(member.name()).or_default().push(target);
            }
        }
        for member in fleet.members.iter().filter(|member| !member.is_main()) {
            let name = member.name();
            if let Some(given) = purposes.get(name) {
                notes.push(format!("{name}: {}, by chatd.proxy_pools", named(given)));
                continue;
            }
            let (targets, why) = guess(member);
            notes.push(format!("{name}: {}, {why}", named(&targets)));
            purposes.insert(name, targets);
        }
        Self { fleet, purposes, notes }
    }

    /// The pool that requests for `wanted` go to: its own if there is one, else the next wider.
    fn target(&mut self, wanted: Target) -> Target {
        if let Target::Writer(stream) = wanted {
            return self.writer(stream).unwrap_or(Target::Clients);
        }
        if matches!(wanted, Target::FederationSend | Target::Clients) {
            return wanted;
        }
        let dedicated = self.purposes.values().any(|targets| targets.contains(&wanted));
        match wanted {
            _ if dedicated => wanted,
            Target::InitialSync => Target::Sync,
            _ => wanted,
        }
    }

    /// The writers of a stream, if a proxy can reach all of them and others would be asked
    /// otherwise.
    fn writer(&mut self, stream: StreamName) -> Option<Target> {
        let target = Target::Writer(stream);
        let names = self.fleet.main()?.assignment.writers_of(stream);
        let reached = self.members(target).len();
        if reached < names.len() {
            self.notes.push(format!(
                "stream {stream}: {} has no listener for clients; whoever gets these requests \
                 carries them there",
                names.join(", ")
            ));
        }
        let is_detour = self.members(target) != self.members(Target::Clients);
        (reached == names.len() && is_detour).then_some(target)
    }

    fn members(&self, target: Target) -> Vec<(String, Upstream)> {
        let router = match target {
            Target::Media => RouterName::Media,
            Target::Federation | Target::FederationSend => RouterName::FederationSend,
            _ => RouterName::ClientSync,
        };
        let able = |member: &&Member| upstream(self.fleet, member, router).is_some();
        let mut chosen: Vec<&Member> = match target {
            Target::Writer(stream) => {
                self.fleet.members.iter().filter(|one| one.assignment.writes(stream)).collect()
            }
            _ => self.with_purpose(target),
        };
        chosen.retain(able);
        let is_writer = matches!(target, Target::Writer(_));
        for wider in [Some(Target::Clients), None] {
            if !chosen.is_empty() || is_writer {
                break;
            }
            chosen = match wider {
                Some(wider) => self.with_purpose(wider),
                None => self.fleet.main().into_iter().collect(),
            };
            chosen.retain(able);
        }
        // Last resort: whoever can, for a main process without listeners of its own.
        if chosen.is_empty() && !is_writer {
            chosen = self.fleet.members.iter().filter(able).collect();
        }
        let place =
            |one: &Member| Some((one.name().to_owned(), upstream(self.fleet, one, router)?));
        chosen.into_iter().filter_map(place).collect()
    }

    fn pool(&self, target: Target, members: Vec<(String, Upstream)>) -> Pool {
        let mut backups = Vec::new();
        if members.len() == 1 {
            let wide = if target == Target::Media { Target::Media } else { Target::Clients };
            backups = self.members(wide);
            backups.retain(|backup| !members.contains(backup));
        }
        Pool { target, members, backups }
    }

    fn with_purpose(&self, target: Target) -> Vec<&'a Member> {
        let target = if target == Target::FederationSend { Target::Federation } else { target };
        let has = |member: &&Member| {
            self.purposes.get(member.name()).is_some_and(|targets| targets.contains(&target))
        };
        self.fleet.members.iter().filter(has).collect()
    }
}

fn named(targets: &[Target]) -> String {
    if targets.is_empty() {
        return "no pool".to_owned();
    }
    targets.iter().map(|target| target.name()).collect::<Vec<_>>().join(", ")
}

/// What an instance is there for, where `chatd.proxy_pools` does not say: by its old `worker_app`,
/// by its name as guides give them, by what it writes; otherwise for everything.
fn guess(member: &Member) -> (Vec<Target>, &'static str) {
    let by_app = match member.app() {
        "synchrotron" => vec![Target::Sync],
        "client_reader" | "frontend_proxy" => vec![Target::Clients],
        "event_creator" => vec![Target::Rooms],
        "federation_reader" => vec![Target::Federation],
        "media_repository" => vec![Target::Media],
        "pusher" | "appservice" | "federation_sender" | "user_dir" => Vec::new(),
        _ => return by_name(member),
    };
    (by_app, "by its worker_app")
}

fn by_name(member: &Member) -> (Vec<Target>, &'static str) {
    let name = member.name();
    let words = [
        ("initial", Target::InitialSync),
        ("sync", Target::Sync),
        ("federation_reader", Target::Federation),
        ("federation_inbound", Target::Federation),
        ("federation_receiver", Target::Federation),
        ("room", Target::Rooms),
        ("media", Target::Media),
        ("client", Target::Clients),
        ("generic", Target::Clients),
    ];
    if let Some((_, target)) = words.iter().find(|(word, _)| name.contains(word)) {
        return (vec![*target], "by its name");
    }
    let writes = member.assignment.writers.iter().any(|stream| *stream != StreamName::Caches);
    if writes {
        return (Vec::new(), "because it writes streams");
    }
    let public = [RouterName::ClientVersions, RouterName::FederationSend];
    if !public.iter().any(|router| member.answers(*router)) {
        return (Vec::new(), "because it has no listener for clients or servers");
    }
    (vec![Target::Clients], "because nothing else is said of it")
}

/// Where a proxy reaches the endpoints of `router` of an instance: a plain HTTP listener; one that
/// is not for replication too, if there is a choice.
fn upstream(fleet: &Fleet, member: &Member, router: RouterName) -> Option<Upstream> {
    let fit = |listener: &&crate::Listener| {
        listener.kind == ListenerKind::Http
            && !listener.tls
            && member.assignment.mounts(router, listener)
    };
    let mut fitting: Vec<_> = member.config.listeners.iter().filter(fit).collect();
    fitting.sort_by_key(|listener| listener.serves(ResourceName::Replication));
    match &fitting.first()?.bind {
        Bind::Unix { path, .. } => Some(Upstream::Unix(path.clone())),
        Bind::Tcp { addresses, port } => Some(Upstream::Tcp(host(fleet, member, addresses), *port)),
    }
}

/// The host that `instance_map` has for the instance, or the address that it listens at.
fn host(fleet: &Fleet, member: &Member, addresses: &[IpAddr]) -> String {
    let known = fleet.instance_map().get(member.name()).and_then(|one| one.host.clone());
    let bound = addresses.iter().find(|address| !address.is_unspecified());
    let text = match (known, bound) {
        (Some(host), _) if host != "localhost" => host,
        (_, Some(address)) => address.to_string(),
        _ => "127.0.0.1".to_owned(),
    };
    let is_bare_v6 = text.contains(':') && !text.starts_with('[');
    if is_bare_v6 { format!("[{text}]") } else { text }
}
