//! Another server, as a test wants it: TLS by an authority of the test, answers as scripted.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chatd_base::{Clock, Stop, WriterId};
use chatd_config::{Config, DatabaseTls, Overrides, SigningKeys};
use chatd_storage::{ConnectSettings, Host, Pool, notices::Notices};
use futures::{Stream, StreamExt, future::BoxFuture};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{Deps, Servers};

pub type Reply = Response<BoxBody<Bytes, Infallible>>;

/// An authority that the tests trust.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn acceptor(&self, hosts: &[&str], protocols: &[&[u8]]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let certificate =
            CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|one| one.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A server of a test; it ends with the test's runtime.
pub struct Other {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Other {
    /// Certified for `hosts`, on an address of this machine.
    pub async fn start<F>(authority: &Authority, hosts: &[&str], answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> BoxFuture<'static, Reply> + Clone + Send + 'static,
    {
        Self::speaking(authority, hosts, &[b"h2", b"http/1.1"], answer).await
    }

    pub async fn speaking<F>(
        authority: &Authority,
        hosts: &[&str],
        protocols: &[&[u8]],
        answer: F,
    ) -> Self
    where
        F: Fn(Request<Incoming>) -> BoxFuture<'static, Reply> + Clone + Send + 'static,
    {
        let acceptor = authority.acceptor(hosts, protocols);
        let listener = TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        chatd_base::tasks::spawn("other server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                chatd_base::tasks::spawn("connection", async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let http = auto::Builder::new(TokioExecutor::new());
                    let _gone = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, connections }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

pub fn json(status: u16, body: &str) -> Reply {
    pieces(status, futures::stream::iter([Bytes::from(body.to_owned())]))
}

pub fn pieces(status: u16, pieces: impl Stream<Item = Bytes> + Send + Sync + 'static) -> Reply {
    let frames = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    Response::builder().status(status).body(BodyExt::boxed(StreamBody::new(frames))).unwrap()
}

/// What asks, configured by `keys`; it has no database.
pub struct Asking {
    pub servers: Servers,
    _files: TempDir,
}

/// `keys` stand beside the authority and addresses of this machine, which are allowed.
pub fn asking(authority: &Authority, keys: &str) -> Asking {
    asking_with(authority, keys, crate::HTTPS)
}

/// The same where other servers tell at another port to whom they delegate.
pub fn asking_with(authority: &Authority, keys: &str, well_known_port: u16) -> Asking {
    let files = tempfile::tempdir().unwrap();
    let roots = files.path().join("roots.pem");
    std::fs::write(&roots, &authority.pem).unwrap();
    let blocklist = if keys.contains("ip_range_blocklist") { "" } else { "ip_range_blocklist: []" };
    let text = format!(
        "server_name: here.example\nfederation_custom_ca_list: [{}]\n{blocklist}\n{keys}\n",
        roots.display()
    );
    let config = Config::from_texts(&[("homeserver.yaml", &text)], &Overrides::default()).unwrap();
    let keys = SigningKeys::read_or_create(&files.path().join("signing.key")).unwrap();
    let settings = ConnectSettings {
        host: Host::Socket { folder: files.path().to_owned(), port: 1 },
        user: "nobody".to_owned(),
        password: None,
        database: "none".to_owned(),
        max_connections: 1,
        tls: DatabaseTls::Never,
        connect_timeout: Duration::from_secs(1),
        application_name: "test".to_owned(),
    };
    let deps = Deps {
        pool: Pool::open(&settings).unwrap(),
        config: Arc::new(config),
        clock: Clock::system(),
        stop: Stop::new(),
        keys: Arc::new(keys),
        notices: Notices::new(WriterId(1), false),
        well_known_port,
        notary_keys: None,
    };
    Asking { servers: Servers::new(&deps).unwrap(), _files: files }
}
