//! Bodies: requests are read within bounds of size and time, answers may be compressed.

use std::{pin::Pin, time::Duration};

use async_compression::{Level, tokio::bufread::GzipEncoder};
use bytes::Bytes;
use chatd_base::{Error, Refusal, Result, tasks};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Version, header};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use tokio_util::io::{ReaderStream, StreamReader};

use crate::reply::{Body, Reply};

type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>>> + Send>>;

/// The body of an answer, as hyper wants it.
pub(crate) type Outgoing = Either<Full<Bytes>, StreamBody<Frames>>;

/// Most that is taken in of a body that was refused: more than uploads have by default.
const MOST_DISCARDED: usize = 128 << 20;
/// Answers shorter than this are not worth compressing.
const MIN_COMPRESSED: usize = 1024;

/// Reads a request's body. Refuses what is larger than `limit` or takes longer than `patience`.
pub(crate) async fn read(body: &mut Incoming, limit: usize, patience: Duration) -> Result<Bytes> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if usize::try_from(body.size_hint().lower()).map_or(true, |length| length > limit) {
        return Err(too_large(limit));
    }
    match tokio::time::timeout(patience, Limited::new(body, limit).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Ok(Err(error)) => {
            Err(Refusal::unknown(format!("the request body could not be read: {error}")).into())
        }
        Err(_) => {
            Err(Refusal::new(408, "M_UNKNOWN", "the request body took too long to arrive").into())
        }
    }
}

/// What becomes of the rest of a body that was refused. A connection that is closed while the client
/// still sends loses the answer, and a proxy takes that for a failure of this server, so that it turns
/// away from it.
pub(crate) struct Unread {
    /// Whether the client sends it before it has seen the answer, on a connection of its own.
    is_sent: bool,
}

impl Unread {
    pub fn of(request: &Request<Incoming>) -> Self {
        let waits = request.headers().contains_key(header::EXPECT);
        Self { is_sent: request.version() < Version::HTTP_2 && !waits }
    }

    /// Takes in what is left of the body while the answer goes out, within bounds.
    pub fn discard(&self, body: Incoming, patience: Duration) {
        if !self.is_sent || body.is_end_stream() {
            return;
        }
        let mut rest = Limited::new(body, MOST_DISCARDED);
        let discarded = async move { while let Some(Ok(_)) = rest.frame().await {} };
        tasks::spawn("discarded_body", async move {
            // Whoever sends more, or takes longer, is cut off.
            let _ = tokio::time::timeout(patience, discarded).await;
        });
    }
}

fn too_large(limit: usize) -> Error {
    Refusal::too_large(format!("the request body is larger than {limit} bytes")).into()
}

/// Whether the client wants gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter();
    accepted.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',')).any(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let gzip = matches!(parts.next(), Some("gzip" | "*"));
        let refused = parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
        gzip && !refused
    })
}

/// Turns the answer's body into gzip, unless it is too short to gain from it.
pub(crate) fn compress(reply: &mut Reply) {
    let chunks = match std::mem::replace(&mut reply.body, Body::Whole(Bytes::new())) {
        Body::Whole(bytes) if bytes.len() < MIN_COMPRESSED => {
            reply.body = Body::Whole(bytes);
            return;
        }
        Body::Whole(bytes) => stream::once(async move { Ok(bytes) }).boxed(),
        Body::Stream(chunks) => chunks,
    };
    let reader = StreamReader::new(chunks.map_err(std::io::Error::other));
    let gzip = ReaderStream::new(GzipEncoder::with_quality(reader, Level::Fastest));
    reply.body = Body::Stream(gzip.map_err(Error::internal).boxed());
    reply.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    reply.headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// The body for hyper. A stream that fails is logged here, since its status is already sent.
pub(crate) fn outgoing(body: Body) -> Outgoing {
    match body {
        Body::Whole(bytes) => Either::Left(Full::new(bytes)),
        Body::Stream(chunks) => {
            let frames = chunks.map_ok(Frame::data).inspect_err(|error| {
                tracing::error!(%error, "an answer broke off while it was sent");
            });
            Either::Right(StreamBody::new(frames.boxed()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_where_it_is_accepted() {
        let table = [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("br", false),
        ];
        for (header, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(header));
            assert_eq!(accepts_gzip(&headers), expected, "{header}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn short_answers_stay_as_they_are() {
        let mut short = Reply::raw_json("{}");
        compress(&mut short);
        assert!(matches!(short.body, Body::Whole(_)));
        let mut long = Reply::raw_json(vec![b' '; MIN_COMPRESSED]);
        compress(&mut long);
        assert!(matches!(long.body, Body::Stream(_)));
        assert_eq!(long.headers[header::CONTENT_ENCODING], "gzip");
    }
}
