//! Requests and answers. Every JSON answer is checked against the specification (`spec`).

use std::{future::IntoFuture, path::Path, pin::Pin, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, header::HeaderMap};
use serde_json::Value;

use crate::spec;

/// What a path segment may carry as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// No request of a test takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// Fills the `{}` of `template` with percent-encoded `arguments`, in order.
pub fn path(template: &str, arguments: &[&str]) -> String {
    let mut parts = template.split("{}");
    let mut path = parts.next().unwrap_or_default().to_owned();
    let mut arguments = arguments.iter();
    for part in parts {
        let argument = arguments.next().expect("an argument for each {} of the path");
        path.extend(utf8_percent_encode(argument, SEGMENT));
        path.push_str(part);
    }
    assert!(arguments.next().is_none(), "more arguments than {{}} in {template}");
    path
}

/// Connections to one server.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    base: String,
    checked: bool,
}

impl Http {
    /// Talks to `base`, `http://…` without a slash at the end.
    pub fn new(base: String) -> Self {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(LIMIT)
            .build()
            .expect("a client without TLS has nothing that can fail");
        Self { client, base, checked: true }
    }

    /// The same for a server that is not ours: its answers are not checked.
    #[must_use]
    pub fn unchecked(self) -> Self {
        Self { checked: false, ..self }
    }

    /// Talks to whoever listens on a unix socket.
    pub fn on_socket(path: &Path) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).unix_socket(path);
        let client = client.build().expect("a client without TLS has nothing that can fail");
        Self { client, base: "http://localhost".to_owned(), checked: true }
    }

    /// The base that it was made with.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A request; a path is one of `/_matrix/client/v3` if it is not a whole one.
    pub fn request(&self, method: &str, path: impl Into<String>) -> Request {
        let mut path = path.into();
        let is_whole = ["/_", "/.", "/chat/", "/health"].iter().any(|root| path.starts_with(root));
        if !is_whole {
            path = format!("/_matrix/client/v3{path}");
        }
        let method: Method = method.parse().expect("a method name");
        let inner = self.client.request(method.clone(), format!("{}{path}", self.base));
        Request { inner, method, path, checked: self.checked }
    }
}

/// A request that is sent when awaited.
#[derive(Debug)]
#[must_use = "a request is sent when awaited"]
pub struct Request {
    inner: reqwest::RequestBuilder,
    method: Method,
    path: String,
    checked: bool,
}

impl Request {
    /// With this access token.
    pub fn token(mut self, token: &str) -> Self {
        self.inner = self.inner.bearer_auth(token);
        self
    }

    /// With a JSON body.
    pub fn json(mut self, body: &Value) -> Self {
        self.inner = self.inner.json(body);
        self
    }

    /// With any bytes as its body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.inner = self.inner.body(body.into());
        self
    }

    /// With one more query argument.
    pub fn query(mut self, name: &str, value: impl ToString) -> Self {
        self.inner = self.inner.query(&[(name, value.to_string())]);
        self
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.inner = self.inner.header(name, value);
        self
    }

    /// Without the check against the specification.
    pub fn unchecked(mut self) -> Self {
        self.checked = false;
        self
    }

    /// Sends it; an error is one of the connection, never a status.
    pub async fn send(self) -> reqwest::Result<Answer> {
        let response = self.inner.send().await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = String::from_utf8_lossy(&response.bytes().await?).into_owned();
        let json = serde_json::from_str(&text).ok();
        let answer = Answer { method: self.method, path: self.path, status, headers, text, json };
        if self.checked {
            answer.check();
        }
        Ok(answer)
    }

    /// Sends it now, and returns a handle to await the answer with.
    pub fn start(self) -> crate::Started<Answer> {
        crate::spawn(self.into_future())
    }
}

impl IntoFuture for Request {
    type Output = Answer;
    type IntoFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let what = format!("{} {}", self.method, self.path);
            self.send().await.unwrap_or_else(|error| panic!("{what}: {error:?}"))
        })
    }
}

/// Database work of one request, as the server counted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Statements sent.
    pub statements: u32,
    /// Times that the server waited for PostgreSQL.
    pub round_trips: u32,
}

impl Cost {
    /// Nothing at all.
    pub const ZERO: Self = Self { statements: 0, round_trips: 0 };

    /// Reads `statements=1; round_trips=1`.
    fn parse(header: &str) -> Option<Self> {
        let mut cost = Self::ZERO;
        for part in header.split([',', ';']) {
            let (name, value) = part.trim().split_once('=')?;
            match name {
                "statements" => cost.statements = value.parse().ok()?,
                "round_trips" => cost.round_trips = value.parse().ok()?,
                _ => {}
            }
        }
        Some(cost)
    }
}

/// What the server said.
#[derive(Clone, Debug)]
pub struct Answer {
    method: Method,
    path: String,
    /// HTTP status.
    pub status: u16,
    /// HTTP headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub text: String,
    json: Option<Value>,
}

impl Answer {
    /// The JSON of a success; panics on anything else.
    #[track_caller]
    pub fn ok(&self) -> &Value {
        assert!((200..300).contains(&self.status), "{self}");
        self.json()
    }

    /// The JSON, whatever the status.
    #[track_caller]
    pub fn json(&self) -> &Value {
        self.json.as_ref().unwrap_or_else(|| panic!("not JSON: {self}"))
    }

    /// Asserts that the server refused with this status and code; returns the error object.
    #[track_caller]
    pub fn refused(&self, status: u16, errcode: &str) -> &Value {
        assert_eq!((self.status, self.errcode()), (status, errcode), "{self}");
        self.json()
    }

    /// `errcode`, or an empty string.
    pub fn errcode(&self) -> &str {
        self.json.as_ref().and_then(|json| json["errcode"].as_str()).unwrap_or_default()
    }

    /// A string member of a success.
    #[track_caller]
    pub fn string(&self, member: &str) -> String {
        let found = self.ok()[member].as_str();
        found.unwrap_or_else(|| panic!("no string {member} in {self}")).to_owned()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What the request cost; panics where the server does not say so.
    #[track_caller]
    pub fn cost(&self) -> Cost {
        let header = self.header("x-chatd-cost");
        let header = header.unwrap_or_else(|| panic!("no x-chatd-cost header: {self}"));
        Cost::parse(header).unwrap_or_else(|| panic!("cannot read x-chatd-cost: {header}"))
    }

    fn check(&self) {
        let Some(json) = &self.json else { return };
        let problems = spec::check(self.method.as_str(), &self.path, self.status, json);
        assert!(problems.is_empty(), "not as the specification says: {problems:#?}\n{self}");
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text: String = self.text.chars().take(4_000).collect();
        write!(f, "{} {} answered {}: {text}", self.method, self.path, self.status)
    }
}
