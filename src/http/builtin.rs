//! The endpoints that the edge has by itself: health, metrics, and a page that says hello.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::{Listener, ResourceName, RouterName};

use crate::{Auth, HeaderValue, Metrics, Reply, Request, Router, Routes, header, raw};

/// Those that `listener` serves.
pub(crate) fn routers(listener: &Listener, page: &Metrics, detail: &Detail) -> Vec<Router> {
    let for_operators = listener.serves(ResourceName::Replication);
    let mut routers = vec![health(for_operators.then(|| detail.clone()))];
    if listener.serves(ResourceName::Metrics) {
        routers.push(metrics(page));
    }
    if listener.serves(ResourceName::Static) {
        routers.push(landing());
    }
    routers
}

/// How this instance is, as JSON.
pub type Detail = Arc<dyn Fn() -> Result<Reply> + Send + Sync>;

/// `/health`: 200 while this instance takes requests. On every listener. With `?detail` it tells
/// more, where that is for operators.
fn health(detail: Option<Detail>) -> Router {
    async fn ok(detail: Arc<Option<Detail>>, request: Request) -> Result<Reply> {
        match &*detail {
            Some(detail) if asks_for_detail(&request) => detail(),
            _ => Ok(Reply::text("OK")),
        }
    }
    Routes::of(RouterName::Health).get(raw("/health"), Auth::None, ok).bind(&Arc::new(detail))
}

fn asks_for_detail(request: &Request) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|part| part.split('=').next() == Some("detail"))
}

/// `/metrics`, and `/_synapse/metrics` as Synapse has it.
fn metrics(metrics: &Metrics) -> Router {
    async fn page(metrics: Arc<Metrics>, _: Request) -> Result<Reply> {
        let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        Ok(Reply::text(metrics.render()).with_header(header::CONTENT_TYPE, content_type))
    }
    Routes::of(RouterName::Metrics)
        .get(raw("/_synapse/metrics").or(raw("/metrics")), Auth::None, page)
        .bind(&Arc::new(metrics.clone()))
}

/// `/`: tells a person with a browser that the server is there.
fn landing() -> Router {
    async fn page(_: Arc<()>, _: Request) -> Result<Reply> {
        let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
        Ok(Reply::html(include_str!("landing.html"))
            .with_header(header::CONTENT_SECURITY_POLICY, policy))
    }
    Routes::of(RouterName::WellKnown).get(raw("/"), Auth::None, page).bind(&Arc::new(()))
}
