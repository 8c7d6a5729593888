//! Connections whose other end takes nothing of what is written to it. An answer that is streamed, and
//! whoever produces it, would wait for such a client for ever.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// A stream on which a write fails when for some time none of it was taken. However slow: whoever
/// takes a little is waited for.
pub(crate) struct Impatient<S> {
    stream: S,
    limit: Duration,
    /// Goes off when something has waited to be written for too long.
    given_up: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, given_up: None }
    }

    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.given_up = None;
            return written;
        }
        let limit = self.limit;
        let given_up = self.given_up.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(given_up.as_mut().poll(cx));
        let message = format!("nothing was taken for {} s", limit.as_secs_f32());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // A socket has nothing to flush, and to shut it down does not wait for the other end.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    /// What one attempt to write comes to.
    async fn attempt(near: &mut Impatient<DuplexStream>) -> Poll<io::Result<usize>> {
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *near).poll_write(cx, &[0; 10]))).await
    }

    #[tokio::test]
    async fn who_takes_a_little_is_waited_for_anew() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = Impatient::new(near, Duration::from_secs(3600));
        assert!(matches!(attempt(&mut near).await, Poll::Ready(Ok(10))));
        for _ in 0..3 {
            assert!(near.given_up.is_none());
            assert!(attempt(&mut near).await.is_pending());
            assert!(near.given_up.is_some());
            far.read_u8().await.expect("it is there");
            assert!(matches!(attempt(&mut near).await, Poll::Ready(Ok(1))));
        }
    }

    #[tokio::test]
    async fn who_takes_nothing_is_not_waited_for() {
        let (near, _far) = tokio::io::duplex(10);
        let mut near = Impatient::new(near, Duration::from_millis(1));
        let refused = near.write_all(&[0; 30]).await.expect_err("nobody takes it");
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    }
}
