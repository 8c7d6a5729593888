//! A proxy through which servers ask others: it opens tunnels for whoever knows its password, and
//! remembers where to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::ports::Port;

const CREDENTIALS: &str = "chatd:a secret: with@signs";

/// A proxy that knows `CONNECT`; it ends with the test's runtime.
#[derive(Debug)]
pub struct ForwardProxy {
    port: Port,
    is_tls: bool,
    is_open: watch::Sender<bool>,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Where some places are; others are where they say.
    names: HashMap<String, u16>,
    asked: Vec<String>,
    strangers: usize,
}

impl ForwardProxy {
    /// One that is spoken to over TLS if it has got a certificate for the loopback address.
    pub async fn start(certificate: Option<TlsAcceptor>) -> Self {
        let port = Port::claim().expect("a port for a proxy");
        let listener = TcpListener::bind(("127.0.0.1", port.number())).await;
        let listener = listener.expect("a claimed port can be listened on");
        let is_open = watch::Sender::new(true);
        let (known, mut watched) = (Arc::<Mutex<Known>>::default(), is_open.subscribe());
        let is_tls = certificate.is_some();
        let knowing = known.clone();
        crate::spawn(async move {
            loop {
                tokio::select! {
                    // The proxy itself is gone.
                    ended = watched.changed() => if ended.is_err() { return },
                    accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                        let (known, certificate) = (knowing.clone(), certificate.clone());
                        let mut is_open = watched.clone();
                        crate::spawn(async move {
                            tokio::select! {
                                _ = is_open.wait_for(|is_open| !is_open) => {}
                                () = take(stream, certificate, &known) => {}
                            }
                        });
                    }
                }
            }
        });
        Self { port, is_tls, is_open, known }
    }

    /// For `https_proxy`, with the password.
    pub fn url(&self) -> String {
        format!("{}://{CREDENTIALS}@{}", if self.is_tls { "https" } else { "http" }, self.place())
    }

    /// The same for whoever does not know the password.
    pub fn place(&self) -> String {
        self.port.server_name()
    }

    /// From now on it knows that `place`, a host with a port, is at a port of this machine.
    pub fn leads(&self, place: &str, port: u16) {
        self.known().names.insert(place.to_owned(), port);
    }

    /// Where it was asked to lead to, each time, by those who knew the password.
    pub fn asked(&self) -> Vec<String> {
        self.known().asked.clone()
    }

    /// How often it was asked by others.
    pub fn strangers(&self) -> usize {
        self.known().strangers
    }

    /// Ends all tunnels, and makes none.
    pub fn shut(&self) {
        self.is_open.send_replace(false);
    }

    /// Makes tunnels again.
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("nobody panics while it is held")
    }
}

async fn take(stream: TcpStream, certificate: Option<TlsAcceptor>, known: &Mutex<Known>) {
    match certificate {
        None => tunnel(stream, known).await,
        Some(certificate) => {
            if let Ok(stream) = certificate.accept(stream).await {
                tunnel(stream, known).await;
            }
        }
    }
}

async fn tunnel(stream: impl AsyncRead + AsyncWrite + Unpin, known: &Mutex<Known>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if !matches!(stream.read_line(&mut head).await, Ok(1..)) {
            return;
        }
    }
    let (status, to) = decide(&head, &mut known.lock().expect("nobody panics while it is held"));
    let target = match to {
        Some(to) => TcpStream::connect(to).await.map_err(|_| "502 Bad Gateway"),
        None => Err(status),
    };
    let status = target.as_ref().err().copied().unwrap_or(status);
    let said = stream.write_all(format!("HTTP/1.1 {status}\r\nVia: kit\r\n\r\n").as_bytes()).await;
    if let (Ok(mut target), Ok(())) = (target, said) {
        // An end is an end, whoever makes it.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut target).await;
    }
}

/// What is answered to a request, and where the tunnel leads.
fn decide(head: &str, known: &mut Known) -> (&'static str, Option<String>) {
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split_once(" HTTP/1.1\r\n"));
    let Some((target, headers)) = target else { return ("405 Method Not Allowed", None) };
    let password = format!("Proxy-Authorization: Basic {}", STANDARD.encode(CREDENTIALS));
    if !headers.lines().any(|line| line == password) {
        known.strangers += 1;
        return ("407 Proxy Authentication Required", None);
    }
    known.asked.push(target.to_owned());
    let port = known.names.get(target);
    let to = port.map_or_else(|| target.to_owned(), |port| format!("127.0.0.1:{port}"));
    ("200 Connection established", Some(to))
}
