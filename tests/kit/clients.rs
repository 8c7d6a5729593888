//! Real Matrix clients as child processes: one device each, told what to do by JSON lines. The
//! scripts and what they need are in `tests/clients`.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Which client library runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// matrix-nio, in Python, with its encryption.
    Nio,
    /// matrix-js-sdk, under Node.js, with its Rust crypto.
    Js,
}

/// A running client; killed when dropped.
#[derive(Debug)]
pub struct Device {
    library: Library,
    name: String,
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    number: u64,
}

impl Device {
    /// Starts a client; panics if it is not installed. What it logs goes to `logs/<name>.log`.
    pub fn launch(library: Library, name: &str, logs: &Path) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients");
        let (program, script) = match library {
            Library::Nio => (".venv/bin/python", "nio_client.py"),
            Library::Js => ("node_modules/node/bin/node", "js_client.mjs"),
        };
        let program: PathBuf = folder.join(program);
        assert!(
            program.exists(),
            "{library:?} is not installed: run tests/clients/install.sh (`make test` does)"
        );
        let log = std::fs::File::create(logs.join(format!("{name}.log"))).expect("a log file");
        let mut child = Command::new(program)
            .arg(script)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{library:?} does not start: {error}"));
        let input = child.stdin.take().expect("stdin is a pipe");
        let output = child.stdout.take().expect("stdout is a pipe");
        let output = BufReader::new(output).lines();
        Self { library, name: name.to_owned(), _child: child, input, output, number: 0 }
    }

    /// Carries out one command; panics with the client's words if it fails.
    pub async fn run(&mut self, command: &str, arguments: Value) -> Value {
        self.number += 1;
        let mut request = json!({"id": self.number, "do": command});
        if let (Value::Object(request), Value::Object(arguments)) = (&mut request, arguments) {
            request.extend(arguments);
        }
        let who = format!("{:?} ({}) {command}", self.library, self.name);
        let line = format!("{request}\n");
        self.input.write_all(line.as_bytes()).await.unwrap_or_else(|e| panic!("{who}: {e}"));
        let line = self.output.next_line().await.unwrap_or_else(|e| panic!("{who}: {e}"));
        let line = line.unwrap_or_else(|| panic!("{who}: the client has ended"));
        let mut answer: Value = serde_json::from_str(&line).expect("an answer is JSON");
        assert_eq!(answer["id"], self.number, "{who}: an answer to something else: {answer}");
        assert!(answer["error"].is_null(), "{who}: {}", answer["error"]);
        answer["ok"].take()
    }

    /// Logs `user` in and starts to sync; returns the user id.
    pub async fn log_in(&mut self, homeserver: &str, user: &str, password: &str) -> String {
        let arguments = json!({
            "homeserver": homeserver,
            "user": user,
            "password": password,
            "device_name": self.name,
        });
        let answer = self.run("start", arguments).await;
        answer["user_id"].as_str().expect("a user id").to_owned()
    }
}
