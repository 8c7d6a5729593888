//! Takes the requests of other servers, and checks who has signed them.

use std::{convert::Infallible, sync::Arc};

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use ruma_signatures::PublicKeyMap;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{Other, Reply, Seen, key::keys_of, lock, reply::Body, seen::XMatrix};
use crate::tls::Authority;

/// The first byte of a connection with TLS.
const TLS_HANDSHAKE: u8 = 0x16;

impl Other {
    /// Ends all connections, and takes no more.
    pub fn go_away(&self) {
        self.inner.is_up.send_replace(false);
    }

    /// Is there again after [`Other::go_away`].
    pub async fn come_back(&self) {
        self.inner.is_up.send_replace(true);
        let acceptor = Authority::shared().and_then(|authority| authority.loopback().acceptor());
        let acceptor = acceptor.expect("a certificate of the test kit");
        let listener = loop {
            // The earlier one closes as soon as its task hears of it.
            match TcpListener::bind(("127.0.0.1", self.inner.port.number())).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        crate::spawn(self.clone().accept(listener, acceptor));
    }

    async fn accept(self, listener: TcpListener, acceptor: TlsAcceptor) {
        let mut is_up = self.inner.is_up.subscribe();
        loop {
            tokio::select! {
                _ = is_up.wait_for(|is_up| !is_up) => return,
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    crate::spawn(self.clone().connection(stream, acceptor.clone()));
                }
            }
        }
    }

    async fn connection(self, stream: TcpStream, acceptor: TlsAcceptor) {
        let mut is_up = self.inner.is_up.subscribe();
        let serve = async {
            // Tests themselves may ask without TLS, on the same port.
            let mut first = [0];
            let is_tls = stream.peek(&mut first).await.is_ok() && first == [TLS_HANDSHAKE];
            if !is_tls {
                return self.clone().serve(stream).await;
            }
            // Whoever does not trust the certificate is not of interest here.
            if let Ok(stream) = acceptor.accept(stream).await {
                self.clone().serve(stream).await;
            }
        };
        tokio::select! {
            () = serve => {}
            _ = is_up.wait_for(|is_up| !is_up) => {}
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| self.clone().respond(request));
        // Nor is whoever hangs up.
        let server = auto::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn respond(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let reply = match self.read(request).await {
            Ok((seen, signed)) => {
                self.note_seen(seen.clone());
                self.reply(&seen, signed).await
            }
            Err(error) => {
                self.note_problem(format!("a request that cannot be read: {error:#}"));
                Reply::refused(400, "M_NOT_JSON")
            }
        };
        Ok(reply.into_response().await)
    }

    async fn read(&self, request: Request<Incoming>) -> Result<(Seen, Option<XMatrix>)> {
        let (head, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let body = match &*bytes {
            [] => Value::Null,
            bytes => serde_json::from_slice(bytes).context("the body is JSON")?,
        };
        let headers = head.headers.iter().filter_map(|(name, value)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        });
        let signed = head.headers.get("authorization").and_then(|value| value.to_str().ok());
        let signed = signed.and_then(XMatrix::parse);
        let uri = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let seen = Seen {
            method: head.method.to_string(),
            uri,
            body,
            headers: headers.collect(),
            origin: signed.as_ref().map(|signed| signed.origin().to_owned()),
        };
        Ok((seen, signed))
    }

    async fn reply(&self, seen: &Seen, signed: Option<XMatrix>) -> Reply {
        let open = [
            "/_matrix/key/",
            "/_matrix/identity/",
            "/.well-known/",
            "/_matrix/federation/v1/version",
        ];
        let is_open = open.iter().any(|prefix| seen.path().starts_with(prefix));
        if !is_open && let Err(problem) = self.check(seen, signed).await {
            self.note_problem(format!("{} {}: {problem}", seen.method, seen.uri));
            return Reply::refused(401, "M_UNAUTHORIZED");
        }
        match self.scripted(seen) {
            Some(reply) => reply,
            None => self.answer(seen).await,
        }
    }

    async fn check(&self, seen: &Seen, signed: Option<XMatrix>) -> Result<(), String> {
        let signed = signed.ok_or("it is not signed")?;
        let keys = self.keys_of(signed.origin()).await.map_err(|error| format!("{error:#}"))?;
        if keys.get(signed.origin()).is_some_and(|keys| !keys.contains_key(signed.key_id())) {
            // It may have changed it.
            lock(&self.inner.keys).remove(signed.origin());
        }
        let keys = self.keys_of(signed.origin()).await.map_err(|error| format!("{error:#}"))?;
        signed.check(seen, &self.name(), &keys)
    }

    /// The keys of another server, asked for once unless it signs with others.
    pub(super) async fn keys_of(&self, server: &str) -> Result<Arc<PublicKeyMap>> {
        if let Some(keys) = lock(&self.inner.keys).get(server) {
            return Ok(keys.clone());
        }
        let keys = if server == self.name() {
            keys_of(&lock(&self.inner.published).document(server))
        } else {
            let document = Authority::shared()?.get(server, "/_matrix/key/v2/server").await;
            keys_of(&document.with_context(|| format!("the keys of {server}"))?)
        };
        let keys = Arc::new(keys);
        lock(&self.inner.keys).insert(server.to_owned(), keys.clone());
        Ok(keys)
    }

    /// Forgets the keys of other servers, to ask for them again.
    pub fn forget_keys(&self) {
        lock(&self.inner.keys).clear();
    }
}
