//! `/.well-known/matrix/server` of other servers: to which host they delegate, and how long that
//! may be believed (spec: resolving server names, step 3).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chatd_base::{Cache, Clock};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Full;
use ruma_common::{OwnedServerName, ServerName};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};

use crate::{Failure, transport::Transport};

/// Servers whose delegation is remembered (R8).
const CACHE: usize = 20_000;
/// For the whole way, redirections included.
const WITHIN: Duration = Duration::from_secs(10);
const MOST_BYTES: usize = 50 << 10;
const MOST_REDIRECTIONS: usize = 10;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
/// What an answer may say about its time, and what counts where it says nothing.
const SHORTEST_MS: u64 = 5 * MINUTE_MS;
const USUAL_MS: u64 = 24 * HOUR_MS;
const LONGEST_MS: u64 = 48 * HOUR_MS;
/// A server that does not delegate, or says so in a way that nobody understands.
const NOT_DELEGATED_MS: u64 = HOUR_MS;
/// A server that does not answer; each time in a row it is twice as long, up to an hour.
const SILENT_MS: u64 = 2 * MINUTE_MS;
/// How long a delegation counts on while the server does not answer.
const GRACE_MS: u64 = 24 * HOUR_MS;

/// Knows to which hosts servers delegate.
pub(crate) struct WellKnown {
    transport: Transport,
    agent: HeaderValue,
    clock: Clock,
    /// Where the documents are served: 443, but in tests.
    port: u16,
    /// One request at a time for each server: others wait for it.
    known: Cache<OwnedServerName, Arc<Mutex<Known>>>,
}

/// What is known of one server.
#[derive(Clone, Debug, Default)]
struct Known {
    delegated: Option<OwnedServerName>,
    until_ms: u64,
    /// Until when `delegated` counts if nothing better can be had.
    grace_until_ms: u64,
    /// Times in a row that the server has not answered.
    silences: u32,
}

/// What one look has found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Delegated(OwnedServerName, u64),
    NotDelegated,
    Silence,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "m.server")]
    server: OwnedServerName,
}

impl WellKnown {
    pub(crate) fn new(
        transport: &Transport,
        agent: &HeaderValue,
        clock: &Clock,
        port: u16,
    ) -> Self {
        let known = Cache::new("well_known", CACHE);
        let (transport, agent, clock) = (transport.clone(), agent.clone(), clock.clone());
        Self { transport, agent, clock, port, known }
    }

    /// To whom `server`, a name without a port, delegates.
    pub(crate) async fn delegated(&self, server: &ServerName) -> Option<OwnedServerName> {
        let known = self.known.get(server).unwrap_or_else(|| {
            let fresh = Arc::<Mutex<Known>>::default();
            self.known.insert(server.to_owned(), fresh.clone());
            fresh
        });
        let mut known = known.lock().await;
        if known.until_ms <= self.clock.now_ms() {
            let found = self.look(server).await;
            tracing::debug!(server.name = %server, ?found, "looked for a delegation");
            known.learn(found, self.clock.now_ms());
        }
        known.delegated.clone()
    }

    /// Fetches the document. Redirections are followed, but not in circles and not without TLS.
    async fn look(&self, server: &ServerName) -> Found {
        let by = Instant::now() + WITHIN;
        let start = format!("https://{server}:{}/.well-known/matrix/server", self.port);
        let Ok(mut uri) = start.parse::<Uri>() else { return Found::NotDelegated };
        let mut seen = Vec::new();
        loop {
            let answer = match self.fetch(&uri, by).await {
                Ok(answer) => answer,
                Err(Failure::Away(_)) => return Found::Silence,
                Err(_) => return Found::NotDelegated,
            };
            let next = match answer.status {
                StatusCode::OK => return self.read(answer).await,
                status if status.is_server_error() => return Found::Silence,
                status if status.is_redirection() => redirection(&uri, &answer.headers),
                _ => None,
            };
            seen.push(uri);
            match next {
                Some(next) if seen.len() <= MOST_REDIRECTIONS && !seen.contains(&next) => {
                    uri = next;
                }
                _ => return Found::NotDelegated,
            }
        }
    }

    async fn fetch(&self, uri: &Uri, by: Instant) -> Result<crate::transport::Answer, Failure> {
        let odd = |error: &dyn std::fmt::Display| Failure::Odd(error.to_string());
        let host = uri.authority().ok_or_else(|| odd(&"no host"))?;
        // Without a port, this would be the port of federation.
        let port = uri.port_u16().unwrap_or(443);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(format!("https://{}:{port}{path}", host.host()))
            .header(header::HOST, host.as_str().trim_end_matches(":443"))
            .header(header::USER_AGENT, self.agent.clone())
            .body(Full::<Bytes>::default())
            .map_err(|error| odd(&error))?;
        self.transport.send(request, by, by, MOST_BYTES).await
    }

    async fn read(&self, answer: crate::transport::Answer) -> Found {
        let lifetime_ms = lifetime_ms(&answer.headers, self.clock.now_ms());
        let body = match answer.body.all().await {
            Ok(body) => body,
            Err(Failure::Away(_)) => return Found::Silence,
            Err(_) => return Found::NotDelegated,
        };
        match serde_json::from_slice::<Document>(&body) {
            Ok(document) => Found::Delegated(document.server, lifetime_ms),
            Err(_) => Found::NotDelegated,
        }
    }
}

