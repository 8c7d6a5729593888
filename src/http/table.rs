//! From method and path to endpoint: one trie for all aliases of all endpoints.
//!
//! The raw path is matched and its segments are decoded afterwards, so that an encoded slash is
//! part of an argument.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use chatd_base::{Refusal, Result};
use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use crate::router::{Endpoint, Router};

/// The endpoints that one listener serves.
pub(crate) struct Table {
    trie: matchit::Router<Vec<Leaf>>,
}

/// One method of one pattern.
struct Leaf {
    endpoint: Arc<Endpoint>,
    /// Names of the arguments, in the order of the path.
    names: Vec<Arc<str>>,
}

/// What a request asks for.
pub(crate) struct Match {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Names and decoded values of the path's arguments.
    pub(crate) args: Vec<(Arc<str>, String)>,
}

impl Table {
    /// Fails if two endpoints claim the same method and path: a mistake in a declaration.
    pub(crate) fn new<'a>(routers: impl Iterator<Item = &'a Router>) -> Result<Self, String> {
        let mut leaves = BTreeMap::<String, Vec<Leaf>>::new();
        for endpoint in routers.flat_map(|router| &router.endpoints) {
            for pattern in endpoint.paths.expanded() {
                let (numbered, names) = number_args(&pattern);
                let here = leaves.entry(numbered).or_default();
                if here.iter().any(|leaf| leaf.endpoint.method == endpoint.method) {
                    return Err(format!("{} {pattern} is declared twice", endpoint.method));
                }
                here.push(Leaf { endpoint: endpoint.clone(), names });
            }
        }
        let mut trie = matchit::Router::new();
        for (pattern, here) in leaves {
            trie.insert(&pattern, here).map_err(|error| format!("{pattern}: {error}"))?;
        }
        Ok(Self { trie })
    }

    /// Finds the endpoint; refuses unknown paths, wrong methods, and arguments that are no text.
    pub(crate) fn find(&self, method: &Method, raw_path: &str) -> Result<Match> {
        let path = canonical(raw_path);
        let Ok(found) = self.trie.at(&path) else {
            return Err(Refusal::unrecognized("unrecognized request").into());
        };
        // A HEAD is a GET whose body is left out by hyper.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let Some(leaf) = found.value.iter().find(|leaf| leaf.endpoint.method == *method) else {
            let status = StatusCode::METHOD_NOT_ALLOWED.as_u16();
            return Err(Refusal::new(status, "M_UNRECOGNIZED", "unrecognized method").into());
        };
        let args = leaf
            .names
            .iter()
            .zip(found.params.iter())
            .map(|(name, (_, raw))| Ok((name.clone(), decode(name, raw)?)))
            .collect::<Result<_>>()?;
        Ok(Match { endpoint: leaf.endpoint.clone(), args })
    }
}

/// The path under its usual prefix: `/chat` stands for `/_matrix`, `/_chat` for `/_synapse`.
fn canonical(path: &str) -> Cow<'_, str> {
    if let Some(rest) = path.strip_prefix("/chat/") {
        Cow::Owned(format!("/_matrix/{rest}"))
    } else if let Some(rest) = path.strip_prefix("/_chat/") {
        Cow::Owned(format!("/_synapse/{rest}"))
    } else {
        Cow::Borrowed(path)
    }
}

/// The pattern with its arguments numbered, so that endpoints may name them differently.
fn number_args(pattern: &str) -> (String, Vec<Arc<str>>) {
    let mut names = Vec::new();
    let segments: Vec<_> = pattern
        .split('/')
        .map(|segment| match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            Some(name) => {
                names.push(Arc::from(name));
                Cow::Owned(format!("{{{}}}", names.len()))
            }
            None => Cow::Borrowed(segment),
        })
        .collect();
    (segments.join("/"), names)
}

