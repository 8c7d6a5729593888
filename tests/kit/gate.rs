//! The way to a server, which a test can shut.

use std::net::SocketAddr;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::ports::Port;

/// Passes connections on to a server while it is open; ends them all when it is shut.
#[derive(Debug)]
pub struct Gate {
    is_open: watch::Sender<bool>,
}

impl Gate {
    /// Listens on `outside`, passes on to `inside`, and is open.
    pub(crate) async fn between(outside: &Port, inside: &Port) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", outside.number())).await;
        let listener = listener.expect("a claimed port can be listened on");
        let is_open = watch::Sender::new(true);
        let (target, mut watched) = (inside.number(), is_open.subscribe());
        crate::spawn(async move {
            loop {
                tokio::select! {
                    // The gate itself is gone.
                    ended = watched.changed() => if ended.is_err() { return },
                    accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                        crate::spawn(pass(stream, target, watched.clone()));
                    }
                }
            }
        });
        Self { is_open }
    }

    /// Ends all connections, and every new one at once.
    pub fn shut(&self) {
        self.is_open.send_replace(false);
    }

    /// Lets connections through again.
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }
}

async fn pass(mut from: TcpStream, target: u16, mut is_open: watch::Receiver<bool>) {
    let through = async {
        let target = SocketAddr::from(([127, 0, 0, 1], target));
        if let Ok(mut to) = TcpStream::connect(target).await {
            // An end is an end, whoever makes it.
            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
        }
    };
    tokio::select! {
        _ = is_open.wait_for(|is_open| !is_open) => {}
        () = through => {}
    }
}
