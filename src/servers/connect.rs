//! Opens connections: from the host of a URL to a TLS stream. Every address that is connected to
//! has been judged here, wherever it came from; a proxy looks up names itself, and is told none
//! but these.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use chatd_config::{AddressRules, Config, ForwardProxy, Outgoing};
use chatd_wire::Link;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::client::TlsStream;

use crate::{
    dns::{Dns, Place},
    tls::Tls,
    tunnel::{self, Way},
};

/// Connections that are open at the same time, idle ones included (R8).
const MOST_CONNECTIONS: usize = 4_000;
/// For one address, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Addresses of one place that are tried.
const MOST_ADDRESSES: usize = 4;
/// Services of one host that are tried.
const MOST_PLACES: usize = 4;
/// Under which names hosts say where they are; the second is the older one.
const SERVICES: [&str; 2] = ["_matrix-fed._tcp", "_matrix._tcp"];
/// Where servers listen if nothing says otherwise.
const MATRIX_PORT: u16 = 8448;

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum NoConnection {
    /// Nobody is there, or it is not who it should be.
    Away(String),
    /// This server does not connect to such an address.
    Barred(String),
}

impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Away(why) | Self::Barred(why)) = self;
        f.write_str(why)
    }
}

impl std::error::Error for NoConnection {}

/// Opens connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Inner>);

struct Inner {
    tls: Tls,
    addresses: AddressRules,
    outgoing: Outgoing,
    dns: Dns,
    connections: Arc<Semaphore>,
}

impl Connector {
    pub(crate) fn new(tls: Tls, config: &Config, dns: Dns) -> Self {
        Self(Arc::new(Inner {
            tls,
            addresses: config.federation.addresses.clone(),
            outgoing: config.outgoing.clone(),
            dns,
            connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
        }))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Open>;
    type Error = NoConnection;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NoConnection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoConnection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let link = inner.open(host, uri.port_u16()).await?;
            Ok(TokioIo::new(link))
        })
    }
}

impl Inner {
    /// Tries the places of `host` in their order. The certificate has to be that of `host`.
    async fn open(&self, host: &str, port: Option<u16>) -> Result<Open, NoConnection> {
        let away = |why: &dyn fmt::Display| NoConnection::Away(format!("{host}: {why}"));
        let permit = self.connections.clone().acquire_owned().await;
        let permit = permit.map_err(|error| away(&error))?;
        let mut last = None;
        for place in self.places(host, port).await.into_iter().take(MOST_PLACES) {
            match self.try_place(host, &place).await {
                Ok(stream) => {
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    return Ok(Link::new(Box::new(stream), is_http2, permit));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| away(&"it says that it serves nobody")))
    }

    /// Where `host` may be found (spec: resolving server names, steps 3.3 to 6).
    async fn places(&self, host: &str, port: Option<u16>) -> Vec<Place> {
        let here = |port| vec![Place { host: host.to_owned(), port }];
        if let Some(port) = port {
            return here(port);
        }
        if literal(host).is_some() {
            return here(MATRIX_PORT);
        }
        for service in SERVICES {
            if let Some(places) = self.dns.service(service, host).await {
                return places;
            }
        }
        here(MATRIX_PORT)
    }

    async fn try_place(&self, host: &str, place: &Place) -> Result<Stream, NoConnection> {
        if let Some(proxy) = self.outgoing.proxy_towards(&place.host) {
            return self.try_proxy(proxy, host, place).await;
        }
        let away = |why: &dyn fmt::Display| NoConnection::Away(format!("{host}: {why}"));
        let mut last = None;
        for address in self.addresses_of(&place.host).await.map_err(|error| away(&error))? {
            if !self.addresses.allow(address) {
                last = Some(barred(host, address));
                continue;
            }
            let address = SocketAddr::new(address, place.port);
            match within(self.shake(host, connect(address))).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(away(&format!("{address}: {error}"))),
            }
        }
        Err(last.unwrap_or_else(|| away(&"it has no address")))
    }

    /// Through a proxy, which may itself be at any address.
    async fn try_proxy(
        &self,
        proxy: &ForwardProxy,
        host: &str,
        place: &Place,
    ) -> Result<Stream, NoConnection> {
        if let Some(address) = literal(&place.host).filter(|one| !self.addresses.allow(*one)) {
            return Err(barred(host, address));
        }
        let away = |why: &dyn fmt::Display| {
            NoConnection::Away(format!("{host}: by the proxy {}: {why}", proxy.host))
        };
        let mut last = None;
        for address in self.addresses_of(&proxy.host).await.map_err(|error| away(&error))? {
            let address = SocketAddr::new(address, proxy.port);
            let tunnel = tunnel::open(proxy, address, self.tls.towards_proxy(), place);
            match within(self.shake(host, tunnel)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(away(&error)),
            }
        }
        Err(last.unwrap_or_else(|| away(&"it has no address")))
    }

    /// As many addresses of a host as are tried.
    async fn addresses_of(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let mut addresses = match literal(host) {
            Some(address) => vec![address],
            None => self.dns.addresses(host).await?,
        };
        addresses.truncate(MOST_ADDRESSES);
        Ok(addresses)
    }

    /// Makes sure that `host` is at the other end of a way.
    async fn shake(
        &self,
        host: &str,
        way: impl Future<Output = io::Result<Box<dyn Way>>>,
    ) -> io::Result<Stream> {
        let way = way.await?;
        let name = match literal(host) {
            Some(address) => ServerName::from(address),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        self.tls.towards(host).connect(name, way).await
    }
}

async fn connect(address: SocketAddr) -> io::Result<Box<dyn Way>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

async fn within(opened: impl Future<Output = io::Result<Stream>>) -> io::Result<Stream> {
    let opened = tokio::time::timeout(CONNECT, opened).await;
    opened.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten()
}

/// Where a host is that is not talked to is for the log only: whoever has named it must not learn
/// addresses inside.
fn barred(host: &str, address: IpAddr) -> NoConnection {
    tracing::info!(host, %address, "a host is not talked to: its address is blocked");
    NoConnection::Barred(format!("{host} is not talked to"))
}

/// The address that `host` is, if it is no name. IPv6 addresses may stand in brackets.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// An open connection, which counts as one of so many.
pub(crate) type Open = Link<Box<Stream>, OwnedSemaphorePermit>;

type Stream = TlsStream<Box<dyn Way>>;
