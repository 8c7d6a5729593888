//! What another server may answer, good and bad.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Response, body::Frame, header::CONTENT_TYPE};
use serde_json::{Value, json};

/// A body as it goes out.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    content: Content,
    delay: Duration,
}

#[derive(Clone, Debug)]
enum Content {
    Whole(Bytes),
    /// These bytes, then those over and over, without an end.
    Endless(Bytes, Bytes),
    /// These bytes, and then nothing more, without an end.
    Stuck(Bytes),
}

impl Reply {
    /// 200 with JSON.
    pub fn json(body: &Value) -> Self {
        Self::status(200, body)
    }

    /// Any status with JSON.
    pub fn status(status: u16, body: &Value) -> Self {
        Self::bytes(body.to_string()).with_status(status)
    }

    /// 200 with any bytes, said to be JSON.
    pub fn bytes(body: impl Into<Bytes>) -> Self {
        Self::of(Content::Whole(body.into()))
    }

    /// A refusal.
    pub fn refused(status: u16, errcode: &str) -> Self {
        Self::status(status, &json!({"errcode": errcode, "error": "the other server refuses"}))
    }

    /// A redirection.
    pub fn redirect(to: &str) -> Self {
        Self::bytes("").with_status(302).header("location", to)
    }

    /// Begins with `start`, and goes on with `more` for as long as somebody reads.
    pub fn endless(start: impl Into<Bytes>, more: impl Into<Bytes>) -> Self {
        Self::of(Content::Endless(start.into(), more.into()))
    }

    /// Begins with `start`, and never comes to an end.
    pub fn stuck(start: impl Into<Bytes>) -> Self {
        Self::of(Content::Stuck(start.into()))
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with another status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same, given after this time.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn of(content: Content) -> Self {
        Self { status: 200, headers: Vec::new(), content, delay: Duration::ZERO }
    }

    pub(crate) async fn into_response(self) -> Response<Body> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let mut response = Response::builder().status(self.status);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            response = response.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        let body = match self.content {
            Content::Whole(bytes) => http_body_util::Full::new(bytes).boxed_unsync(),
            Content::Endless(start, more) => {
                frames(stream::once(async { start }).chain(stream::repeat(more)))
            }
            Content::Stuck(start) => frames(stream::once(async { start }).chain(stream::pending())),
        };
        response.body(body).expect("a test gives valid headers")
    }
}

fn frames(bytes: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(bytes.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync()
}
