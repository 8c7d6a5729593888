//! Which requests belong together for a reverse proxy. This is about latency only: any instance
//! takes any request and carries it to the one whose work it is.

use std::collections::{BTreeMap, BTreeSet};

use crate::StreamName;

/// An endpoint, as far as it matters to a proxy.
#[derive(Clone, Debug)]
pub struct ProxyRoute {
    /// One of its paths, arguments in braces.
    pub pattern: String,
    /// The stream whose writer does its work, if that is needed.
    pub writer: Option<StreamName>,
}

/// How the members of a pool share their requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest requests under way.
    Least,
    /// Each user at one instance, by the local part in the access token.
    User,
    /// Each room at one instance, by its id in the path.
    Room,
    /// Each address at one instance.
    Source,
}

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Those who answer `/sync` with `since`.
    Sync,
    /// Those who answer the first sync of a device.
    InitialSync,
    /// The writers of a stream.
    Writer(StreamName),
    /// The content repository.
    Media,
    /// Requests about one room.
    Rooms,
    /// Transactions of other servers.
    FederationSend,
    /// Everything else that other servers ask.
    Federation,
    /// Everything else.
    Clients,
}

impl Target {
    /// Its name in the generated file.
    pub fn name(self) -> String {
        match self {
            Self::Sync => "sync".to_owned(),
            Self::InitialSync => "initial_sync".to_owned(),
            Self::Writer(stream) => format!("stream_{stream}"),
            Self::Media => "media".to_owned(),
            Self::Rooms => "rooms".to_owned(),
            Self::FederationSend => "federation_send".to_owned(),
            Self::Federation => "federation".to_owned(),
            Self::Clients => "clients".to_owned(),
        }
    }

    /// How its members share their requests.
    pub fn balance(self) -> Balance {
        match self {
            Self::Sync | Self::InitialSync | Self::Writer(_) => Balance::User,
            Self::Rooms => Balance::Room,
            Self::FederationSend => Balance::Source,
            Self::Media | Self::Federation | Self::Clients => Balance::Least,
        }
    }
}

/// A family of paths. The first family that fits a path counts.
#[derive(Clone, Debug)]
pub struct Family {
    /// What it is, for the comment in the generated file.
    pub what: &'static str,
    /// A regular expression that proxies have in common, for the whole path or its beginning.
    pub regex: String,
    /// Where they go.
    pub target: Target,
    /// Whether a request without `since` is an initial sync.
    pub may_be_initial: bool,
}

impl Family {
    fn new(what: &'static str, target: Target, parts: &[&str]) -> Self {
        Self { what, regex: format!("^{}", parts.concat()), target, may_be_initial: false }
    }
}

/// The client API under both its names.
const CLIENT: &str = "/(_matrix|chat)/client/";
/// Names that versions have in paths.
const VERSIONS: [&str; 6] = ["v3", "v1", "r0", "unstable", "v2_alpha", "api/v1"];
/// Endpoints of version 3 under all its names, older and unstable ones included.
const V3: &str = "/(_matrix|chat)/client/(v3|r0|unstable|v2_alpha|api/v1)";
/// The same, and the later endpoints under v1.
const ANY: &str = "/(_matrix|chat)/client/(v3|v1|r0|unstable|v2_alpha|api/v1)";

/// In the order in which a proxy must ask: families that do not depend on where an endpoint's work
/// belongs are known beforehand, the others come from `routes`.
pub fn families(routes: &[ProxyRoute]) -> Vec<Family> {
    let mut all = waiting();
    all.extend(StreamName::ALL.iter().filter_map(|stream| of_writer(*stream, routes)));
    all.extend(everything_else());
    all
}

fn waiting() -> Vec<Family> {
    let other = "(/events|/org\\.matrix\\.(simplified_)?msc[0-9]+/sync)$";
    let first = "(/rooms/[^/]+)?/initialSync$";
    let mut sync = Family::new("waiting for news", Target::Sync, &[V3, "/sync$"]);
    sync.may_be_initial = true;
    vec![
        sync,
        Family::new("waiting for news in other ways", Target::Sync, &[V3, other]),
        Family::new("the first sync of old clients", Target::InitialSync, &[V3, first]),
    ]
}

