//! A program at a terminal: what it shows there, echo included, and what a person types.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    process::{Child, Command},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Longest time that a program may take to show what is waited for.
const LIMIT: Duration = Duration::from_secs(30);

/// A program and the terminal that it controls.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<String>,
    shown: String,
}

impl Terminal {
    /// Starts `command`, which has to take its terminal as the controlling one.
    pub(crate) fn start(command: impl FnOnce() -> Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("a terminal can be unlocked");
        let name = ptsname(&ours, Vec::new()).expect("a terminal has a name");
        let name = std::ffi::OsStr::from_bytes(name.to_bytes()).to_owned();
        let no_control = i32::try_from(OpenptFlags::NOCTTY.bits()).expect("a small flag");
        let theirs = OpenOptions::new().read(true).write(true).custom_flags(no_control).open(name);
        let theirs = theirs.expect("the other end of the terminal");
        let end = || theirs.try_clone().expect("a second handle");
        let child = command()
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("the program can be called");
        let keyboard = File::from(ours);
        let screen = watch(keyboard.try_clone().expect("a second handle"));
        Self { child, keyboard, screen, shown: String::new() }
    }

    /// Waits until `text` is shown; returns all that has been shown up to it since the last time.
    #[track_caller]
    pub fn shows(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(place) = self.shown.find(text) {
                return self.shown.drain(..place + text.len()).collect();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(more) => self.shown.push_str(&more),
                Err(error) => panic!("{text:?} was not shown ({error}): {:?}", self.shown),
            }
        }
    }

    /// Types a line.
    pub fn types(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\n").as_bytes()).expect("the terminal is open");
    }

    /// Waits for the end; returns the exit code and what was shown since the last [`Self::shows`].
    pub fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("the program ends").code();
        while let Ok(more) = self.screen.recv_timeout(Duration::from_millis(100)) {
            self.shown.push_str(&more);
        }
        (code, std::mem::take(&mut self.shown))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads what is shown until the other end is closed.
fn watch(mut screen: File) -> Receiver<String> {
    let (shown, receiver) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            if shown.send(String::from_utf8_lossy(&bytes[..count]).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}
