//! Carrying requests between instances: a request whose work belongs elsewhere goes there as it
//! is, with the client's token and address, and its answer comes back as it is.
//!
//! The instance that a client talks to checks the token and the rate limit, and reads the body;
//! the one where the work belongs checks the token again (R9) and never carries on. Which server
//! has signed a request is checked once and told with it: only who knows the secret is believed.
//! A shard may move meanwhile: whoever does not own the room says so before anything is done, and
//! the request goes to the new owner.
//!
//! If the connection breaks before the answer, nobody knows whether the request had its effect,
//! and it is sent again. What a repeat does:
//!
//! | request | a repeat |
//! | --- | --- |
//! | GET | reads again |
//! | PUT, DELETE | sets the same again; events and messages to devices have a transaction id |
//! | createRoom | gets the room of the first: the request's key is committed with it; its owner invites those who are left |
//! | join, knock, leave, invite, kick, ban, unban | gets the event of the first: the same key |
//! | forget, receipt, read_markers, filter | sets the same again |
//! | keys/upload, device_signing, signatures | finds that it is stored |
//! | keys/query, publicRooms | reads again |
//! | keys/claim | takes another one-time key; the first is lost, and there are more |
//! | refresh | gets tokens; the refresh token is good until one of these is used |
//! | room_keys/version | makes another, empty version, which is the one in use |
//! | logout, logout/all | is told that the token is not known, as it is to be |
//! | login, login/get_token, register, account/…, delete_devices, admin register | is not made: what it proves itself with is used up; its client hears 503 |

use std::{
    borrow::Cow, collections::BTreeMap, future::Future, net::IpAddr, sync::Arc, time::Instant,
};

use bytes::Bytes;
use chatd_base::{Patience, Refusal, Result, Stop};
use chatd_config::{InstanceAddress, Secret};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Full};
use ruma_common::OwnedServerName;
use serde_json::{Map, Value};

use crate::{
    Caller, Home, Placement, Reply, Request,
    carry_meter::{self, Links},
    peers::{PeerError, Peers},
    reply::Body,
    router::Endpoint,
};

/// Under it a replication listener takes carried requests.
const PREFIX: &str = "/_synapse/replication/carry";
/// What the carrying instance tells of the client.
const CLIENT: HeaderName = HeaderName::from_static("x-chatd-client");
const TOKEN: HeaderName = HeaderName::from_static("x-chatd-authorization");
pub(crate) const REQUEST: HeaderName = HeaderName::from_static("x-chatd-request");
/// The server that has signed the request; whoever carried it has checked that.
const ORIGIN: HeaderName = HeaderName::from_static("x-chatd-origin");
/// The same for each attempt of one request ([`Request::key`]), in hexadecimal.
const KEY: HeaderName = HeaderName::from_static("x-chatd-key");

/// Status and code of the answer of an instance that does not own the room.
pub const NOT_OWNER: (u16, &str) = (421, "CHATD_NOT_OWNER");

/// The other instances, for requests that belong there.
pub struct Fleet {
    placement: Arc<dyn Placement>,
    peers: Peers,
    links: Arc<Links>,
    stop: Stop,
}

impl Fleet {
    /// The error is a sentence for the admin.
    pub fn new(
        placement: Arc<dyn Placement>,
        instances: &BTreeMap<String, InstanceAddress>,
        secret: Option<Secret>,
        stop: Stop,
    ) -> Result<Self, String> {
        let peers = Peers::new(instances, placement.clone(), secret)?;
        Ok(Self { placement, peers, links: Arc::default(), stop })
    }

    /// Answers `request` where it belongs; `here` answers it on this instance.
    pub(crate) async fn answer<F>(
        &self,
        endpoint: &Endpoint,
        request: Request,
        here: impl Fn(Request) -> F,
    ) -> Result<Reply>
    where
        F: Future<Output = Result<Reply>>,
    {
        let mut patience = Patience::default();
        let key = (request.method == Method::POST).then(rand::random);
        let request = Request { key, ..request };
        loop {
            let argument = argument_of(endpoint.home, &request);
            let home = self.placement.place(endpoint.router, endpoint.home, &argument).await?;
            let attempt = match &home {
                None => Attempt::of_local(here(request.clone()).await),
                Some(instance) => self.carry(instance, endpoint, &request).await,
            };
            let why = match attempt {
                Attempt::Done(outcome) => return outcome,
                Attempt::Again(why) => why,
            };
            carry_meter::RETRIES.increment(1);
            if !patience.wait(&self.stop).await {
                let instance = home.as_deref().unwrap_or("this instance");
                tracing::warn!(instance, why, "a request could not be carried");
                return Err(unreachable(instance).into());
            }
            self.placement.doubt(home.as_deref()).await;
        }
    }

    /// Returns when this instance knows what any instance had acknowledged before the call.
    pub(crate) async fn level(&self) {
        self.placement.level().await;
    }

