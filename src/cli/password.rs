//! Where a password comes from: an argument, a file, or a person at a terminal.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::{Failure, note};

/// The password of the argument, of the file's first line, or asked for twice.
pub fn get(argument: Option<String>, file: Option<&Path>) -> Result<String, Failure> {
    let password = match (argument, file) {
        (Some(password), _) => password,
        (None, Some(file)) => from_file(file)?,
        (None, None) if io::stdin().is_terminal() => return ask(),
        (None, None) => first_line(io::stdin().lock())?,
    };
    if password.is_empty() { Err(Failure::usage("the password is empty")) } else { Ok(password) }
}

/// Asks twice on the terminal, without echo, until both answers agree.
fn ask() -> Result<String, Failure> {
    let prompt = |text: &str| {
        ask_hidden(text)
            .map_err(|error| Failure::other(format!("the terminal cannot be read: {error}")))
    };
    loop {
        let password = prompt("Password: ")?;
        if password.is_empty() {
            note("the password must not be empty");
        } else if password == prompt("Confirm password: ")? {
            return Ok(password);
        } else {
            note("the two passwords differ; try again");
        }
    }
}

/// Asks once. What is typed is hidden from before the question is shown.
fn ask_hidden(question: &str) -> io::Result<String> {
    let stdin = io::stdin();
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    hidden.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let answer = ask_line(question);
    tcsetattr(&stdin, OptionalActions::Now, &shown)?;
    answer
}

/// Shows `question` on standard error, and reads a line.
pub fn ask_line(question: &str) -> io::Result<String> {
    io::stderr().write_all(question.as_bytes())?;
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn from_file(file: &Path) -> Result<String, Failure> {
    if file == Path::new("-") {
        return first_line(io::stdin().lock());
    }
    let reader = std::fs::File::open(file)
        .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
    first_line(io::BufReader::new(reader))
}

fn first_line(mut reader: impl BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .map_err(|error| Failure::usage(format!("the password cannot be read: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
