//! Which requests belong together for a reverse proxy. This is about latency only: any instance
//! takes any request and carries it to the one whose work it is.

use crate::StreamName;

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
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What it is, for the comment in the generated file.
    pub what: &'static str,
    /// What its paths begin with: a regular expression that proxies have in common.
    pub prefix: &'static str,
    /// What follows, in regular expressions.
    pub rest: &'static [&'static str],
    /// Where they go.
    pub target: Target,
    /// Whether a request without `since` is an initial sync.
    pub may_be_initial: bool,
}

impl Family {
    /// One regular expression for all its paths.
    pub fn regex(&self) -> String {
        match self.rest {
            [] => format!("^{}", self.prefix),
            rest => format!("^{}({})", self.prefix, rest.join("|")),
        }
    }
}

/// Endpoints of version 3 under all its names, older and unstable ones included.
const V3: &str = "/(_matrix|chat)/client/(v3|r0|unstable|v2_alpha|api/v1)";
/// The same, and the later endpoints under v1.
const ANY: &str = "/(_matrix|chat)/client/(v3|v1|r0|unstable|v2_alpha|api/v1)";

/// In the order in which a proxy must ask.
pub const FAMILIES: &[Family] = &[
    Family {
        what: "waiting for news",
        prefix: V3,
        rest: &["/sync$"],
        target: Target::Sync,
        may_be_initial: true,
    },
    Family {
        what: "waiting for news in other ways",
        prefix: V3,
        rest: &["/events$", "/org\\.matrix\\.(simplified_)?msc[0-9]+/sync$"],
        target: Target::Sync,
        may_be_initial: false,
    },
    Family {
        what: "the first sync of old clients",
        prefix: V3,
        rest: &["/initialSync$", "/rooms/[^/]+/initialSync$"],
        target: Target::InitialSync,
        may_be_initial: false,
    },
    Family {
        what: "typing",
        prefix: V3,
        rest: &["/rooms/[^/]+/typing/"],
        target: Target::Writer(StreamName::Typing),
        may_be_initial: false,
    },
    Family {
        what: "receipts and read markers",
        prefix: V3,
        rest: &["/rooms/[^/]+/receipt/", "/rooms/[^/]+/read_markers$"],
        target: Target::Writer(StreamName::Receipts),
        may_be_initial: false,
    },
    Family {
        what: "messages from device to device",
        prefix: V3,
        rest: &["/sendToDevice/"],
        target: Target::Writer(StreamName::ToDevice),
        may_be_initial: false,
    },
    Family {
        what: "account data and tags",
        prefix: V3,
        rest: &["/user/[^/]+/account_data/", "/user/[^/]+/rooms/[^/]+/(account_data|tags)"],
        target: Target::Writer(StreamName::AccountData),
        may_be_initial: false,
    },
    Family {
        what: "presence",
        prefix: V3,
        rest: &["/presence/"],
        target: Target::Writer(StreamName::Presence),
        may_be_initial: false,
    },
    Family {
        what: "push rules",
        prefix: V3,
        rest: &["/pushrules/"],
        target: Target::Writer(StreamName::PushRules),
        may_be_initial: false,
    },
    Family {
        what: "devices and their keys",
        prefix: V3,
        rest: &[
            "/keys/upload",
            "/keys/(device_signing|signatures)/upload$",
            "/devices(/|$)",
            "/delete_devices$",
        ],
        target: Target::Writer(StreamName::DeviceLists),
        may_be_initial: false,
    },
    Family {
        what: "thread subscriptions",
        prefix: ANY,
        rest: &[
            "(/io\\.element\\.msc4306)?/rooms/[^/]+/thread/[^/]+/subscription$",
            "(/io\\.element\\.msc4308)?/thread_subscriptions$",
        ],
        target: Target::Writer(StreamName::ThreadSubscriptions),
        may_be_initial: false,
    },
    Family {
        what: "the content repository",
        prefix: "/(_matrix|chat)/",
        rest: &["media/", "client/v1/media/", "federation/v1/media/"],
        target: Target::Media,
        may_be_initial: false,
    },
    Family {
        what: "requests about one room",
        prefix: ANY,
        rest: &["/rooms/[^/]+/", "/org\\.matrix\\.[^/]+/rooms/[^/]+/"],
        target: Target::Rooms,
        may_be_initial: false,
    },
    Family {
        what: "transactions of other servers",
        prefix: "/(_matrix|chat)/federation/v1/send/",
        rest: &[],
        target: Target::FederationSend,
        may_be_initial: false,
    },
    Family {
        what: "everything else that other servers ask",
        prefix: "/(_matrix|chat)/",
        rest: &["federation/", "key/"],
        target: Target::Federation,
        may_be_initial: false,
    },
    Family {
        what: "everything else of the client API",
        prefix: "/",
        rest: &["(_matrix|chat)/", "(_synapse|_chat)/client/", "\\.well-known/matrix/"],
        target: Target::Clients,
        may_be_initial: false,
    },
];

/// What must not be reached from outside, however its path is written.
pub const PRIVATE: &str = "^/+(_synapse|_chat)/+(replication|metrics)";

/// The admin API; outside only if asked for.
pub const ADMIN: &str = "^/+(_synapse|_chat)/+admin";
