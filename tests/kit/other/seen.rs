//! Requests that another server has got, and whether they were signed as they have to be.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use ruma_signatures::{PublicKeyMap, verify_json};
use serde_json::{Value, json};

use super::key::canonical;

/// One request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET` …
    pub method: String,
    /// Path and query as they came.
    pub uri: String,
    /// JSON; null without a body.
    pub body: Value,
    /// The headers, names in lower case; the last of each.
    pub headers: HashMap<String, String>,
    /// The server that says it has made it.
    pub origin: Option<String>,
}

impl Seen {
    /// The path without the query.
    pub fn path(&self) -> &str {
        self.uri.split('?').next().unwrap_or_default()
    }

    /// A segment of the path, decoded; the first one has the number 0.
    pub fn segment(&self, number: usize) -> String {
        let segment = self.path().split('/').skip(1).nth(number).unwrap_or_default();
        percent_decode_str(segment).decode_utf8_lossy().into_owned()
    }

    /// All values of a query argument.
    pub fn query_all(&self, name: &str) -> Vec<String> {
        let query = self.uri.split_once('?').map(|(_, query)| query).unwrap_or_default();
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    }

    /// The first value of a query argument.
    pub fn query(&self, name: &str) -> Option<String> {
        self.query_all(name).into_iter().next()
    }
}

/// The arguments of an `Authorization: X-Matrix …` header.
#[derive(Debug, Default)]
pub(crate) struct XMatrix {
    arguments: HashMap<String, String>,
}

impl XMatrix {
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let arguments = header.strip_prefix("X-Matrix ")?.split(',').filter_map(|argument| {
            let (name, value) = argument.trim().split_once('=')?;
            Some((name.to_owned(), value.trim_matches('"').to_owned()))
        });
        Some(Self { arguments: arguments.collect() })
    }

    pub(crate) fn origin(&self) -> &str {
        self.get("origin")
    }

    pub(crate) fn key_id(&self) -> &str {
        self.get("key")
    }

    fn get(&self, name: &str) -> &str {
        self.arguments.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Whether `seen`, sent to `me`, is signed by one of `keys`.
    pub(crate) fn check(&self, seen: &Seen, me: &str, keys: &PublicKeyMap) -> Result<(), String> {
        if self.get("destination") != me {
            return Err(format!("it is for {:?}", self.get("destination")));
        }
        let mut signed = json!({
            "method": seen.method,
            "uri": seen.uri,
            "origin": self.origin(),
            "destination": me,
            "signatures": {self.origin(): {self.get("key"): self.get("sig")}},
        });
        if !seen.body.is_null() {
            signed["content"] = seen.body.clone();
        }
        verify_json(keys, &canonical(signed)).map_err(|error| error.to_string())
    }
}
