//! One request from its head to its answer: the order of the checks, and the one place where
//! errors become JSON, panics are caught, and requests are counted.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::IpAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chatd_base::{
    Authenticate, AuthenticateServer, Error, Refusal, Result, SignedRequest, cost, cost::Cost,
    request_id, tasks,
};
use chatd_config::{Fresh, RouterName};
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::{
    Auth, Fleet, Home, Limits, Reply, Request, auth, body,
    body::Outgoing,
    carry::Carried,
    client,
    meter::{Counted, Meter},
    router::Endpoint,
    table::{Match, Table},
};

/// What all listeners of an instance share.
pub(crate) struct Edge {
    pub(crate) users: Arc<dyn Authenticate>,
    pub(crate) servers: Arc<dyn AuthenticateServer>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) max_body: usize,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) expose_cost: bool,
    pub(crate) fresh: Fresh,
    /// The other instances; absent where there are none.
    pub(crate) fleet: Option<Fleet>,
    /// What this instance answers itself.
    pub(crate) mounted: BTreeSet<RouterName>,
    /// Connections, and requests that write although their clients are gone.
    pub(crate) under_way: TaskTracker,
    pub(crate) count: AtomicU64,
    /// Of this instance, for ids of requests.
    pub(crate) instance: String,
    /// Counts what browsers ask before they send.
    pub(crate) preflight: Arc<Meter>,
    /// Counts requests to endpoints that there are not.
    pub(crate) unknown: Arc<Meter>,
}

/// What one listener serves, and how.
pub(crate) struct Site {
    pub(crate) table: Table,
    /// What other instances may carry here, on a replication listener.
    pub(crate) carried: Option<Table>,
    pub(crate) x_forwarded: bool,
    pub(crate) request_id_header: Option<HeaderName>,
    pub(crate) compress: bool,
}

/// Answers one request. Never fails: every error is an answer.
pub(crate) async fn answer(
    edge: Arc<Edge>,
    site: Arc<Site>,
    peer: Option<IpAddr>,
    request: http::Request<Incoming>,
) -> Result<Response<Outgoing>, Infallible> {
    let gzip = site.compress && body::accepts_gzip(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let unread = body::Unread::of(&request);
    let (mut head, mut incoming) = request.into_parts();
    let mut origin = Origin {
        address: client::address(peer, &head.headers, site.x_forwarded),
        id: request_id(&edge, &site, &head),
        carried: None,
    };
    let table = takes_carried(&edge, &site, &mut head, &mut origin);
    // What is logged of a carried request has the id that the client's request has where it came.
    let span = tracing::info_span!("request", id = %origin.id);
    let found = table.and_then(|table| table.find(&head.method, head.uri.path()));
    let counted = Counted::begin(edge.meter_of(&method, found.as_ref().ok()));

    let outcome = handle(&edge, found, origin, head, &mut incoming).instrument(span.clone()).await;
    unread.discard(incoming, edge.read_timeout);
    let mut reply = outcome.unwrap_or_else(|error| span.in_scope(|| render(error)));
    if gzip {
        body::compress(&mut reply);
    }
    let took = counted.answered(reply.status);
    span.in_scope(|| note(&method, &path, reply.status, took));
    Ok(finish(reply))
}

impl Edge {
    /// The meter of the endpoint that was found, or of those that were not.
    fn meter_of<'a>(&'a self, method: &Method, found: Option<&'a Match>) -> &'a Arc<Meter> {
        match found {
            _ if method == Method::OPTIONS => &self.preflight,
            Some(found) => &found.endpoint.meter,
            None => &self.unknown,
        }
    }
}

/// The request's id: what another instance or the proxy says, or the method and a number; in a fleet with the name of
/// the instance, so that it is one request's wherever it is carried.
fn request_id(edge: &Edge, site: &Site, head: &http::request::Parts) -> Arc<str> {
    const LONGEST: usize = 128;
    let of_peer = edge.fleet.as_ref().filter(|_| site.carried.is_some());
    if let Some(id) = of_peer.and_then(|fleet| fleet.request_id(&head.headers)) {
        return id;
    }
    let given = site
        .request_id_header
        .as_ref()
        .and_then(|name| head.headers.get(name)?.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= LONGEST);
    if let Some(id) = given {
        return id.into();
    }
    let number = edge.count.fetch_add(1, Ordering::Relaxed);
    match &edge.fleet {
        Some(_) => format!("{}-{}-{number}", edge.instance, head.method).into(),
        None => format!("{}-{number}", head.method).into(),
    }
}

/// Lets the endpoint answer that was found.
async fn handle(
    edge: &Arc<Edge>,
    found: Result<Match>,
    origin: Origin,
    head: http::request::Parts,
    incoming: &mut Incoming,
) -> Result<Reply> {
    // Browsers ask before they send; every path answers, known or not.
    if head.method == Method::OPTIONS {
        return Ok(Reply::empty());
    }
    let Match { endpoint, args } = found?;
    freshen(edge, &endpoint).await;
    let is_carried = origin.carried.is_some();
    let told = origin.carried.unwrap_or_default();
    let request = Request {
        address: origin.address,
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        args,
        body: bytes::Bytes::new(),
        requester: None,
        id: origin.id,
        key: told.key,
        origin: told.origin,
        turn: None,
    };
    let request = admit(edge, &endpoint, request, incoming, is_carried).await?;
    match is_carried {
        true => run(edge, &endpoint, request).await,
        false => run_at_home(edge, &endpoint, request).await,
    }
}

/// Brings this instance up to date with the others, for requests that want it.
async fn freshen(edge: &Edge, endpoint: &Endpoint) {
    let Some(fleet) = &edge.fleet else { return };
    let wants = match edge.fresh {
        Fresh::Never => false,
        Fresh::Reads => endpoint.router != RouterName::ClientSync,
        Fresh::Always => true,
    };
    if wants && !endpoint.is_builtin() {
        fleet.level().await;
    }
}

/// Where a request comes from.
struct Origin {
    address: Option<IpAddr>,
    id: Arc<str>,
    /// What another instance says that has carried it here.
    carried: Option<Carried>,
}

/// The table in which to look for the endpoint. What a carried request says of its client counts
/// as if the client had come here itself.
fn takes_carried<'a>(
    edge: &Edge,
    site: &'a Site,
    head: &mut http::request::Parts,
    origin: &mut Origin,
) -> Result<&'a Table> {
    let (Some(fleet), Some(carried)) = (&edge.fleet, &site.carried) else { return Ok(&site.table) };
    let Some(told) = fleet.unwrap(head)? else { return Ok(&site.table) };
    origin.address = told.client;
    origin.carried = Some(told);
    Ok(carried)
}