fn decode(name: &str, raw: &str) -> Result<String> {
    let escapes_are_whole = raw
        .split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|digit| digit.is_ascii_hexdigit()));
    let text = percent_decode_str(raw).decode_utf8();
    match text {
        // NUL is in no identifier, and the database could not keep it.
        Ok(text) if escapes_are_whole && !text.contains('\0') => Ok(text.into_owned()),
        _ => Err(Refusal::invalid_param(format!(
            "{name} in the path is not valid percent-encoded UTF-8"
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use chatd_config::RouterName;

    use super::*;
    use crate::{Auth, Paths, Reply, Request, Routes, raw, v3};

    async fn nothing(_: Arc<()>, _: Request) -> Result<Reply> {
        Ok(Reply::empty())
    }

    fn table(endpoints: Vec<(Method, Paths)>) -> Result<Table, String> {
        let routes = endpoints
            .into_iter()
            .fold(Routes::of(RouterName::ClientRooms), |routes, (method, paths)| {
                routes.route(method, paths, Auth::None, nothing)
            });
        Table::new(std::iter::once(&routes.bind(&Arc::new(()))))
    }

    fn rooms() -> Table {
        table(vec![
            (Method::GET, v3("/rooms/{roomId}/state/{eventType}/{stateKey?}")),
            (Method::PUT, v3("/rooms/{room}/state/{type}/{stateKey?}")),
            (Method::GET, v3("/profile/{userId}/displayname")),
            (Method::GET, v3("/profile/{userId}/{keyName}")),
            (Method::GET, raw("/_synapse/admin/v1/register")),
        ])
        .unwrap()
    }

    fn args(table: &Table, method: Method, path: &str) -> Vec<(String, String)> {
        let found = table.find(&method, path).map_err(|error| error.to_string()).unwrap();
        found.args.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn refused(table: &Table, method: Method, path: &str) -> (u16, String) {
        match table.find(&method, path) {
            Err(chatd_base::Error::Refused(refusal)) => {
                (refusal.status, refusal.errcode.into_owned())
            }
            _ => panic!("{method} {path} was found"),
        }
    }

    #[test]
    fn an_encoded_slash_belongs_to_its_argument() {
        let path = "/_matrix/client/v3/rooms/%21a%3Ax/state/org.x%2Fy/%2F..%2F";
        let args = args(&rooms(), Method::GET, path);
        assert_eq!(
            args,
            [("roomId", "!a:x"), ("eventType", "org.x/y"), ("stateKey", "/../")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn an_optional_argument_may_be_absent_and_names_are_those_of_the_method() {
        for path in ["/_matrix/client/r0/rooms/!a/state/t", "/_matrix/client/r0/rooms/!a/state/t/"]
        {
            let args = args(&rooms(), Method::PUT, path);
            assert_eq!(
                args.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
                ["room", "type"]
            );
        }
    }

    #[test]
    fn fixed_segments_win_over_arguments() {
        let table = rooms();
        assert_eq!(
            args(&table, Method::GET, "/_matrix/client/api/v1/profile/@a/displayname").len(),
            1
        );
        assert_eq!(args(&table, Method::GET, "/_matrix/client/v3/profile/@a/m.tz").len(), 2);
    }

    #[test]
    fn the_other_prefixes_lead_to_the_same_endpoints() {
        let table = rooms();
        assert!(table.find(&Method::HEAD, "/_chat/admin/v1/register").is_ok());
        assert!(table.find(&Method::GET, "/chat/client/r0/profile/@a/displayname").is_ok());
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let table = rooms();
        let unrecognized = |status| (status, "M_UNRECOGNIZED".to_owned());
        for path in ["/", "/_matrix/client/v3/nothing", "/_matrix/client/v3//state", "/chat", "*"] {
            assert_eq!(refused(&table, Method::GET, path), unrecognized(404), "{path}");
        }
        assert_eq!(refused(&table, Method::POST, "/_synapse/admin/v1/register"), unrecognized(405));
        for bad in ["%ff", "%", "%4", "%zz", "a%C3", "%00", "a%00b", "%c0%80", "%ed%a0%80"] {
            let path = format!("/_matrix/client/v3/profile/{bad}/m.tz");
            assert_eq!(
                refused(&table, Method::GET, &path),
                (400, "M_INVALID_PARAM".to_owned()),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_endpoint_cannot_be_declared_twice() {
        let twice = vec![(Method::GET, v3("/a/{b}")), (Method::GET, v3("/a/{c}"))];
        assert!(table(twice).is_err());
    }
}
