//! The HTTP server of an instance: binds early, so that a port that is taken is told at once,
//! and serves when everything else is ready.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use chatd_base::{Authenticate, AuthenticateServer, Calls, Stop, tasks};
use chatd_config::{Config, Fresh, Listener, ResourceName, RouterName};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::{
    Detail, Fleet, HeaderName, Limits, Method, Metrics, Router, builtin, call,
    edge::{Edge, Site},
    listener::{self, Bound, Service},
    meter::Meter,
    table::Table,
    tls,
};

/// The listeners of an instance, bound and not yet served.
pub struct Server {
    bound: Vec<Bound>,
    tls: Option<TlsAcceptor>,
    max_connections: usize,
    max_body: usize,
    read_timeout: Duration,
    write_timeout: Duration,
    shutdown_timeout: Duration,
    expose_cost: bool,
    fresh: Fresh,
    instance: String,
}

/// What a server serves.
pub struct Serving {
    pub routers: Vec<Router>,
    /// Which of `routers` are answered here. The others are for other instances of `fleet`.
    pub mounted: BTreeSet<RouterName>,
    /// The other instances; absent where there are none.
    pub fleet: Option<Fleet>,
    /// What this instance does for the others.
    pub calls: Arc<Calls>,
    pub users: Arc<dyn Authenticate>,
    pub servers: Arc<dyn AuthenticateServer>,
    pub limits: Arc<Limits>,
    pub metrics: Metrics,
    /// What `/health?detail` tells operators.
    pub detail: Detail,
}

impl Server {
    /// Binds every listener of `config`. The error is a sentence for the admin.
    pub async fn bind(config: &Config) -> Result<Self, String> {
        let wants_tls = config.listeners.iter().any(|listener| listener.tls);
        let tls = match &config.tls {
            Some(files) if wants_tls => {
                Some(tls::acceptor(&files.certificate_path, &files.private_key_path)?)
            }
            None if wants_tls => {
                return Err(
                    "a listener has `tls: true`, but there is no tls_certificate_path and \
                            tls_private_key_path"
                        .to_owned(),
                );
            }
            _ => None,
        };
        let mut bound = Vec::with_capacity(config.listeners.len());
        for listener in &config.listeners {
            bound.push(listener::bind(listener).await?);
        }
        Ok(Self {
            bound,
            tls,
            max_connections: config.chatd.max_connections,
            max_body: usize::try_from(config.chatd.max_request_body).unwrap_or(usize::MAX),
            read_timeout: config.chatd.request_read_timeout,
            write_timeout: config.chatd.response_write_timeout,
            shutdown_timeout: config.chatd.shutdown_timeout,
            expose_cost: config.chatd.expose_request_cost,
            fresh: config.chatd.fresh,
            instance: config.workers.instance_name().to_owned(),
        })
    }

    /// Serves until `stop`; then takes no more connections, lets requests finish within
    /// `shutdown_timeout`, and returns. The error is a mistake in a declaration.
    pub async fn serve(self, serving: Serving, stop: Stop) -> Result<(), String> {
        let Serving { routers, mounted, fleet, calls, users, servers, limits, metrics, detail } =
            serving;
        let edge = Arc::new(Edge {
            users,
            servers,
            limits,
            max_body: self.max_body,
            read_timeout: self.read_timeout,
            write_timeout: self.write_timeout,
            expose_cost: self.expose_cost,
            fresh: self.fresh,
            fleet,
            mounted,
            under_way: TaskTracker::new(),
            count: AtomicU64::new(1),
            instance: self.instance,
            preflight: Meter::of(&Method::OPTIONS, "none"),
            unknown: Meter::of(&Method::TRACE, "none"),
        });
        let mut listening = Vec::new();
        for bound in self.bound {
            let service = Service {
                site: Arc::new(site(
                    &bound.listener,
                    &routers,
                    &edge,
                    &calls,
                    builtin::routers(&bound.listener, &metrics, &detail),
                )?),
                edge: edge.clone(),
                tls: self.tls.clone().filter(|_| bound.listener.tls),
                connections: Arc::new(Semaphore::new(self.max_connections)),
            };
            for socket in bound.sockets {
                tracing::info!("listening on {}", socket.address());
                let serving = socket.serve(service.clone(), stop.clone());
                listening.push(tasks::spawn("http_listener", serving));
            }
        }
        tasks::spawn("metrics", metrics.fold_samples(stop.clone()));
        stop.triggered().await;
        // Sockets of files go with their listeners.
        futures::future::join_all(listening).await;
        edge.under_way.close();
        if tokio::time::timeout(self.shutdown_timeout, edge.under_way.wait()).await.is_err() {
            tracing::warn!("some requests did not finish in time and were broken off");
        }
        Ok(())
    }
}

/// What `listener` serves of `routers`, and what the edge adds by itself.
fn site(
    listener: &Listener,
    routers: &[Router],
    edge: &Edge,
    calls: &Arc<Calls>,
    mut builtin: Vec<Router>,
) -> Result<Site, String> {
    // What is neither answered here nor elsewhere is not there.
    let known = |router: &&Router| edge.fleet.is_some() || edge.mounted.contains(&router.name());
    let served =
        routers.iter().filter(known).filter(|router| listener.serves(router.name().resource()));
    let mine = routers.iter().filter(|router| edge.mounted.contains(&router.name()));
    let mut carried = None;
    if edge.fleet.is_some() && listener.serves(ResourceName::Replication) {
        carried = Some(Table::new(mine)?);
        builtin.push(call::router(calls));
    }
    let compress = [ResourceName::Client, ResourceName::Federation, ResourceName::Static]
        .iter()
        .any(|resource| listener.compresses(*resource));
    let request_id_header = match &listener.request_id_header {
        Some(name) => Some(
            name.parse::<HeaderName>()
                .map_err(|error| format!("request_id_header {name:?}: {error}"))?,
        ),
        None => None,
    };
    Ok(Site {
        table: Table::new(served.chain(&builtin))?,
        carried,
        x_forwarded: listener.x_forwarded,
        request_id_header,
        compress,
    })
}
