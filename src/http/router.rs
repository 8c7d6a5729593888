//! Endpoints: declared once, with their paths, who may call them, and what answers.

use std::{future::Future, pin::Pin, sync::Arc};

use chatd_base::Result;
use chatd_config::RouterName;
use http::Method;

use crate::{Home, LimitClass, Paths, Reply, Request};

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
}

type Answer = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;
pub(crate) type Handler = Box<dyn Fn(Request) -> Answer + Send + Sync>;

/// One endpoint under all its paths.
pub(crate) struct Endpoint {
    pub(crate) router: RouterName,
    pub(crate) home: Home,
    pub(crate) method: Method,
    pub(crate) paths: Paths,
    pub(crate) auth: Auth,
    pub(crate) limit: Option<LimitClass>,
    /// Largest body, where it is not the configured one.
    pub(crate) body_limit: Option<usize>,
    pub(crate) handler: Handler,
}

impl Endpoint {
    /// Whether every instance answers it itself.
    pub(crate) fn is_builtin(&self) -> bool {
        matches!(self.router, RouterName::Health | RouterName::Metrics)
    }
}

/// A named group of endpoints, ready to be mounted on listeners.
pub struct Router {
    pub(crate) name: RouterName,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
}

impl Router {
    /// Starts a group whose handlers are given `app`.
    ///
    /// ```ignore
    /// Router::of(RouterName::ClientRooms, app)
    ///     .put(v3("/rooms/{roomId}/send/{eventType}/{txnId}"), Auth::Token, send_message)
    ///     .limit(LimitClass::Message)
    ///     .get(v3("/rooms/{roomId}/state/{eventType}/{stateKey?}"), Auth::Guest, get_state)
    ///     .done()
    /// ```
    pub fn of<A>(name: RouterName, app: &Arc<A>) -> Routes<A> {
        Routes { app: app.clone(), name, endpoints: Vec::new() }
    }

    /// The group's name in roles and in `chatd explain`.
    pub fn name(&self) -> RouterName {
        self.name
    }
}

/// A group of endpoints while it is being declared.
pub struct Routes<A> {
    app: Arc<A>,
    name: RouterName,
    endpoints: Vec<Endpoint>,
}

impl<A: Send + Sync + 'static> Routes<A> {
    /// Declares an endpoint: `handler(app, request)` answers `method` on `paths`.
    #[must_use]
    pub fn route<H, F>(mut self, method: Method, paths: Paths, auth: Auth, handler: H) -> Self
    where
        H: Fn(Arc<A>, Request) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Reply>> + Send + 'static,
    {
        let app = self.app.clone();
        self.endpoints.push(Endpoint {
            router: self.name,
            home: Home::Anywhere,
            method,
            paths,
            auth,
            limit: None,
            body_limit: None,
            handler: Box::new(move |request| Box::pin(handler(app.clone(), request))),
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

    /// The endpoint declared last takes bodies of up to `bytes`.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        if let Some(endpoint) = self.endpoints.last_mut() {
            endpoint.body_limit = Some(bytes);
        }
        self
    }

    /// The finished group.
    pub fn done(self) -> Router {
        Router { name: self.name, endpoints: self.endpoints.into_iter().map(Arc::new).collect() }
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
