//! What a handler is given: who asks, and the typed parts of the request.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use bytes::Bytes;
use chatd_base::{Error, Refusal, Requester, Result, json};
use http::{HeaderMap, Method, Uri};
use percent_encoding::percent_decode_str;
use ruma_common::{OwnedServerName, ServerName};
use serde::{de::DeserializeOwned, de::IgnoredAny};

use crate::origins::Turn;

/// A request whose caller is known and whose body has been read.
#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) args: Vec<(Arc<str>, String)>,
    pub(crate) body: Bytes,
    pub(crate) requester: Option<Arc<Requester>>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) id: Arc<str>,
    pub(crate) key: Option<u128>,
    /// The server that has signed it.
    pub(crate) origin: Option<OwnedServerName>,
    /// Its place among the requests of that server, until it is answered.
    pub(crate) turn: Option<Arc<Turn>>,
}

impl Request {
    /// The caller. Fails only where the endpoint is declared with [`crate::Auth::None`], or with
    /// [`crate::Auth::Optional`] and there was no token.
    pub fn who(&self) -> Result<&Arc<Requester>> {
        self.requester.as_ref().ok_or_else(|| Refusal::missing_token("missing access token").into())
    }

    /// The caller, if there was a token.
    pub fn requester(&self) -> Option<&Arc<Requester>> {
        self.requester.as_ref()
    }

    /// The server that makes the request. Fails only where the endpoint is not declared with
    /// [`crate::Auth::Server`].
    pub fn origin(&self) -> Result<&ServerName> {
        self.origin.as_deref().ok_or_else(|| Refusal::unauthorized("not signed by a server").into())
    }

    pub fn method(&self) -> &Method {
        &self.method
    }

    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The client's address, after `x_forwarded`; absent on unix sockets without a proxy's header.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The number of this request in the log.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The same each time that one request is carried, and no other's; absent where it is not
    /// carried. An effect that is committed with it happens once.
    pub fn key(&self) -> Option<u128> {
        self.key
    }

    pub fn user_agent(&self) -> Option<&str> {
        self.headers.get(http::header::USER_AGENT)?.to_str().ok()
    }

    /// A decoded path argument; empty where an optional one is absent.
    pub fn arg(&self, name: &str) -> &str {
        self.args.iter().find(|(key, _)| &**key == name).map_or("", |(_, value)| value)
    }

    /// A path argument as a typed identifier; refuses what does not parse.
    pub fn arg_as<T>(&self, name: &str) -> Result<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        self.arg(name).parse().map_err(|error| {
            Refusal::invalid_param(format!("{name} in the path is not valid: {error}")).into()
        })
    }

    /// The query string as `T`. Repeated keys go into a `Vec`; unknown keys are ignored.
    pub fn query<T: DeserializeOwned>(&self) -> Result<T> {
        parse_query(self.uri.query().unwrap_or(""))
    }

    /// The body as a JSON object of type `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        parse_json(&self.body)
    }

    /// As [`Request::json`]; a body without content counts as `{}`.
    pub fn json_or_empty<T: DeserializeOwned>(&self) -> Result<T> {
        if self.body.trim_ascii().is_empty() { parse_json(b"{}") } else { self.json() }
    }
}

/// Parses a query string; refuses values of the wrong type and escapes that are not UTF-8.
pub(crate) fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T> {
    let text = percent_decode_str(query).decode_utf8();
    if text.is_err() || text.is_ok_and(|text| text.contains('\0')) {
        return Err(Refusal::invalid_param("the query string is not valid UTF-8").into());
    }
    serde_html_form::from_str(query).map_err(|error| {
        let message = error.to_string();
        match message.strip_prefix("missing field ") {
            Some(field) => {
                Refusal::missing_param(format!("missing query parameter {field}")).into()
            }
            None => Refusal::invalid_param(format!("query string: {message}")).into(),
        }
    })
}

