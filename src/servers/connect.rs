//! Opens connections: from the host of a URL to a TLS stream. Every address that is connected to
//! has been judged here, wherever it came from.

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

use chatd_config::AddressRules;
use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::client::TlsStream;

use crate::tls::Tls;

/// Connections that are open at the same time, idle ones included (R8).
const MOST_CONNECTIONS: usize = 4_000;
/// For one address, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Addresses of one host that are tried.
const MOST_ADDRESSES: usize = 6;
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
    places: Arc<Semaphore>,
}

impl Connector {
    pub(crate) fn new(tls: Tls, addresses: AddressRules) -> Self {
        Self(Arc::new(Inner { tls, addresses, places: Arc::new(Semaphore::new(MOST_CONNECTIONS)) }))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Link>;
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
    /// Tries the addresses of `host` in their order. The certificate has to be that of `host`.
    async fn open(&self, host: &str, port: Option<u16>) -> Result<Link, NoConnection> {
        let away = |why: &dyn fmt::Display| NoConnection::Away(format!("{host}: {why}"));
        let permit = self.places.clone().acquire_owned().await;
        let permit = permit.map_err(|error| away(&error))?;
        let mut last = None;
        for address in self.find(host, port).await?.into_iter().take(MOST_ADDRESSES) {
            if !self.addresses.allow(address.ip()) {
                let why = format!("{host} is at {}, which is blocked", address.ip());
                last = Some(NoConnection::Barred(why));
                continue;
            }
            let shaken = tokio::time::timeout(CONNECT, self.shake(host, address)).await;
            match shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten() {
                Ok(stream) => return Ok(Link { stream: Box::new(stream), _permit: permit }),
                Err(error) => last = Some(away(&format!("{address}: {error}"))),
            }
        }
        Err(last.unwrap_or_else(|| away(&"it has no address")))
    }

    async fn find(&self, host: &str, port: Option<u16>) -> Result<Vec<SocketAddr>, NoConnection> {
        let port = port.unwrap_or(MATRIX_PORT);
        if let Some(address) = literal(host) {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let found = tokio::net::lookup_host((host, port)).await;
        let found = found.map_err(|error| NoConnection::Away(format!("{host}: {error}")))?;
        Ok(found.collect())
    }

    async fn shake(&self, host: &str, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = match literal(host) {
            Some(address) => ServerName::from(address),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        self.tls.towards(host).connect(name, stream).await
    }
}

/// The address that `host` is, if it is no name. IPv6 addresses may stand in brackets.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// An open connection.
pub(crate) struct Link {
    stream: Box<TlsStream<TcpStream>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        match self.stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => connected.negotiated_h2(),
            _ => connected,
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}
