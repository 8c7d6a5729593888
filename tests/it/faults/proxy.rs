//! A way to PostgreSQL that can be cut at an exact point of a conversation.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use chatd_kit::{Started, spawn};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream, unix},
};

/// The file of PostgreSQL's socket.
const NAME: &str = ".s.PGSQL.5432";
/// `COMMIT` as a statement, and as the confirmation of one.
const COMMIT: &[u8] = b"COMMIT\0";
/// What is in front of it in the message: a letter and the length.
const HEAD: usize = 5;

/// Where the connection breaks that commits next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    Nowhere,
    /// PostgreSQL does not hear of the commit.
    BeforeCommit,
    /// PostgreSQL has committed, and its confirmation is lost.
    AfterCommit,
}

/// Passes everything on in both directions until it is told to cut.
pub struct Proxy {
    folder: PathBuf,
    cut: Arc<AtomicU8>,
    _serving: Started<()>,
}

impl Proxy {
    /// Listens in `folder` and passes on to the server in `target`.
    pub fn start(folder: &Path, target: &Path) -> Self {
        let listener = UnixListener::bind(folder.join(NAME)).unwrap();
        let (cut, target) = (Arc::new(AtomicU8::new(Cut::Nowhere as u8)), target.join(NAME));
        let theirs = cut.clone();
        let serving = spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = UnixStream::connect(&target).await {
                    spawn(pass(client, server, theirs.clone()));
                }
            }
        });
        Self { folder: folder.to_owned(), cut, _serving: serving }
    }

    /// `database`, reached by this way.
    pub fn config(&self, mut database: Value) -> Value {
        database["args"]["host"] = self.folder.to_str().unwrap().into();
        database
    }

    /// Breaks the next connection that commits, once.
    pub fn cut(&self, point: Cut) {
        self.cut.store(point as u8, Ordering::SeqCst);
    }

    /// Whether it has happened.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst) == Cut::Nowhere as u8
    }
}

async fn pass(mut client: UnixStream, mut server: UnixStream, cut: Arc<AtomicU8>) {
    let (from_client, mut to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let (mut requests, mut answers) = (Reader::new(from_client), Reader::new(from_server));
    let mut is_committing = false;
    loop {
        let ended = tokio::select! {
            request = requests.next() => {
                let Some(bytes) = request else { return };
                let at = find(bytes);
                let before = at.is_some() && take(&cut, Cut::BeforeCommit);
                is_committing |= at.is_some() && take(&cut, Cut::AfterCommit);
                let end = at.filter(|_| before).map_or(bytes.len(), |at| at - HEAD);
                to_server.write_all(&bytes[..end]).await.is_err() || before
            }
            answer = answers.next() => {
                let Some(bytes) = answer else { return };
                let confirmed = is_committing && find(bytes).is_some();
                confirmed || to_client.write_all(bytes).await.is_err()
            }
        };
        if ended {
            return;
        }
    }
}

fn take(cut: &AtomicU8, point: Cut) -> bool {
    let (point, nowhere) = (point as u8, Cut::Nowhere as u8);
    cut.compare_exchange(point, nowhere, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(COMMIT.len()).position(|window| window == COMMIT)
}

struct Reader<'a> {
    socket: unix::ReadHalf<'a>,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(socket: unix::ReadHalf<'a>) -> Self {
        Self { socket, buffer: vec![0; 1 << 20] }
    }

    async fn next(&mut self) -> Option<&[u8]> {
        let length = self.socket.read(&mut self.buffer).await.ok()?;
        (length > 0).then(|| &self.buffer[..length])
    }
}
