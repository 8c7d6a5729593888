//! One call of a program, as a person makes it in a shell, and what came of it.

use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
    process::{self, Stdio},
};

use crate::terminal::Terminal;

/// A call to be made in a folder, without the caller's `CHATD_` variables.
#[derive(Debug)]
#[must_use = "nothing is called before `end`, `on_terminal` or `start`"]
pub struct Command {
    program: PathBuf,
    folder: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    input: String,
}

impl Command {
    /// A call of `program` in `folder`; its arguments are divided by blanks.
    pub fn new(program: impl AsRef<Path>, folder: &Path, line: &str) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            folder: folder.to_owned(),
            arguments: line.split_whitespace().map(str::to_owned).collect(),
            environment: Vec::new(),
            input: String::new(),
        }
    }

    /// With one more argument, which may have blanks in it.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// With a variable of the environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this on its standard input, which is empty otherwise.
    pub fn input(mut self, text: &str) -> Self {
        text.clone_into(&mut self.input);
        self
    }

    /// Calls it, and waits for its end.
    #[track_caller]
    pub fn end(self) -> Ended {
        let mut command = self.prepare(&self.program, &[] as &[&str]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be called");
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        // A program that reads nothing may have ended by now.
        let _ = stdin.write_all(self.input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("the program ends");
        Ended {
            line: format!("{self:?}"),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Calls it at a terminal of its own.
    pub fn on_terminal(self) -> Terminal {
        Terminal::start(|| self.prepare("setsid", &["--ctty", "--wait", &self.program()]))
    }

    /// Starts it and leaves it running; what it says goes to the file `log` of its folder.
    /// Killed when the value is dropped.
    pub fn start(self, log: &str) -> Running {
        let log = self.folder.join(log);
        let file = std::fs::File::options().create(true).append(true).open(&log);
        let file = file.expect("the log can be written");
        // `setpriv` becomes the program; the kernel kills it when the test's thread ends.
        let child = self
            .prepare("setpriv", &["--pdeathsig", "KILL", "--", &self.program()])
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the program can be called");
        Running { child, log }
    }

    fn program(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }

    fn prepare(&self, program: impl AsRef<OsStr>, first: &[&str]) -> process::Command {
        let mut command = process::Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CHATD_") {
                command.env_remove(name);
            }
        }
        command.args(first).args(&self.arguments).current_dir(&self.folder);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// What a call came to.
#[derive(Debug)]
pub struct Ended {
    line: String,
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// Standard output of a success.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self}");
        &self.out
    }

    /// Asserts that it failed with `code`, and said every one of `words` on standard error.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {self}");
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ended with {:?}\n{}\n{}", self.line, self.code, self.out, self.err)
    }
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    child: process::Child,
    log: PathBuf,
}

impl Running {
    /// What it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has said `text`; panics if it ends before.
    pub async fn until_it_says(&mut self, text: &str) {
        let said = async {
            while !self.log().contains(text) {
                let ended = self.child.try_wait().expect("a child can be asked");
                assert!(ended.is_none(), "it ended before {text:?}: {}", self.log());
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let patience = std::time::Duration::from_secs(60);
        if tokio::time::timeout(patience, said).await.is_err() {
            panic!("it did not say {text:?} within {patience:?}: {}", self.log());
        }
    }

    /// Asks it to end, and returns its exit code; `None` after a signal.
    pub async fn sigterm(mut self) -> Option<i32> {
        crate::process::signal(self.child.id(), "TERM").expect("it runs");
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                return status.code();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
