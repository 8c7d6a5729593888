//! HTTP over pooled connections: one request, one answer, whose body comes in bounded pieces.

use std::{error::Error as _, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::{
    client::legacy::{Client as Pool, Error as PoolError},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    Failure,
    connect::{Connector, NoConnection},
};

/// How long an idle connection is kept.
const KEEP_IDLE: Duration = Duration::from_secs(20);
const MOST_IDLE_PER_HOST: usize = 4;
/// What a connection may hold of an answer that nobody reads yet (R8).
const WINDOW: u32 = 1 << 20;
const MOST_HEADER_BYTES: u32 = 64 << 10;

/// Sends requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Transport {
    pool: Pool<Connector, Full<Bytes>>,
}

/// The head of an answer, and its body as it comes.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Transport {
    pub(crate) fn new(connector: Connector) -> Self {
        let pool = Pool::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(MOST_IDLE_PER_HOST)
            .http1_max_buf_size(512 << 10)
            .http2_initial_stream_window_size(WINDOW)
            .http2_initial_connection_window_size(2 * WINDOW)
            .http2_max_header_list_size(MOST_HEADER_BYTES)
            .set_host(false)
            .build(connector);
        Self { pool }
    }

    /// Makes a request. The head of the answer is here until `head_by`, the last piece of its body
    /// until `all_by`; the body has at most `most_bytes`.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        head_by: Instant,
        all_by: Instant,
        most_bytes: usize,
    ) -> Result<Answer, Failure> {
        let answer = timeout_at(head_by, self.pool.request(request))
            .await
            .map_err(|_| Failure::Away("it does not answer in time".to_owned()))?
            .map_err(|error| failure(&error))?;
        let (head, incoming) = answer.into_parts();
        let body = Body { source: Source::Coming(incoming), left: most_bytes, all_by };
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}

fn failure(error: &PoolError) -> Failure {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(one) = cause {
        match one.downcast_ref() {
            Some(NoConnection::Barred(why)) => return Failure::Forbidden(why.clone()),
            Some(NoConnection::Away(why)) => return Failure::Away(why.clone()),
            None => {}
        }
        text = format!("{text}: {one}");
        cause = one.source();
    }
    Failure::Away(text)
}

/// The body of an answer, in pieces as they come.
#[derive(Debug)]
pub struct Body {
    source: Source,
    left: usize,
    all_by: Instant,
}

#[derive(Debug)]
enum Source {
    Coming(Incoming),
    Here(Bytes),
}

impl From<Bytes> for Body {
    fn from(all: Bytes) -> Self {
        Self { left: all.len(), source: Source::Here(all), all_by: Instant::now() }
    }
}

impl Body {
    /// The next piece; `None` after the last one. Fails when the body is larger, or takes longer,
    /// than was agreed to.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let too_large = || Failure::Odd("the answer is too large".to_owned());
        let incoming = match &mut self.source {
            Source::Coming(incoming) => incoming,
            Source::Here(all) => {
                let all = std::mem::take(all);
                return Ok((!all.is_empty()).then_some(all));
            }
        };
        if incoming.size_hint().lower() > self.left as u64 {
            return Err(too_large());
        }
        loop {
            let frame = timeout_at(self.all_by, incoming.frame())
                .await
                .map_err(|_| Failure::Away("the answer does not end in time".to_owned()))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| Failure::Away(format!("broken off: {error}")))?;
            // Trailers say nothing here.
            let Ok(data) = frame.into_data() else { continue };
            self.left = self.left.checked_sub(data.len()).ok_or_else(too_large)?;
            return Ok(Some(data));
        }
    }

    /// The same with another bound.
    pub(crate) fn at_most(mut self, bytes: usize) -> Self {
        self.left = bytes;
        self
    }

    /// All of it.
    pub async fn all(mut self) -> Result<Bytes, Failure> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        let Some(second) = self.next().await? else { return Ok(first) };
        // One buffer: pieces may be of a byte each, and each would cost much more than that.
        let mut all = BytesMut::from(first);
        all.extend_from_slice(&second);
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}