    async fn carry(&self, instance: &str, endpoint: &Endpoint, request: &Request) -> Attempt {
        let (sent_at, link) = (Instant::now(), self.links.to(instance));
        let mut carrying = endpoint.meter.carry();
        let carried = match self.wrapped(request) {
            Ok(carried) => carried,
            Err(refusal) => return Attempt::Done(Err(refusal.into())),
        };
        let sent = self.peers.send(instance, carried).await;
        match &sent {
            Ok(answer) => {
                carrying.answered(answer.status());
                link.answered(sent_at);
            }
            Err(_) => link.failed(),
        }
        match sent {
            Ok(answer) if answer.status().as_u16() == NOT_OWNER.0 => {
                Attempt::Again(format!("{instance} does not own it"))
            }
            Ok(answer) => Attempt::Done(Ok(reply(answer))),
            Err(PeerError::Unreached(why)) => Attempt::Again(why),
            Err(PeerError::Broken(why)) if !endpoint.is_once => Attempt::Again(why),
            Err(PeerError::Broken(why)) => {
                tracing::warn!(instance, why, "an instance broke off while it answered");
                Attempt::Done(Err(unreachable(instance).into()))
            }
        }
    }

    /// The request as it goes to another instance.
    fn wrapped(&self, request: &Request) -> Result<http::Request<Full<Bytes>>, Refusal> {
        let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut carried = http::Request::new(Full::new(request.body.clone()));
        *carried.method_mut() = request.method.clone();
        *carried.uri_mut() = format!("{PREFIX}{path}")
            .parse()
            .map_err(|_| Refusal::unrecognized("unrecognized request"))?;
        let headers = carried.headers_mut();
        for name in [header::CONTENT_TYPE, header::USER_AGENT, header::ACCEPT] {
            if let Some(value) = request.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        if let Some(token) = request.headers.get(header::AUTHORIZATION) {
            headers.insert(TOKEN, sensitive(token.clone()));
        }
        let client = request.address.map(|address| address.to_string()).unwrap_or_default();
        let key = request.key.map(|key| format!("{key:x}")).unwrap_or_default();
        let origin = request.origin.as_ref().map_or("", |origin| origin.as_str());
        let told =
            [(CLIENT, client.as_str()), (REQUEST, &request.id), (KEY, &key), (ORIGIN, origin)];
        for (name, value) in told {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        Ok(carried)
    }

    /// Refuses those who do not know the secret.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.peers.admits(headers) {
            return Ok(());
        }
        Err(Refusal::forbidden("the replication secret is wrong"))
    }

    /// The id of the request that another instance works for; `None` if it is not another
    /// instance that says so.
    pub(crate) fn request_id(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let told = headers.get(REQUEST).filter(|_| self.peers.admits(headers))?;
        Some(told.to_str().ok()?.into())
    }

    /// Makes calls to the same instances.
    pub fn caller(&self) -> Caller {
        Caller::new(&self.peers, &self.links)
    }

    /// Takes the wrapping off a carried request, so that it is as the client sent it. Refuses
    /// those who do not know the secret; `None` if it is no carried request.
    pub(crate) fn unwrap(&self, head: &mut Parts) -> Result<Option<Carried>> {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let Some(path) = path.strip_prefix(PREFIX) else { return Ok(None) };
        self.admit(&head.headers)?;
        let uri = path.parse().map_err(|_| Refusal::unrecognized("unrecognized request"))?;
        head.uri = uri;
        head.headers.remove(header::AUTHORIZATION);
        if let Some(token) = head.headers.remove(TOKEN) {
            head.headers.insert(header::AUTHORIZATION, token);
        }
        let told = |name| head.headers.get(&name).and_then(|value| value.to_str().ok());
        carry_meter::CARRIED_IN.increment(1);
        Ok(Some(Carried {
            client: told(CLIENT).and_then(|address| address.parse().ok()),
            key: told(KEY).and_then(|key| u128::from_str_radix(key, 16).ok()),
            origin: told(ORIGIN).and_then(|origin| origin.try_into().ok()),
        }))
    }
}

/// What the request says where `home` looks; empty if nothing.
fn argument_of(home: Home, request: &Request) -> Cow<'_, str> {
    match home {
        Home::Anywhere | Home::Stream(_) | Home::AnyRoomOwner => Cow::Borrowed(""),
        Home::Room(name) => Cow::Borrowed(request.arg(name)),
        // A body that is not of this form is refused by whoever answers.
        Home::RoomInBody(name) => match request.json::<Map<String, Value>>() {
            Ok(body) => body.get(name).and_then(Value::as_str).unwrap_or("").to_owned().into(),
            Err(_) => Cow::Borrowed(""),
        },
    }
}

/// What the carrying instance says of a request.
#[derive(Default)]
pub(crate) struct Carried {
    pub(crate) client: Option<IpAddr>,
    pub(crate) key: Option<u128>,
    pub(crate) origin: Option<OwnedServerName>,
}

enum Attempt {
    Done(Result<Reply>),
    Again(String),
}

impl Attempt {
    fn of_local(outcome: Result<Reply>) -> Self {
        match &outcome {
            Err(error) if error.errcode() == Some(NOT_OWNER.1) => {
                Self::Again("the shard has moved away".to_owned())
            }
            _ => Self::Done(outcome),
        }
    }
}

fn unreachable(instance: &str) -> Refusal {
    let message = format!("the instance {instance} does not answer at the moment; try again");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE.as_u16(), "M_UNKNOWN", message)
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// The other instance's answer as our own; its body is passed on as it comes.
fn reply(answer: http::Response<hyper::body::Incoming>) -> Reply {
    let (head, body) = answer.into_parts();
    let mut headers = head.headers;
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::DATE] {
        headers.remove(name);
    }
    let chunks = body.into_data_stream().map_err(chatd_base::Error::internal).boxed();
    Reply { status: head.status, headers, body: Body::Stream(chunks) }
}
