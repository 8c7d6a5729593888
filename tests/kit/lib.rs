//! What the tests and benches are made of: PostgreSQL clusters and databases, the real binary,
//! users that talk to it over HTTP, the check of answers against the specification, and real
//! Matrix clients as child processes. Nothing here knows the server's code.

pub mod clients;
pub mod cluster;
pub mod command;
pub mod database;
pub mod example;
pub mod fleet;
pub mod forward_proxy;
pub mod gate;
pub mod guide;
pub mod http;
pub mod nginx;
pub mod other;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod redis;
pub mod room;
pub mod scenario;
pub mod server;
pub mod settings;
pub mod spec;
pub mod synapse;
pub mod sync;
pub mod terminal;
pub mod tls;
pub mod user;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

pub use command::{Command, Ended};
pub use database::Database;
pub use fleet::{Fleet, Spread};
pub use forward_proxy::ForwardProxy;
pub use gate::Gate;
pub use http::{Answer, Cost, Request, path};
pub use other::{Other, Peer};
pub use process::Process;
pub use server::Server;
pub use settings::{SERVER_NAME, SHARED_SECRET, Settings};
pub use synapse::Synapse;
pub use sync::{Feed, Synced};
pub use terminal::Terminal;
pub use user::User;

/// Work that goes on in the background; await it for its result. A panic in it is a panic here.
#[derive(Debug)]
pub struct Started<T>(tokio::task::JoinHandle<T>);

impl<T> Started<T> {
    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Future for Started<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(context).map(|ended| match ended {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        })
    }
}

/// Starts background work of a test.
#[expect(clippy::disallowed_methods, reason = "tests are not part of the server's accounting")]
pub fn spawn<F>(work: F) -> Started<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Started(tokio::spawn(work))
}

/// Asks over and over until there is an answer; panics when that takes too long. For what comes
/// from another server and cannot be waited for otherwise.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let patience = Duration::from_secs(60);
    let deadline = Instant::now() + patience;
    loop {
        match ask().await {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < deadline, "{what}: not in {patience:?}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Tells whoever runs the tests something; shown with the test's other output.
#[expect(clippy::print_stderr, reason = "a test has nowhere else to say it")]
pub fn say(text: impl std::fmt::Display) {
    eprintln!("{text}");
}
