//! Endpoints: declared once, with their paths, who may call them, and what answers.

use std::{future::Future, pin::Pin, sync::Arc};

use chatd_base::Result;
use chatd_config::RouterName;
use http::Method;

use crate::{Home, LimitClass, Paths, Reply, Request, meter::Meter};

/// Who may call an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Anybody; a token is not looked at.
    None,
    /// Anybody; a token that is there must be good.
    Optional,
    /// A user with an access token; guests are refused.
    Token,
    /// A user or a guest.
    Guest,
    /// Another instance.
    Peer,
    /// Another server, which has signed the request; `rc_federation` is applied.
    Server,
    /// The same without `rc_federation`.
    ServerUnlimited,
}

impl Auth {
    /// Whether another server has to have signed the request.
    pub(crate) fn is_server(self) -> bool {
        matches!(self, Self::Server | Self::ServerUnlimited)
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;
pub(crate) type Handler = Box<dyn Fn(Request) -> Answer + Send + Sync>;
/// A handler that has not been given its application yet.
type Unbound<A> = Box<dyn Fn(Arc<A>, Request) -> Answer + Send + Sync>;

/// One endpoint under all its paths.
pub(crate) struct Endpoint<H = Handler> {
    pub(crate) router: RouterName,
    pub(crate) home: Home,
    pub(crate) method: Method,
    pub(crate) paths: Paths,
    pub(crate) auth: Auth,
    pub(crate) limit: Option<LimitClass>,
    /// Largest body, where it is not the configured one.
    pub(crate) body_limit: Option<usize>,
    /// A repeat would be told something else.
    pub(crate) is_once: bool,
    pub(crate) handler: H,
    pub(crate) meter: Arc<Meter>,
}

impl Endpoint {
    /// Whether every instance answers it itself.
    pub(crate) fn is_builtin(&self) -> bool {
        matches!(self.router, RouterName::Health | RouterName::Metrics | RouterName::Replication)
    }
}

/// A named group of endpoints, ready to be mounted on listeners.
pub struct Router {
    pub(crate) name: RouterName,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
}

impl Router {
    /// The group's name in roles and in `chatd explain`.
    pub fn name(&self) -> RouterName {
        self.name
    }
}

/// A group of endpoints as it is declared, before there is an application to answer them.
///
/// ```ignore
/// Routes::of(RouterName::ClientRooms)
///     .put(v3("/rooms/{roomId}/send/{eventType}/{txnId}"), Auth::Token, send_message)
///     .limit(LimitClass::Message)
///     .get(v3("/rooms/{roomId}/state/{eventType}/{stateKey?}"), Auth::Guest, get_state)
/// ```
pub struct Routes<A> {
    name: RouterName,
    endpoints: Vec<Endpoint<Unbound<A>>>,
}

/// What an endpoint says of itself.
#[derive(Clone, Debug)]
pub struct Declared {
    /// The group that it is in.
    pub router: RouterName,
    /// Where its work belongs.
    pub home: Home,
    /// Its paths, arguments in braces.
    pub patterns: Vec<String>,
}

impl<A: Send + Sync + 'static> Routes<A> {
    /// Starts a group.
    pub fn of(name: RouterName) -> Self {
        Self { name, endpoints: Vec::new() }
    }

    /// Declares an endpoint: `handler(app, request)` answers `method` on `paths`.
    #[must_use]
    pub fn route<H, F>(mut self, method: Method, paths: Paths, auth: Auth, handler: H) -> Self
    where
        H: Fn(Arc<A>, Request) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Reply>> + Send + 'static,
    {
        let meter = Meter::of(&method, paths.name());
        self.endpoints.push(Endpoint {
            meter,
            router: self.name,
            home: Home::Anywhere,
            method,
            paths,
            auth,
            limit: None,
            body_limit: None,
            is_once: false,
            handler: Box::new(move |app, request| Box::pin(handler(app, request))),
        });
        self
    }

    /// The endpoint declared last is rate-limited by user, or by address where there is none.
    #[must_use]
    pub fn limit(mut self, class: LimitClass) -> Self {
        if let Some(endpoint) = self.endpoints.last_mut() {
            endpoint.limit = Some(class);
        }
        self
    }

    /// The endpoint declared last does its work at `home`.
    #[must_use]
    pub fn home(mut self, home: Home) -> Self {
        if let Some(endpoint) = self.endpoints.last_mut() {
            endpoint.home = home;
        }
        self
    }

    /// A request to the endpoint declared last is carried once: if its answer is lost, a repeat
    /// would be told something else (that the name is taken, that the session is over).
    #[must_use]
    pub fn once(mut self) -> Self {
        if let Some(endpoint) = self.endpoints.last_mut() {
            endpoint.is_once = true;
        }
        self
    }

    /// The endpoint declared last takes bodies of up to `bytes`.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        if let Some(endpoint) = self.endpoints.last_mut() {
            endpoint.body_limit = Some(bytes);
        }
        self
    }

    /// What the endpoints say of themselves.
    pub fn declared(&self) -> impl Iterator<Item = Declared> {
        self.endpoints.iter().map(|endpoint| Declared {
            router: endpoint.router,
            home: endpoint.home,
            patterns: endpoint.paths.expanded(),
        })
    }

    /// The finished group: its handlers are given `app`.
    pub fn bind(self, app: &Arc<A>) -> Router {
        let endpoints = self.endpoints.into_iter().map(|one| Arc::new(one.bind(app))).collect();
        Router { name: self.name, endpoints }
    }
}

impl<A: Send + Sync + 'static> Endpoint<Unbound<A>> {
    fn bind(self, app: &Arc<A>) -> Endpoint {
        let Self { router, home, method, paths, auth, limit, body_limit, is_once, handler, meter } =
            self;
        let app = app.clone();
        let handler: Handler = Box::new(move |request| handler(app.clone(), request));
        Endpoint { router, home, method, paths, auth, limit, body_limit, is_once, handler, meter }
    }
}

macro_rules! methods {
    ($($name:ident $method:ident)*) => {
        impl<A: Send + Sync + 'static> Routes<A> {$(
            #[doc = concat!("[`Routes::route`] for ", stringify!($method), ".")]
            #[must_use]
            pub fn $name<H, F>(self, paths: Paths, auth: Auth, handler: H) -> Self
            where
                H: Fn(Arc<A>, Request) -> F + Send + Sync + 'static,
                F: Future<Output = Result<Reply>> + Send + 'static,
            {
                self.route(Method::$method, paths, auth, handler)
            }
        )*}
    };
}

methods! { get GET put PUT post POST delete DELETE }
