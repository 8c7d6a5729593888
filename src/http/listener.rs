//! Where connections come in: TCP, TLS and unix sockets, with limits on their number and on how
//! long a client may take, and an end that lets requests finish.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use chatd_base::{Stop, tasks};
use chatd_config::{Bind, Listener};
use futures::FutureExt;
use http::{HeaderValue, Version, header::CONNECTION};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use metrics::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    edge::{self, Edge, Site},
    stall::Impatient,
};

/// How long a connection may be idle, or take to send the head of a request. Longer than what
/// reverse proxies keep their connections for, so that the proxy closes first.
const IDLE: Duration = Duration::from_secs(75);
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// Request line and headers together.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEAD_H2: u32 = 64 * 1024;
const MAX_HEADERS: usize = 128;
/// After the end was asked for, connections are served for this long as before, each answer being
/// the last one of its connection. So only clients that have been silent find theirs closed.
const LAME_DUCK: Duration = Duration::from_millis(100);
/// Connections that are open.
static CONNECTIONS: LazyLock<Gauge> = LazyLock::new(|| metrics::gauge!("chatd_http_connections"));
/// Pause after a failed accept: there are no file handles left, and a loop would not free any.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that is bound but not served yet.
pub(crate) struct Bound {
    pub(crate) listener: Listener,
    pub(crate) sockets: Vec<Socket>,
}

/// A socket that accepts connections.
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Binds all addresses of `listener`.
pub(crate) async fn bind(listener: &Listener) -> Result<Bound, String> {
    let sockets = match &listener.bind {
        Bind::Tcp { addresses, port } => bind_tcp(addresses, *port).await?,
        Bind::Unix { path, mode } => {
            let socket = bind_unix(path, *mode)
                .await
                .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
            vec![Socket::Unix(socket, path.clone())]
        }
    };
    Ok(Bound { listener: listener.clone(), sockets })
}

async fn bind_tcp(addresses: &[IpAddr], port: u16) -> Result<Vec<Socket>, String> {
    let mut sockets = Vec::new();
    let mut failed = None;
    for ip in addresses {
        let address = SocketAddr::new(*ip, port);
        match TcpListener::bind(address).await {
            Ok(socket) => sockets.push(Socket::Tcp(socket)),
            Err(error) if may_do_without(*ip, addresses, &error) => {
                tracing::debug!(%address, %error, "doing without this address");
                failed = Some(format!("cannot listen on {address}: {error}"));
            }
            Err(error) => return Err(format!("cannot listen on {address}: {error}")),
        }
    }
    match failed {
        Some(error) if sockets.is_empty() => Err(error),
        _ => Ok(sockets),
    }
}

/// `::` takes IPv4 too where the system says so, and where it has no IPv6 such addresses are not
/// there: both are fine as long as another address works.
fn may_do_without(ip: IpAddr, all: &[IpAddr], error: &io::Error) -> bool {
    let taken = error.kind() == io::ErrorKind::AddrInUse;
    match ip {
        IpAddr::V4(v4) => {
            taken
                && v4.is_unspecified()
                && all.iter().any(|one| one.is_ipv6() && one.is_unspecified())
        }
        IpAddr::V6(_) => !taken && all.iter().any(IpAddr::is_ipv4),
    }
}

/// Binds a unix socket; takes the place of one that nobody listens on any more.
async fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(socket)
}

impl Socket {
    /// Where it listens, for people.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp(socket) => socket
                .local_addr()
                .map_or_else(|error| error.to_string(), |address| address.to_string()),
            Self::Unix(_, path) => path.display().to_string(),
        }
    }

    /// Takes connections until the end is asked for.
    pub(crate) async fn serve(self, service: Service, stop: Stop) {
        loop {
            let permits = service.connections.clone();
            let accepted = tokio::select! {
                () = stop.triggered() => break,
                Ok(permit) = permits.acquire_owned() => tokio::select! {
                    () = stop.triggered() => break,
                    accepted = self.accept(&service, permit, &stop) => accepted,
                },
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, listener = self.address(), "cannot accept a connection");
                stop.sleep(ACCEPT_PAUSE).await;
            }
        }
        self.drain(&service, &stop).await;
        if let Self::Unix(_, path) = &self {
            // Nobody can connect any more; a leftover would only be in the way of a person.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Takes in who has connected already: closing the socket would break those off.
    async fn drain(&self, service: &Service, stop: &Stop) {
        while let Ok(permit) = service.connections.clone().try_acquire_owned()
            && let Some(Ok(())) = self.accept(service, permit, stop).now_or_never()
        {}
    }

    async fn accept(
        &self,
        service: &Service,
        permit: OwnedSemaphorePermit,
        stop: &Stop,
    ) -> io::Result<()> {
        let (service, stop) = (service.clone(), stop.clone());
        let under_way = service.edge.under_way.clone();
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                stream.set_nodelay(true)?;
                let peer = Some(peer.ip());
                let serving = async move {
                    service.tcp(stream, peer, stop).await;
                    drop(permit);
                };
                tasks::spawn("http_connection", under_way.track_future(serving));
            }
            Self::Unix(socket, _) => {
                let (stream, _) = socket.accept().await?;
                let serving = async move {
                    let stream = service.impatient(stream);
                    service.connection(stream, None, stop).await;
                    drop(permit);
                };
                tasks::spawn("http_connection", under_way.track_future(serving));
            }
        }
        Ok(())
    }
}

/// What the connections of one listener share.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) edge: Arc<Edge>,
    pub(crate) site: Arc<Site>,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) connections: Arc<Semaphore>,
}

impl Service {
    /// Below TLS, which takes more at once than a slow client may take in time.
    fn impatient<S>(&self, stream: S) -> Impatient<S> {
        Impatient::new(stream, self.edge.write_timeout)
    }

    async fn tcp(self, stream: tokio::net::TcpStream, peer: Option<IpAddr>, stop: Stop) {
        let stream = self.impatient(stream);
        let Some(tls) = self.tls.clone() else {
            return self.connection(stream, peer, stop).await;
        };
        match tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.connection(stream, peer, stop).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Serves one connection to its end; once `stop` comes, that is after the requests that are
    /// under way on it. What a client does wrong on it is the client's problem.
    async fn connection<S>(self, stream: S, peer: Option<IpAddr>, stop: Stop)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        CONNECTIONS.increment(1.0);
        let (edge, site) = (self.edge, self.site);
        let asked = stop.clone();
        let service = service_fn(move |request| {
            let is_http1 = request.version() < Version::HTTP_2;
            let (answer, stop) =
                (edge::answer(edge.clone(), site.clone(), peer, request), asked.clone());
            async move {
                let mut answer = answer.await;
                if let Ok(answer) = &mut answer
                    && is_http1
                    && stop.is_triggered()
                {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                answer
            }
        });
        let protocol = protocol();
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = lame(&stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke off");
        }
        CONNECTIONS.decrement(1.0);
    }
}

/// Returns some time after the end was asked for.
async fn lame(stop: &Stop) {
    stop.triggered().await;
    tokio::time::sleep(LAME_DUCK).await;
}

/// HTTP/1.1, or HTTP/2 where the client starts with it.
fn protocol() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(IDLE)
        .max_header_list_size(MAX_HEAD_H2);
    builder
}
