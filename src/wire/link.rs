//! A stream in the form in which hyper's client takes it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// An open connection, and what is to be kept for as long as it is open.
#[derive(Debug)]
pub struct Link<S, K = ()> {
    stream: S,
    is_http2: bool,
    _kept: K,
}

impl<S, K> Link<S, K> {
    /// `is_http2`: the other end has chosen HTTP/2.
    pub fn new(stream: S, is_http2: bool, kept: K) -> Self {
        Self { stream, is_http2, _kept: kept }
    }
}

impl<S, K> Connection for Link<S, K> {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.is_http2 { connected.negotiated_h2() } else { connected }
    }
}

impl<S: AsyncRead + Unpin, K: Unpin> AsyncRead for Link<S, K> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin, K: Unpin> AsyncWrite for Link<S, K> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
