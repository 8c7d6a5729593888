//! What a handler answers.

use std::pin::Pin;

use bytes::Bytes;
use chatd_base::{Error, Result};
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

pub(crate) type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// An answer: status, headers, and a body that is either whole or comes in chunks.
pub struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

pub(crate) enum Body {
    Whole(Bytes),
    Stream(Chunks),
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Reply {
    fn new(content_type: HeaderValue, body: Body) -> Self {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, content_type);
        Self { status: StatusCode::OK, headers, body }
    }

    /// 200 with `value` as JSON.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<Self> {
        let bytes = serde_json::to_vec(value).map_err(Error::internal)?;
        Ok(Self::raw_json(bytes))
    }

    /// 200 with bytes that are JSON already.
    pub fn raw_json(bytes: impl Into<Bytes>) -> Self {
        Self::new(JSON, Body::Whole(bytes.into()))
    }

    /// 200 with `{}`.
    pub fn empty() -> Self {
        Self::raw_json(Bytes::from_static(b"{}"))
    }

    /// 200 with JSON that is produced while it is sent. An error in the middle breaks the
    /// connection off, since the status has gone out already; so fail early where possible.
    pub fn json_stream(chunks: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Self {
        Self::new(JSON, Body::Stream(chunks.boxed()))
    }

    /// 200 with a page.
    pub fn html(page: impl Into<Bytes>) -> Self {
        let content_type = HeaderValue::from_static("text/html; charset=utf-8");
        Self::new(content_type, Body::Whole(page.into()))
    }

    /// 200 with plain text.
    pub fn text(text: impl Into<Bytes>) -> Self {
        let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
        Self::new(content_type, Body::Whole(text.into()))
    }

    /// 302 to `location`; internal error if that cannot be a header.
    pub fn redirect(location: &str) -> Result<Self> {
        let location = HeaderValue::from_str(location).map_err(Error::internal)?;
        Ok(Self::text(Bytes::new())
            .with_status(StatusCode::FOUND)
            .with_header(header::LOCATION, location))
    }

    /// The same answer with another status.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).finish_non_exhaustive()
    }
}
