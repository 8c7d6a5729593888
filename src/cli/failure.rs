//! Exit codes, and how a failure is told to a person. docs/operations.md lists the codes.

use std::{error::Error, process::ExitCode};

use chatd_config::ConfigError;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// 1: anything without a code of its own.
    pub fn other(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// 2: the arguments make no sense together (clap's own code too).
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// 69: another server or service cannot be reached.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 69, message: message.into() }
    }

    /// 73: a file cannot be made.
    pub fn cannot_create(message: impl Into<String>) -> Self {
        Self { code: 73, message: message.into() }
    }

    /// 77: the server refused.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { code: 77, message: message.into() }
    }

    /// 78: the configuration is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self { code: 78, message: message.into() }
    }

    /// Says what went wrong on standard error, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        super::note(format_args!("chatd: {}", self.message));
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::config(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    /// A configuration error keeps its code, however deep it lies.
    fn from(error: anyhow::Error) -> Self {
        let chain = || error.chain();
        let causes: Vec<String> = chain().map(ToString::to_string).collect();
        let config = chain().any(|cause: &(dyn Error + 'static)| cause.is::<ConfigError>());
        let message = causes.join(": ");
        if config { Self::config(message) } else { Self::other(message) }
    }
}
