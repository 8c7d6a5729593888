//! Requests to servers that are no homeservers, whom clients and events name: identity servers.
//! Over TLS only, with certificates that are always checked, to addresses that are judged like all
//! others; no redirection is followed.

use std::time::Duration;

use bytes::Bytes;
use chatd_config::Config;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use crate::{
    Failure,
    client::{agent, refused},
    connect::Connector,
    dns::Dns,
    tls::Tls,
    transport::Transport,
};

/// For one whole exchange.
const WITHIN: Duration = Duration::from_secs(10);
/// Largest answer (R8).
const MOST_BYTES: usize = 64 << 10;

/// Asks servers that are no homeservers.
pub struct Outside {
    transport: Transport,
    agent: HeaderValue,
}

impl Outside {
    /// Fails if authorities that the configuration names cannot be read.
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        let dns = Dns::new(config.chatd.dns_servers.as_deref())?;
        let federation = &config.federation;
        let connector = Connector::new(Tls::strict(federation)?, config, dns);
        Ok(Self { transport: Transport::new(connector), agent: agent(federation)? })
    }

    /// What is at `url`, with an access token for that server if it wants one.
    pub async fn get<T: DeserializeOwned>(
        &self,
        url: &Url,
        token: Option<&str>,
    ) -> Result<T, Failure> {
        self.ask(Method::GET, url, token, None).await
    }

    /// What a server answers to `body`.
    pub async fn post<T: DeserializeOwned>(
        &self,
        url: &Url,
        token: Option<&str>,
        body: &Value,
    ) -> Result<T, Failure> {
        self.ask(Method::POST, url, token, Some(body)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        url: &Url,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let by = Instant::now() + WITHIN;
        let mut request = request(method, url, token, body)?;
        request.headers_mut().insert(header::USER_AGENT, self.agent.clone());
        let answer = self.transport.send(request, by, by, MOST_BYTES).await?;
        if !answer.status.is_success() {
            return Err(refused(answer).await);
        }
        let body = answer.body.all().await?;
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Odd(format!("not the expected JSON: {error}")))
    }
}

fn request(
    method: Method,
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
        .method(method)
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
        let of = |url: &str| request(Method::GET, &Url::parse(url).unwrap(), Some("t"), None);
        let made = of("https://id.example/a/b?c=d").unwrap();
        assert_eq!(made.uri(), "https://id.example:443/a/b?c=d");
        assert_eq!(made.headers()["host"], "id.example");
        assert_eq!(made.headers()["authorization"], "Bearer t");
        let made = of("https://[::1]:8090/").unwrap();
        assert_eq!(made.uri(), "https://[::1]:8090/");
        for url in ["http://id.example/", "data:x", "file:///etc/passwd"] {
            assert!(of(url).is_err(), "{url}");
        }
        let broken = request(Method::GET, &Url::parse("https://a/").unwrap(), Some("a\nb"), None);
        assert!(broken.is_err(), "a token is no place for other headers");
    }
}
