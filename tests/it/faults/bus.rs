//! A way to Redis on which published messages get lost, change places, come twice or come late.

use std::{path::PathBuf, sync::Arc, time::Duration};

use chatd_kit::{Fleet, Settings};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// The place of a listening proxy; it and the proxy end with the test.
pub struct BadBus {
    folder: TempDir,
    serving: Option<chatd_kit::Started<()>>,
}

impl BadBus {
    /// A place where nobody listens yet.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("chatd-bus-").tempdir().unwrap();
        Self { folder, serving: None }
    }

    /// The settings of a fleet whose instances take this for their Redis.
    pub fn settings(&self) -> Settings {
        let redis = json!({"enabled": true, "path": self.socket()});
        Settings::new().with("redis", redis)
    }

    /// Listens, and passes on to the Redis of `fleet`, as badly as the seed `random` decides.
    pub fn start(&mut self, fleet: &mut Fleet, random: u64) {
        let redis: PathBuf = fleet.redis().socket();
        let listener = UnixListener::bind(self.socket()).expect("the proxy's socket");
        let random = Arc::new(Mutex::new(StdRng::seed_from_u64(random)));
        self.serving = Some(chatd_kit::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&redis).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                chatd_kit::spawn(copy(from_client, to_server));
                chatd_kit::spawn(spoil(from_server, to_client, random.clone()));
            }
        }));
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("bad.sock")
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    // Whichever side has gone, the connection is over.
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// Passes answers on as they are, and published messages badly.
async fn spoil(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, random: Arc<Mutex<StdRng>>) {
    let mut buffer = Vec::new();
    let mut held = None::<Vec<u8>>;
    loop {
        while let Some(length) = value_length(&buffer) {
            let value: Vec<u8> = buffer.drain(..length).collect();
            let fate = if is_message(&value) { random.lock().random_range(0..10) } else { 9 };
            let out = match fate {
                // Lost.
                0 | 1 => Vec::new(),
                // Behind the next one.
                2 if held.is_none() => {
                    held = Some(value);
                    continue;
                }
                // Twice.
                3 => [value.clone(), value].concat(),
                // Late, and everything behind it.
                4 => {
                    let late = Duration::from_millis(random.lock().random_range(1..40));
                    tokio::time::sleep(late).await;
                    value
                }
                _ => value,
            };
            let behind = held.take().unwrap_or_default();
            if to.write_all(&[out, behind].concat()).await.is_err() {
                return;
            }
        }
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn is_message(value: &[u8]) -> bool {
    [b"*3\r\n$7\r\nmessage\r\n", b">3\r\n$7\r\nmessage\r\n"]
        .iter()
        .any(|start| value.starts_with(*start))
}

/// The length of the first value in `bytes`, if all of it is there (RESP2 and RESP3).
fn value_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let number = || std::str::from_utf8(&bytes[1..line]).ok()?.parse::<i64>().ok();
    let mut length = line + 2;
    match bytes[0] {
        b'$' | b'=' | b'!' => {
            if let Ok(size) = usize::try_from(number()?) {
                length += size + 2;
            }
        }
        kind @ (b'*' | b'>' | b'~' | b'%') => {
            let count = usize::try_from(number()?).unwrap_or(0);
            for _ in 0..if kind == b'%' { 2 * count } else { count } {
                length += value_length(bytes.get(length..)?)?;
            }
        }
        _ => {}
    }
    (length <= bytes.len()).then_some(length)
}

#[test]
fn values_are_cut_out_whole() {
    let message = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\n\r\n\r\n";
    for (bytes, length) in [
        (&b"+OK\r\n+OK"[..], Some(5)),
        (b"$3\r\nabc\r\nrest", Some(9)),
        (b"$3\r\nab", None),
        (b"$-1\r\n", Some(5)),
        (b"%1\r\n+a\r\n:1\r\n", Some(12)),
        (&message[..], Some(message.len())),
        (&message[..20], None),
    ] {
        assert_eq!(value_length(bytes), length, "{}", String::from_utf8_lossy(bytes));
    }
    assert!(is_message(message));
}
