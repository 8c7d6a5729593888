//! Requests to other servers: signed, bounded, and sent to where discovery says.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chatd_config::{Config, Federation};
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use rand::Rng;
use ruma_common::{OwnedServerName, ServerName};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::{
    Ask, BackOff, Body, Deps, Failure, Retries,
    connect::{self, Connector},
    dns::Dns,
    failure::passed_on,
    pace::Pace,
    relay::Outbound,
    sign::RequestSigner,
    tls::Tls,
    transport::{Answer, Transport},
    well_known::WellKnown,
};

const USER_AGENT: &str = concat!("chatd/", env!("CARGO_PKG_VERSION"));
const REQUESTS: &str = "synapse_http_matrixfederationclient_requests_total";
const RESPONSES: &str = "synapse_http_matrixfederationclient_responses_total";
/// Whoever gives up sooner learns little about the server: that it has not answered is not noted.
/// Clients say how long they wait for keys of others, and must not have these left alone.
pub const PATIENT: Duration = Duration::from_secs(8);
/// Of an answer that refuses (R8).
const MOST_OF_A_REFUSAL: usize = 64 << 10;
/// Before the first repeat; the wait doubles for requests that somebody waits for, and grows
/// fourfold for others.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What this server calls itself.
pub(crate) fn agent(config: &Federation) -> Result<HeaderValue, String> {
    let suffix = config.user_agent_suffix.as_ref().map(|suffix| format!(" {suffix}"));
    HeaderValue::try_from(format!("{USER_AGENT}{}", suffix.unwrap_or_default()))
        .map_err(|_| "user_agent_suffix: this cannot stand in a header".to_owned())
}

/// Asks other servers.
pub struct Client {
    deps: Deps,
    signer: RequestSigner,
    agent: HeaderValue,
    transport: Transport,
    well_known: WellKnown,
    back_off: Arc<BackOff>,
    pace: Pace,
    /// Of this instance, for all requests that it makes.
    pub(crate) outbound: Arc<Outbound>,
}

impl Client {
    /// Fails if authorities that the configuration names cannot be read.
    pub(crate) fn new(deps: &Deps, back_off: &Arc<BackOff>) -> Result<Self, String> {
        let Config { server_name, federation, .. } = &*deps.config;
        let agent = agent(federation)?;
        let dns = Dns::new(deps.config.chatd.dns_servers.as_deref())?;
        let connector = Connector::new(Tls::new(federation)?, &deps.config, dns);
        let transport = Transport::new(connector);
        Ok(Self {
            deps: deps.clone(),
            signer: RequestSigner::new(server_name.clone(), deps.keys.current()),
            well_known: WellKnown::new(&transport, &agent, &deps.clock, deps.well_known_port),
            transport,
            agent,
            back_off: back_off.clone(),
            pace: Pace::new(&deps.clock),
            outbound: Arc::new(Outbound::new(&deps.config.workers)),
        })
    }

    /// The host under which `server` is asked: its own, or the one that it delegates to. Where
    /// that is, the connection finds out.
    async fn authority(&self, server: &ServerName) -> OwnedServerName {
        let is_place = server.port().is_some() || connect::literal(server.host()).is_some();
        let delegated = if is_place { None } else { self.well_known.delegated(server).await };
        delegated.unwrap_or_else(|| server.to_owned())
    }

    /// Makes a request; the body of its answer.
    pub async fn ask(&self, server: &ServerName, ask: Ask) -> Result<Bytes, Failure> {
        let _wait = self.pace.wait(server);
        let body = self.ask_stream(server, ask).await?.all().await;
        body.inspect_err(|failure| say(server, failure))
    }

    /// The same for an answer of that form.
    pub async fn ask_json<T: DeserializeOwned>(
        &self,
        server: &ServerName,
        ask: Ask,
    ) -> Result<T, Failure> {
        let body = self.ask(server, ask).await?;
        let odd = |error| Failure::Odd(format!("not the expected JSON: {error}"));
        let read = serde_json::from_slice(&body).map_err(odd);
        read.inspect_err(|failure| say(server, failure))
    }

    /// Makes a request; the body of its answer as it comes.
    pub async fn ask_stream(&self, server: &ServerName, ask: Ask) -> Result<Body, Failure> {
        let config = &self.deps.config;
        if *server == config.server_name {
            return Err(Failure::Forbidden(format!("{server} is this server")));
        }
        if !config.federation.may_talk_to(server) {
            let why = format!("{server} is not in federation_domain_whitelist");
            return Err(Failure::Forbidden(why));
        }
        if self.outbound.is_restricted() {
            return self.outbound.carry(server, &ask).await.map(Body::from);
        }
        if let Some(until_ms) = self.left_alone_until(server).await
            && !ask.ignores_back_off
        {
            return Err(Failure::BackingOff { until_ms });
        }
        let began = Instant::now();
        let answer = self.ask_again(server, &ask).await;
        let gave_up_soon = ask.within < PATIENT && began.elapsed() >= ask.within;
        let noted = match &answer {
            Err(failure) if failure.is_of_the_server() && gave_up_soon => Ok(()),
            Err(failure) if failure.is_of_the_server() => self.back_off.note_failure(server).await,
            Ok(_) | Err(Failure::Refused { .. }) => self.back_off.note_life(server).await,
            Err(_) => Ok(()),
        };
        if let Err(error) = noted {
            tracing::debug!(server.name = %server, %error, "it could not be noted how a server is");
        }
        answer.inspect_err(|failure| say(server, failure))
    }