/// Answers on this instance, or has another one answer whose work it is.
async fn run_at_home(
    edge: &Arc<Edge>,
    endpoint: &Arc<Endpoint>,
    request: Request,
) -> Result<Reply> {
    let is_mounted = edge.mounted.contains(&endpoint.router) || endpoint.is_builtin();
    match &edge.fleet {
        Some(fleet) if !is_mounted || endpoint.home != Home::Anywhere => {
            fleet.answer(endpoint, request, |request| run(edge, endpoint, request)).await
        }
        _ => run(edge, endpoint, request).await,
    }
}

/// Finds out who calls, applies the rate limit, then reads the body: in this order, so that
/// strangers cannot make the server hold large bodies.
async fn admit(
    edge: &Edge,
    endpoint: &Endpoint,
    mut request: Request,
    incoming: &mut Incoming,
    is_carried: bool,
) -> Result<Request> {
    if endpoint.auth == Auth::Peer {
        let stranger = || Refusal::unrecognized("unrecognized request");
        edge.fleet.as_ref().ok_or_else(stranger)?.admit(&request.headers)?;
    }
    let users = edge.users.as_ref();
    request.requester =
        auth::requester(endpoint.auth, users, &request.headers, &request.uri, request.address)
            .await?;
    // Whoever carried it has counted it.
    if let Some(class) = endpoint.limit.filter(|_| !is_carried) {
        match (&request.requester, request.address) {
            (Some(who), _) => edge.limits.check(class, who.user_id.as_str())?,
            (None, Some(address)) => edge.limits.check(class, &address.to_string())?,
            // A unix socket without a proxy's header: nobody to tell apart.
            (None, None) => {}
        }
    }
    if endpoint.auth.is_server() && !is_carried && !auth::claims_a_server(&request.headers) {
        return Err(Refusal::unauthorized("missing Authorization header of X-Matrix").into());
    }
    let limit = endpoint.body_limit.unwrap_or(edge.max_body);
    request.body = body::read(incoming, limit, edge.read_timeout).await?;
    if endpoint.auth.is_server() && !is_carried {
        admit_server(edge, endpoint.auth, &mut request).await?;
    }
    Ok(request)
}

/// Finds out which server has signed a request, and waits until it is that server's turn.
async fn admit_server(edge: &Edge, auth: Auth, request: &mut Request) -> Result<()> {
    let headers = request.headers.get_all(header::AUTHORIZATION);
    let authorization: Vec<_> = headers.iter().map(HeaderValue::as_bytes).collect();
    let signed = SignedRequest {
        method: request.method.as_str(),
        uri: request.uri.path_and_query().map_or("/", |path| path.as_str()),
        authorization: &authorization,
        body: &request.body,
    };
    let origin = edge.servers.authenticate(signed).await?;
    if auth == Auth::Server {
        request.turn = Some(Arc::new(edge.limits.origins.turn_of(&origin).await?));
    }
    request.origin = Some(origin);
    Ok(())
}

