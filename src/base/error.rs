//! The two kinds of failure: a refusal, which is the caller's fault and travels to the client
//! as it is, and everything else, which is logged once and shows the client `M_UNKNOWN`.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of an operation.
#[derive(Debug)]
pub enum Error {
    /// The caller's fault; told to the client as it is.
    Refused(Box<Refusal>),
    /// Ours; logged once where it is answered, shown as `M_UNKNOWN`.
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// An internal failure from anything that describes one.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    /// The refusal's `errcode`, if it is one.
    pub fn errcode(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => Some(&refusal.errcode),
            Self::Internal(_) => None,
        }
    }

    /// Whether it says that something is away, or too busy: the same may well succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status == 503)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Internal(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

/// What a client is told when a request is its fault. Serialisable, so that it crosses an RPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Matrix error code, `M_…`; empty for a question back (see [`Refusal::to_json`]).
    pub errcode: Cow<'static, str>,
    /// What was wrong, for a person.
    pub message: String,
    /// Further members of the error object (`retry_after_ms`, `soft_logout`, the UIA object …).
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status, self.errcode, self.message)
    }
}

impl std::error::Error for Refusal {}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $status:literal $code:literal;)*) => {
        impl Refusal {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self {
                Self::new($status, $code, message)
            })*
        }
    };
}

refusals! {
    /// Body is not JSON at all.
    not_json = 400 "M_NOT_JSON";
    /// JSON of the wrong shape.
    bad_json = 400 "M_BAD_JSON";
    /// A required parameter is absent.
    missing_param = 400 "M_MISSING_PARAM";
    /// A parameter has a wrong value.
    invalid_param = 400 "M_INVALID_PARAM";
    /// The caller may not do this.
    forbidden = 403 "M_FORBIDDEN";
    /// The thing does not exist, or the caller may not know that it does.
    not_found = 404 "M_NOT_FOUND";
    /// No such endpoint.
    unrecognized = 404 "M_UNRECOGNIZED";
    /// No access token was given.
    missing_token = 401 "M_MISSING_TOKEN";
    /// The access token is not known.
    unknown_token = 401 "M_UNKNOWN_TOKEN";
    /// A request of another server is not signed as it must be.
    unauthorized = 401 "M_UNAUTHORIZED";
    /// Something is larger than allowed.
    too_large = 413 "M_TOO_LARGE";
    /// Anything else that is the caller's fault.
    unknown = 400 "M_UNKNOWN";
    /// The user id is taken.
    user_in_use = 400 "M_USER_IN_USE";
    /// The user id cannot be used.
    invalid_username = 400 "M_INVALID_USERNAME";
    /// The room alias is taken.
    room_in_use = 400 "M_ROOM_IN_USE";
    /// The room state that the request asks for is refused.
    invalid_room_state = 400 "M_INVALID_ROOM_STATE";
    /// The room version is not supported.
    unsupported_room_version = 400 "M_UNSUPPORTED_ROOM_VERSION";
    /// Registration is closed and the like.
    exclusive = 400 "M_EXCLUSIVE";
}

impl Refusal {
    /// A refusal with any status and code.
    pub fn new(
        status: u16,
        errcode: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self { status, errcode: errcode.into(), message: message.into(), extra: Map::new() }
    }

    /// The same refusal with one more member in its JSON object.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }

    /// Code of [`Refusal::not_owner`].
    pub const NOT_OWNER: &str = "CHATD_NOT_OWNER";

    /// The request belongs to the instance called `owner` (empty if nobody knows), and nothing of
    /// it has been done. Never shown to clients: whoever carries requests takes it there.
    pub fn not_owner(owner: impl Into<String>) -> Self {
        Self::new(421, Self::NOT_OWNER, "another instance has to do this")
            .with("owner", owner.into())
    }

    /// Code of [`Refusal::repeat`].
    pub const REPEAT: &str = "CHATD_REPEAT";

    /// What was to be written was written by an earlier request. Never shown to clients.
    pub fn repeat() -> Self {
        Self::new(409, Self::REPEAT, "this was done before")
    }

    /// The refusal that `status` and the JSON object `body` stand for: the reverse of
    /// [`Refusal::to_json`].
    pub fn from_json(status: u16, body: Map<String, Value>) -> Self {
        let mut extra = body;
        let mut text = |name| match extra.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (errcode, message) = (text("errcode"), text("error"));
        Self { status, errcode: errcode.into(), message, extra }
    }

    /// 429 with the time to wait, in milliseconds.
    pub fn limit_exceeded(retry_after_ms: u64) -> Self {
        Self::new(429, "M_LIMIT_EXCEEDED", "too many requests; wait before trying again")
            .with("retry_after_ms", retry_after_ms)
    }

    /// The JSON object that the client gets. A refusal without an `errcode` is a question back
    /// (the first answer of user-interactive authentication): only its further members are told.
    pub fn to_json(&self) -> Value {
        let mut body = self.extra.clone();
        if !self.errcode.is_empty() {
            body.insert("errcode".to_owned(), self.errcode.as_ref().into());
            body.insert("error".to_owned(), self.message.as_str().into());
        }
        Value::Object(body)
    }
}
