//! Requests to servers that are no homeservers, whom clients and events name: identity servers.
//! Over TLS only, with certificates that are always checked, to addresses that are judged like all
//! others; no redirection is followed. An instance that may not speak with others has one do it that
//! may.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chatd_base::{Calls, Error, Refusal};
use chatd_config::Config;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use crate::{
    Failure,
    client::{agent, refused},
    connect::Connector,
    dns::Dns,
    relay::{Errand, Outbound, told},
    tls::Tls,
    transport::Transport,
};

/// For one whole exchange.
const WITHIN: Duration = Duration::from_secs(10);
/// Largest answer (R8).
const MOST_BYTES: usize = 64 << 10;
const CALL: &str = "servers.ask_outside";

/// Asks servers that are no homeservers.
pub struct Outside {
    transport: Transport,
    agent: HeaderValue,
    outbound: Arc<Outbound>,
}

/// A request, as it goes to another instance.
#[derive(Serialize, Deserialize)]
struct Carried {
    url: String,
    token: Option<String>,
    /// Of a POST; a GET has none.
    body: Option<Value>,
}

impl Outside {
    /// Fails if authorities that the configuration names cannot be read.
    pub(crate) fn new(config: &Config, outbound: &Arc<Outbound>) -> Result<Self, String> {
        let dns = Dns::new(config.chatd.dns_servers.as_deref())?;
        let federation = &config.federation;
        let connector = Connector::new(Tls::strict(federation)?, config, dns);
        let transport = Transport::new(connector);
        Ok(Self { transport, agent: agent(federation)?, outbound: outbound.clone() })
    }

    /// What is at `url`, with an access token for that server if it wants one.
    pub async fn get<T: DeserializeOwned>(
        &self,
        url: &Url,
        token: Option<&str>,
    ) -> Result<T, Failure> {
        self.ask(url, token, None).await
    }

    /// What a server answers to `body`.
    pub async fn post<T: DeserializeOwned>(
        &self,
        url: &Url,
        token: Option<&str>,
        body: &Value,
    ) -> Result<T, Failure> {
        self.ask(url, token, Some(body)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        url: &Url,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let answer = match self.outbound.is_restricted() {
            true => self.carry(url, token, body).await,
            false => self.ask_here(url, token, body).await,
        };
        let odd = |error| Failure::Odd(format!("not the expected JSON: {error}"));
        let read = answer.and_then(|answer| serde_json::from_slice(&answer).map_err(odd));
        let host = url.host_str().unwrap_or_default();
        read.inspect_err(|why| tracing::info!(host, %why, "a server that was named has not helped"))
    }

    async fn carry(
        &self,
        url: &Url,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Bytes, Failure> {
        let is_harmless = body.is_none();
        let token = token.map(str::to_owned);
        let carried = Carried { url: url.to_string(), token, body: body.cloned() };
        let body = serde_json::to_vec(&carried)
            .map_err(|error| Failure::Odd(format!("not a request: {error}")))?
            .into();
        let server = url.host_str().unwrap_or_default();
        self.outbound.run(Errand { call: CALL, server, body, within: WITHIN, is_harmless }).await
    }

    /// Starts to make requests for instances that may not.
    pub(crate) fn answer_calls(self: &Arc<Self>, calls: &Calls) {
        let outside = Arc::downgrade(self);
        calls.on(CALL, move |body| {
            let outside = outside.upgrade();
            async move {
                let outside = outside.ok_or_else(|| Refusal::not_owner(String::new()))?;
                outside.ask_for_another(&body).await
            }
        });
    }

    async fn ask_for_another(&self, body: &[u8]) -> Result<Vec<u8>, Error> {
        let bad = |error: &dyn std::fmt::Display| Refusal::bad_json(format!("no request: {error}"));
        // A misconfigured fleet must not carry requests in circles.
        if self.outbound.is_restricted() {
            return Err(Refusal::not_owner(String::new()).into());
        }
        let Carried { url, token, body } =
            serde_json::from_slice(body).map_err(|error| bad(&error))?;
        let url = Url::parse(&url).map_err(|error| bad(&error))?;
        let answer = self.ask_here(&url, token.as_deref(), body.as_ref()).await;
        answer.map(Vec::from).map_err(|failure| told(&failure))
    }

    async fn ask_here(
        &self,
        url: &Url,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Bytes, Failure> {
        let by = Instant::now() + WITHIN;
        let mut request = request(url, token, body)?;
        request.headers_mut().insert(header::USER_AGENT, self.agent.clone());
        let answer = self.transport.send(request, by, by, MOST_BYTES).await?;
        if !answer.status.is_success() {
            return Err(refused(answer).await);
        }
        answer.body.all().await
    }
}

/// A GET, or with a body a POST.
fn request(
    url: &Url,
    token: Option<&str>,
    body: Option<&Value>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let odd = |error: &dyn std::fmt::Display| {
        Failure::Odd(format!("no request to {url} can be made: {error}"))
    };
    let host = url.host_str().filter(|_| url.scheme() == "https");
    let host = host.ok_or_else(|| odd(&"it is no https URL"))?;
    let named = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    // Without a port, this would be the port of federation.
    let port = url.port().unwrap_or(crate::HTTPS);
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut request = Request::builder()
        .method(if body.is_some() { Method::POST } else { Method::GET })
        .uri(format!("https://{host}:{port}{}{query}", url.path()))
        .header(header::HOST, named);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    request.body(Full::new(body)).map_err(|error| odd(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_over_tls_and_to_the_port_of_https() {
        let of = |url: &str| request(&Url::parse(url).unwrap(), Some("t"), None);
        let made = of("https://id.example/a/b?c=d").unwrap();
        assert_eq!(made.uri(), "https://id.example:443/a/b?c=d");
        assert_eq!(made.headers()["host"], "id.example");
        assert_eq!(made.headers()["authorization"], "Bearer t");
        let made = of("https://[::1]:8090/").unwrap();
        assert_eq!(made.uri(), "https://[::1]:8090/");
        for url in ["http://id.example/", "data:x", "file:///etc/passwd"] {
            assert!(of(url).is_err(), "{url}");
        }
        let broken = request(&Url::parse("https://a/").unwrap(), Some("a\nb"), None);
        assert!(broken.is_err(), "a token is no place for other headers");
    }
}