/// Parses a JSON object from outside: bounded depth, UTF-8, and refusals that tell what is wrong.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Refusal::not_json("the request body is not UTF-8"))?;
    if json::deeper_than(bytes, json::MAX_DEPTH) {
        return Err(Refusal::bad_json("the request body is nested too deeply").into());
    }
    if !text.trim_start().starts_with('{') {
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| not_json(&error))?;
        return Err(Refusal::bad_json("the request body is not a JSON object").into());
    }
    serde_json::from_str(text).map_err(|error| wrong_shape(text, &error))
}

/// JSON of the wrong type, unless the text turns out not to be JSON at all.
fn wrong_shape(text: &str, error: &serde_json::Error) -> Error {
    if !error.is_data() {
        return not_json(error);
    }
    if let Err(syntax) = serde_json::from_str::<IgnoredAny>(text) {
        return not_json(&syntax);
    }
    let message = error.to_string();
    if message.starts_with("missing field") {
        Refusal::missing_param(message).into()
    } else {
        Refusal::bad_json(message).into()
    }
}

fn not_json(error: &serde_json::Error) -> Error {
    Refusal::not_json(format!("the request body is not JSON: {error}")).into()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Map, Value};

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Page {
        from: Option<String>,
        limit: Option<u32>,
        #[serde(default)]
        server: Vec<String>,
        dir: String,
    }

    fn code<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().errcode().unwrap_or("internal").to_owned()
    }

    #[test]
    fn a_query_is_typed_and_may_repeat_keys() {
        let page: Page =
            parse_query("dir=b&limit=5&server=a&server=b%20c&from=x%2By&other=1").unwrap();
        assert_eq!(page.server, ["a", "b c"]);
        assert_eq!((page.limit, page.from.as_deref()), (Some(5), Some("x+y")));
        assert_eq!(parse_query::<Page>("dir=b&server=a").unwrap().server, ["a"]);
    }

    #[test]
    fn a_wrong_query_says_which_parameter() {
        assert_eq!(code(parse_query::<Page>("limit=5")), "M_MISSING_PARAM");
        assert_eq!(code(parse_query::<Page>("dir=b&limit=five")), "M_INVALID_PARAM");
        assert_eq!(code(parse_query::<Page>("dir=b&from=%ff")), "M_INVALID_PARAM");
        assert_eq!(code(parse_query::<Page>("dir=b&from=a%00b")), "M_INVALID_PARAM");
    }

    #[test]
    fn a_body_is_refused_for_the_right_reason() {
        #[derive(Debug, Deserialize)]
        struct Body {
            #[expect(dead_code, reason = "only its type matters here")]
            name: String,
        }
        let deep = format!("{{\"name\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let table: &[(&[u8], &str)] = &[
            (b"", "M_NOT_JSON"),
            (b"hello", "M_NOT_JSON"),
            (b"{\"name\":\"\xff\"}", "M_NOT_JSON"),
            (b"{\"name\":\"x\"} trailing", "M_NOT_JSON"),
            (b"{\"name\":NaN}", "M_NOT_JSON"),
            (b"{\"name\":1, nonsense", "M_NOT_JSON"),
            (b"{\"name\":\"\\ud800\"}", "M_NOT_JSON"),
            (b"[\"x\"]", "M_BAD_JSON"),
            (b"\"x\"", "M_BAD_JSON"),
            (b"{\"name\":1}", "M_BAD_JSON"),
            (b"{\"name\":\"a\",\"name\":\"b\"}", "M_BAD_JSON"),
            (deep.as_bytes(), "M_BAD_JSON"),
            (b"{}", "M_MISSING_PARAM"),
        ];
        for (body, errcode) in table {
            assert_eq!(
                code(parse_json::<Body>(body)),
                *errcode,
                "{}",
                String::from_utf8_lossy(body)
            );
        }
        assert!(parse_json::<Map<String, Value>>(b" {\"a\": 1} ").is_ok());
    }
}