fn everything_else() -> Vec<Family> {
    let room = "(/org\\.matrix\\.[^/]+)?/(rooms|join|knock)/[^/]+";
    let media = "/(_matrix|chat)/(media|client/v1/media|federation/v1/media)/";
    let send = "/(_matrix|chat)/federation/v1/send/";
    let clients = "/((_matrix|chat)/|(_synapse|_chat)/client/|\\.well-known/matrix/)";
    vec![
        Family::new("the content repository", Target::Media, &[media]),
        Family::new("requests about one room", Target::Rooms, &[ANY, room]),
        Family::new("transactions of other servers", Target::FederationSend, &[send]),
        Family::new(
            "everything else that other servers ask",
            Target::Federation,
            &["/(_matrix|chat)/(federation|key)/"],
        ),
        Family::new("everything else of the client API", Target::Clients, &[clients]),
    ]
}

/// The endpoints whose work is that of the writer of `stream`.
fn of_writer(stream: StreamName, routes: &[ProxyRoute]) -> Option<Family> {
    let what = match stream {
        StreamName::Typing => "typing",
        StreamName::ToDevice => "messages from device to device",
        StreamName::AccountData => "account data and tags",
        StreamName::Receipts => "receipts and read markers",
        StreamName::Presence => "presence",
        StreamName::PushRules => "push rules",
        StreamName::DeviceLists => "devices and their keys",
        StreamName::ThreadSubscriptions => "thread subscriptions",
        StreamName::QuarantinedMedia => "media in quarantine",
        // A room's owner is known to the instances only.
        StreamName::Events | StreamName::Caches => return None,
    };
    // Under which versions each path is known.
    let mut versions = BTreeMap::<String, BTreeSet<&str>>::new();
    for route in routes.iter().filter(|route| route.writer == Some(stream)) {
        let Some((version, rest)) = split_version(&route.pattern) else { continue };
        versions.entry(expression(rest)).or_default().insert(version);
    }
    let mut paths = BTreeMap::<Vec<&str>, Vec<String>>::new();
    for (path, versions) in versions {
        paths.entry(versions.into_iter().collect()).or_default().push(path);
    }
    let groups: Vec<_> = paths
        .into_iter()
        .map(|(versions, paths)| format!("{}{}", one_of(&versions), one_of(&paths)))
        .collect();
    (!groups.is_empty())
        .then(|| Family::new(what, Target::Writer(stream), &[CLIENT, &one_of(&groups), "$"]))
}

/// The version in a path of the client API, and what follows it.
fn split_version(pattern: &str) -> Option<(&str, &str)> {
    let rest = pattern.strip_prefix("/_matrix/client/")?;
    let version = VERSIONS
        .iter()
        .find(|version| rest.strip_prefix(**version).is_some_and(|rest| rest.starts_with('/')))?;
    Some(rest.split_at(version.len()))
}

/// A regular expression for a pattern: arguments are one segment each.
fn expression(pattern: &str) -> String {
    let segments: Vec<_> = pattern
        .split('/')
        .map(|segment| match segment.starts_with('{') {
            true => "[^/]+".to_owned(),
            false => segment.replace('.', "\\."),
        })
        .collect();
    segments.join("/")
}

fn one_of<T: AsRef<str>>(all: &[T]) -> String {
    match all {
        [one] => one.as_ref().to_owned(),
        all => format!("({})", all.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("|")),
    }
}

/// What must not be reached from outside, however its path is written.
pub const PRIVATE: &str = "^/+(_synapse|_chat)/+(replication|metrics)";

/// The admin API; outside only if asked for.
pub const ADMIN: &str = "^/+(_synapse|_chat)/+admin";