    /// Puts servers that have lately been slow behind the others, of which each keeps its place.
    pub fn put_slow_last(&self, servers: &mut [OwnedServerName]) {
        servers.sort_by_cached_key(|server| self.pace.is_slow(server));
    }

    /// Takes note that the server has made a request of its own.
    pub(crate) async fn has_heard_from(&self, server: &ServerName) {
        if let Err(error) = self.back_off.note_life(server).await {
            tracing::debug!(server.name = %server, %error, "it could not be noted how a server is");
        }
    }

    /// What cannot be read keeps nobody from asking.
    async fn left_alone_until(&self, server: &ServerName) -> Option<u64> {
        self.back_off.until(server).await.unwrap_or_else(|error| {
            tracing::debug!(server.name = %server, %error, "it could not be read how a server is");
            None
        })
    }

    /// Asks until there is an answer, as often as the configuration allows.
    async fn ask_again(&self, server: &ServerName, ask: &Ask) -> Result<Body, Failure> {
        let all_by = Instant::now() + ask.within;
        let mut repeats = 0;
        loop {
            let failure = match self.ask_once(server, ask, all_by).await {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            let pause = self.pause(ask, repeats, &failure);
            let Some(pause) = pause.filter(|pause| Instant::now() + *pause < all_by) else {
                return Err(failure);
            };
            tracing::debug!(server.name = %server, path = ask.path, %failure, "asking again");
            if !self.deps.stop.sleep(pause).await {
                return Err(failure);
            }
            repeats += 1;
        }
    }

    /// How long to wait before another attempt, if there is to be one. No request of the
    /// specification does harm when it is made again, but those by POST take keys away: they are
    /// repeated once, for connections that end just when they are used again.
    fn pause(&self, ask: &Ask, repeats: u32, failure: &Failure) -> Option<Duration> {
        let limits = &self.deps.config.federation.limits;
        let harmless = ask.method == Method::GET || ask.method == Method::PUT;
        let again = match failure {
            Failure::Away(_) => harmless || repeats == 0,
            Failure::Refused { .. } => {
                harmless && failure.is_of_the_server() && ask.retries == Retries::Long
            }
            _ => false,
        };
        let (most, factor, longest) = match ask.retries {
            Retries::None => return None,
            Retries::Short => (limits.max_short_retries, 2_u32, limits.max_short_retry_delay),
            Retries::Long => (limits.max_long_retries, 4, limits.max_long_retry_delay),
        };
        let pause = FIRST_PAUSE.saturating_mul(factor.saturating_pow(repeats)).min(longest);
        (again && repeats < most).then(|| pause.mul_f64(rand::rng().random_range(0.8..1.4)))
    }

    async fn ask_once(
        &self,
        server: &ServerName,
        ask: &Ask,
        all_by: Instant,
    ) -> Result<Body, Failure> {
        let found = timeout_at(all_by, self.authority(server)).await;
        let found =
            found.map_err(|_| Failure::Away(format!("{server} cannot be found in time")))?;
        let request = self.request(server, found.as_str(), ask)?;
        let head_by =
            all_by.min(Instant::now() + self.deps.config.federation.limits.client_timeout);
        metrics::counter!(REQUESTS, "method" => ask.method.to_string()).increment(1);
        let answer = self.transport.send(request, head_by, all_by, ask.most_bytes).await?;
        let code = answer.status.as_str().to_owned();
        metrics::counter!(RESPONSES, "method" => ask.method.to_string(), "code" => code)
            .increment(1);
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        if answer.status.is_redirection() || answer.status.is_informational() {
            return Err(Failure::Odd(format!("{server} answers {}", answer.status)));
        }
        Err(refused(answer).await)
    }

    /// The signed request to `server`, which is found at `authority`.
    fn request(
        &self,
        server: &ServerName,
        authority: &str,
        ask: &Ask,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let odd = |error: &dyn std::fmt::Display| {
            Failure::Odd(format!("no request to {server} can be made: {error}"))
        };
        let body = ask.body.as_deref();
        let signed = self.signer.header(&ask.method, server, &ask.path, body);
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("https://{authority}{}", ask.path))
            .header(header::HOST, authority)
            .header(header::USER_AGENT, self.agent.clone())
            .header(header::AUTHORIZATION, signed.map_err(|error| odd(&error))?);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(ask.body.clone().unwrap_or_default())).map_err(|error| odd(&error))
    }
}

/// The refusal that an answer is. Its words are passed on to clients.
pub(crate) async fn refused(answer: Answer) -> Failure {
    let status = answer.status.as_u16();
    let body = answer.body.at_most(MOST_OF_A_REFUSAL).all().await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| passed_on(body.get(name).and_then(Value::as_str).unwrap_or_default());
    Failure::Refused { status, errcode: text("errcode"), error: text("error"), body }
}

/// What is contained is in the log: answers that are none, and places that are nobody's business.
fn say(server: &ServerName, failure: &Failure) {
    match failure {
        Failure::Odd(why) => {
            tracing::info!(server.name = %server, why, "an answer of another server is of no use");
        }
        Failure::Forbidden(why) => {
            tracing::info!(server.name = %server, why, "another server is not asked");
        }
        Failure::Away(why) => {
            tracing::debug!(server.name = %server, why, "another server cannot be asked");
        }
        Failure::Refused { .. } | Failure::BackingOff { .. } => {}
    }
}
