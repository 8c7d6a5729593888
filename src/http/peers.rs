//! Connections to the replication listeners of the other instances: HTTP/2, kept alive, many
//! requests at a time on each.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chatd_config::{InstanceAddress, Secret};
use chatd_wire::Link;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::RwLock;
use rustls::pki_types::ServerName;
use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use crate::Placement;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// A peer that is silent for so long is asked whether it is there, and must answer in so long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum PeerError {
    /// The request has not been sent.
    Unreached(String),
    /// The request may have had its effect.
    Broken(String),
}

/// The other instances, by name.
#[derive(Clone)]
pub(crate) struct Peers {
    client: Client<Connector, Full<Bytes>>,
    placement: Arc<dyn Placement>,
    places: Places,
    secret: Option<Arc<Secret>>,
}

/// By what stands for the instance in a URI.
type Places = Arc<RwLock<HashMap<String, Known>>>;

#[derive(Clone)]
struct Known {
    place: Arc<Place>,
    /// Whether the instance has told it itself, and may tell another one when it restarts.
    is_told: bool,
}

/// Instances that may be known; more than any fleet has (R8).
const MOST_INSTANCES: usize = 4096;

/// Where an instance listens.
enum Place {
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16, connector: TlsConnector },
    Unix(PathBuf),
}

impl Peers {
    /// Knows where the instances of `instance_map` are; `placement` knows others. The error is a
    /// sentence for the admin.
    pub(crate) fn new(
        instances: &BTreeMap<String, InstanceAddress>,
        placement: Arc<dyn Placement>,
        secret: Option<Secret>,
    ) -> Result<Self, String> {
        let places = instances
            .iter()
            .map(|(name, address)| {
                let place = place(address).map_err(|e| format!("instance_map.{name}: {e}"))?;
                Ok((authority(name), Known { place: Arc::new(place), is_told: false }))
            })
            .collect::<Result<HashMap<_, _>, String>>()?;
        let places = Arc::new(RwLock::new(places));
        let client = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE_ANSWER)
            .http2_keep_alive_while_idle(true)
            .http2_adaptive_window(true)
            .build(Connector { places: places.clone() });
        Ok(Self { client, placement, places, secret: secret.map(Arc::new) })
    }

    /// Sends a request whose URI is a path, with the secret, and returns the head of the answer.
    pub(crate) async fn send(
        &self,
        instance: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, PeerError> {
        let authority = self.find(instance).map_err(PeerError::Unreached)?;
        if let Some(secret) = &self.secret
            && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", secret.expose()))
        {
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("http://{authority}{path}")
            .parse()
            .map_err(|error: http::uri::InvalidUri| PeerError::Unreached(error.to_string()))?;
        self.client.request(request).await.map_err(|error| {
            let text = chain(&error);
            if !error.is_connect() {
                return PeerError::Broken(text);
            }
            let mut places = self.places.write();
            if places.get(&authority).is_some_and(|known| known.is_told) {
                places.remove(&authority);
            }
            PeerError::Unreached(text)
        })
    }
}

impl Peers {
    /// Whether the caller of a replication listener knows the secret.
    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(secret) = &self.secret else { return true };
        let told = headers.get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
        let told = told.strip_prefix(b"Bearer ").unwrap_or_default();
        told.ct_eq(secret.expose().as_bytes()).into()
    }

    /// What stands for the instance in a URI. One that is in no `instance_map` here has told its
    /// place itself.
    fn find(&self, instance: &str) -> Result<String, String> {
        let authority = authority(instance);
        if !self.places.read().contains_key(&authority) {
            let address = self.placement.address(instance);
            let address = address.ok_or_else(|| format!("{instance} is not in instance_map"))?;
            let place = place(&address).map_err(|error| format!("{instance}: {error}"))?;
            let mut places = self.places.write();
            if places.len() >= MOST_INSTANCES {
                return Err("too many instances are known".to_owned());
            }
            places.insert(authority.clone(), Known { place: Arc::new(place), is_told: true });
        }
        Ok(authority)
    }
}

fn place(address: &InstanceAddress) -> Result<Place, String> {
    if let Some(path) = &address.path {
        return Ok(Place::Unix(path.clone()));
    }
    let (Some(host), Some(port)) = (&address.host, address.port) else {
        return Err("needs host and port, or path".to_owned());
    };
    let host = host.clone();
    if !address.tls {
        return Ok(Place::Tcp { host, port });
    }
    let connector = crate::tls::connector()?;
    Ok(Place::Tls { host, port, connector })
}

/// Names of instances may have characters that hosts may not.
fn authority(instance: &str) -> String {
    instance.bytes().fold("i".to_owned(), |host, byte| format!("{host}{byte:02x}"))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Opens a connection to the instance that the URI's host stands for.
#[derive(Clone)]
struct Connector {
    places: Places,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Link<Box<dyn Stream>>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let place = uri
            .host()
            .and_then(|host| self.places.read().get(host).cloned())
            .map(|known| known.place);
        Box::pin(async move {
            let place = place.ok_or_else(|| io::Error::other("no such instance"))?;
            let opened = tokio::time::timeout(CONNECT, open(&place));
            let stream = opened.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(TokioIo::new(Link::new(stream, false, ())))
        })
    }
}

/// A stream of whatever kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn open(place: &Place) -> io::Result<Box<dyn Stream>> {
    match place {
        Place::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Place::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Place::Tls { host, port, connector } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            Ok(Box::new(connector.connect(name, stream).await?))
        }
    }
}