/// Runs the handler. One that may write runs to its end though the client goes away; one that
/// only reads ends with its client.
async fn run(edge: &Arc<Edge>, endpoint: &Arc<Endpoint>, request: Request) -> Result<Reply> {
    if matches!(request.method, Method::GET | Method::HEAD) {
        return guarded(edge.expose_cost, endpoint.clone(), request).await;
    }
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let work = guarded(edge.expose_cost, endpoint.clone(), request).in_current_span();
    let tracked = edge.under_way.track_future(async move {
        // The client may be gone; the write has happened all the same.
        let _ = sender.send(work.await);
    });
    tasks::spawn("http_write", tracked);
    receiver.await.unwrap_or_else(|_| Err(Error::internal("the request's task ended early")))
}

/// The handler with its cost counted, where that is wanted, and its panics caught.
async fn guarded(expose_cost: bool, endpoint: Arc<Endpoint>, request: Request) -> Result<Reply> {
    // A handler that panicked leaves nothing behind that another request could see half done:
    // what it shares is in the database, or behind locks that are held for no await.
    let id = request.id.clone();
    let work = request_id::scope(id, async move { (endpoint.handler)(request).await });
    let work = AssertUnwindSafe(work).catch_unwind();
    let (outcome, cost) =
        if expose_cost { cost::scope(work).await } else { (work.await, Cost::default()) };
    let reply = outcome.unwrap_or_else(|_| {
        metrics::counter!("chatd_http_panics_total").increment(1);
        Err(Error::internal("the handler panicked"))
    });
    if expose_cost { with_cost(reply, cost) } else { reply }
}

/// The answer, refusals included, with what it cost.
fn with_cost(reply: Result<Reply>, cost: Cost) -> Result<Reply> {
    // Not an answer: the work goes on elsewhere.
    if reply.as_ref().is_err_and(|error| error.errcode() == Some(crate::carry::NOT_OWNER.1)) {
        return reply;
    }
    let text = format!("statements={}; round_trips={}", cost.statements, cost.round_trips);
    let reply = reply.unwrap_or_else(render);
    let value = HeaderValue::from_str(&text).map_err(Error::internal)?;
    Ok(reply.with_header(HeaderName::from_static("x-chatd-cost"), value))
}

/// The answer for an error. An internal one is logged here and nowhere else.
fn render(error: Error) -> Reply {
    let refusal = match error {
        Error::Refused(refusal) => *refusal,
        Error::Internal(cause) => {
            tracing::error!(error = %chain(cause.as_ref()), "a request failed");
            Refusal::new(500, "M_UNKNOWN", "internal server error")
        }
    };
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let reply = Reply::raw_json(refusal.to_json().to_string()).with_status(status);
    match refusal.extra.get("retry_after_ms").and_then(serde_json::Value::as_u64) {
        Some(ms) if status == StatusCode::TOO_MANY_REQUESTS => {
            reply.with_header(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)))
        }
        _ => reply,
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Adds the headers that every answer has.
fn finish(reply: Reply) -> Response<Outgoing> {
    let mut headers = reply.headers;
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("X-Requested-With, Content-Type, Authorization, Date"),
    );
    headers.insert(header::SERVER, HeaderValue::from_static("chatd"));
    default_caching(&mut headers);
    let mut response = Response::new(body::outgoing(reply.body));
    *response.status_mut() = reply.status;
    *response.headers_mut() = headers;
    response
}

/// Answers are for one caller and one moment, unless the handler says otherwise.
fn default_caching(headers: &mut HeaderMap) {
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-cache, no-store, must-revalidate"));
}

/// Writes the access log.
fn note(method: &Method, path: &str, status: StatusCode, took: Duration) {
    tracing::debug!(
        target: "chatd::access",
        %method, path, status = status.as_u16(), duration_ms = took.as_millis(), "answered"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(reply: &Reply) -> serde_json::Value {
        match &reply.body {
            crate::reply::Body::Whole(bytes) => serde_json::from_slice(bytes).unwrap(),
            crate::reply::Body::Stream(_) => panic!("an error is whole"),
        }
    }

    #[test]
    fn a_refusal_is_told_and_an_internal_error_is_not() {
        let reply = render(Refusal::forbidden("not yours").into());
        assert_eq!(reply.status, 403);
        assert_eq!(
            body_of(&reply),
            serde_json::json!({"errcode": "M_FORBIDDEN", "error": "not yours"})
        );

        let reply = render(Error::internal("password of the database is 123"));
        assert_eq!(reply.status, 500);
        assert_eq!(body_of(&reply)["errcode"], "M_UNKNOWN");
        assert!(!body_of(&reply).to_string().contains("123"));
    }

    #[test]
    fn a_rate_limit_says_when_to_come_back() {
        let reply = render(Refusal::limit_exceeded(1_200).into());
        assert_eq!(reply.headers[header::RETRY_AFTER], "2");
        assert_eq!(body_of(&reply)["retry_after_ms"], 1_200);
    }

    #[test]
    fn every_answer_has_the_cors_headers_and_is_not_cached() {
        let response = finish(Reply::empty());
        assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(
            response.headers()[header::CACHE_CONTROL],
            "no-cache, no-store, must-revalidate"
        );
        let cached = Reply::empty()
            .with_header(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        assert_eq!(finish(cached).headers()[header::CACHE_CONTROL], "max-age=60");
    }
}
