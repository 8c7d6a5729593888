//! A Matrix homeserver: arguments → configuration → assignment → run → exit code.

mod cli;
mod duties;
mod embedded;
mod homes;
mod logging;
mod status;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

/// Gives freed memory back to the system sooner than the system's own allocator does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
