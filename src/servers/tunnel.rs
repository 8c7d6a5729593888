//! Tunnels through a proxy (`CONNECT`, RFC 9110 section 9.3.6).

use std::{io, net::SocketAddr};

use chatd_config::ForwardProxy;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{connect::literal, dns::Place};

/// What a proxy may say before a tunnel is open (R8).
const MOST_HEAD_BYTES: usize = 16 << 10;

/// A way to another server.
pub(crate) trait Way: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Way for S {}

/// Has the proxy at `address` open a way to `place`, whose name it looks up. TLS with the other end
/// is the caller's business; `tls` is for the way to the proxy.
pub(crate) async fn open(
    proxy: &ForwardProxy,
    address: SocketAddr,
    tls: &TlsConnector,
    place: &Place,
) -> io::Result<Box<dyn Way>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut way: Box<dyn Way> = if proxy.is_tls {
        let name = ServerName::try_from(proxy.host.clone()).map_err(io::Error::other)?;
        Box::new(tls.connect(name, stream).await?)
    } else {
        Box::new(stream)
    };
    way.write_all(request(proxy, place).as_bytes()).await?;
    way.flush().await?;
    let head = head(&mut way).await?;
    let status = status(&head).ok_or_else(|| io::Error::other("the proxy does not speak HTTP"))?;
    if (200..300).contains(&status) {
        Ok(way)
    } else {
        Err(io::Error::other(format!("the proxy answers {status}")))
    }
}

fn request(proxy: &ForwardProxy, place: &Place) -> String {
    let port = place.port;
    let target = match literal(&place.host) {
        Some(address) => SocketAddr::new(address, port).to_string(),
        None => format!("{}:{port}", place.host),
    };
    let authorization = proxy.authorization.as_ref().map(|secret| secret.expose());
    let authorization = authorization.map(|told| format!("Proxy-Authorization: {told}\r\n"));
    let authorization = authorization.unwrap_or_default();
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n")
}

/// All that the proxy says before the tunnel. The other end of a tunnel says nothing before it is
/// spoken to, so nothing of it is read here.
async fn head(way: &mut Box<dyn Way>) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(1 << 10);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MOST_HEAD_BYTES {
            return Err(io::Error::other("the proxy does not come to an end"));
        }
        let room = MOST_HEAD_BYTES - head.len();
        if (&mut *way).take(room as u64).read_buf(&mut head).await? == 0 {
            return Err(io::Error::other("the proxy has hung up"));
        }
    }
    Ok(head)
}

/// The status in the first line of an answer.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}