impl Known {
    fn learn(&mut self, found: Found, now_ms: u64) {
        *self = match found {
            Found::Delegated(to, lifetime_ms) => Self {
                delegated: Some(to),
                until_ms: now_ms + lifetime_ms,
                grace_until_ms: now_ms + lifetime_ms + GRACE_MS,
                silences: 0,
            },
            Found::NotDelegated => Self { until_ms: now_ms + NOT_DELEGATED_MS, ..Self::default() },
            Found::Silence => {
                let wait_ms = SILENT_MS << self.silences.min(5);
                Self {
                    delegated: self.delegated.take().filter(|_| now_ms < self.grace_until_ms),
                    until_ms: now_ms + wait_ms.min(HOUR_MS),
                    grace_until_ms: self.grace_until_ms,
                    silences: self.silences + 1,
                }
            }
        };
    }
}

/// Where to look next: over TLS, and to a name that this is.
fn redirection(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let to = headers.get(header::LOCATION)?.to_str().ok()?;
    let to = url::Url::parse(&from.to_string()).ok()?.join(to).ok()?;
    let bare = to.username().is_empty() && to.password().is_none();
    (to.scheme() == "https" && bare).then(|| to.as_str().parse().ok()).flatten()
}

/// For how long an answer may be believed.
fn lifetime_ms(headers: &HeaderMap, now_ms: u64) -> u64 {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let told = match text(header::CACHE_CONTROL) {
        Some(control) => directives(control),
        None => text(header::EXPIRES).map(|date| {
            let date = httpdate::parse_http_date(date).ok();
            let since = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
            let at_ms = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
            at_ms.saturating_sub(now_ms)
        }),
    };
    told.unwrap_or(USUAL_MS).clamp(SHORTEST_MS, LONGEST_MS)
}

/// What `Cache-Control` says.
fn directives(control: &str) -> Option<u64> {
    let mut told = None;
    for directive in control.split(',').map(|one| one.trim().to_ascii_lowercase()) {
        if directive == "no-store" || directive == "no-cache" {
            return Some(0);
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            let seconds: Option<u64> = seconds.trim_matches('"').parse().ok();
            told = seconds.map(|seconds| seconds.saturating_mul(1_000));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_answer_says_how_long_it_counts_within_bounds() {
        let now_ms = 1_700_000_000_000;
        for (pairs, lifetime) in [
            (&[][..], USUAL_MS),
            (&[("cache-control", "public, Max-Age=7200")], 2 * HOUR_MS),
            (&[("cache-control", "max-age=99999999")], LONGEST_MS),
            (&[("cache-control", "max-age=1")], SHORTEST_MS),
            (&[("cache-control", "no-store")], SHORTEST_MS),
            (&[("cache-control", "public")], USUAL_MS),
            (&[("cache-control", "max-age=soon")], USUAL_MS),
            (&[("expires", "Tue, 14 Nov 2023 23:13:20 GMT")], HOUR_MS),
            (&[("expires", "0")], SHORTEST_MS),
            (&[("expires", "0"), ("cache-control", "max-age=3600")], HOUR_MS),
        ] {
            assert_eq!(lifetime_ms(&headers(pairs), now_ms), lifetime, "{pairs:?}");
        }
    }

    #[test]
    fn redirections_stay_with_tls() {
        let from: Uri = "https://a.example:443/.well-known/matrix/server".parse().unwrap();
        let to = |location| redirection(&from, &headers(&[("location", location)]));
        assert_eq!(to("/x").unwrap(), "https://a.example/x");
        assert_eq!(to("https://b.example:1/x").unwrap(), "https://b.example:1/x");
        for location in ["http://b.example/", "ftp://b.example", "https://u:p@b.example/", "//"] {
            assert_eq!(to(location), None, "{location}");
        }
    }

    #[test]
    fn a_delegation_outlives_a_silence_for_a_while() {
        let to = ServerName::parse("b.example").unwrap();
        let mut known = Known::default();
        known.learn(Found::Delegated(to.clone(), HOUR_MS), 0);
        assert_eq!((known.delegated.as_ref(), known.until_ms), (Some(&to), HOUR_MS));
        known.learn(Found::Silence, HOUR_MS);
        assert_eq!((known.delegated.as_ref(), known.until_ms), (Some(&to), HOUR_MS + SILENT_MS));
        known.learn(Found::Silence, 2 * HOUR_MS);
        assert_eq!(known.until_ms, 2 * HOUR_MS + 2 * SILENT_MS, "it is asked less often");
        for _ in 0..40 {
            known.learn(Found::Silence, 0);
        }
        assert_eq!(known.until_ms, HOUR_MS);
        known.learn(Found::Silence, HOUR_MS + GRACE_MS);
        assert_eq!(known.delegated, None);
        known.learn(Found::Delegated(to, HOUR_MS), 0);
        known.learn(Found::NotDelegated, 1);
        assert_eq!(known.delegated, None);
    }
}
