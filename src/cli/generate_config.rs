//! `chatd generate-config`: a file for a new server, with secrets and a signing key.

use std::path::{Path, PathBuf};

use chatd_config::{NewConfig, SigningKeys};
use clap::Args;

use super::{Failure, Source, note, say};

/// Arguments of `generate-config`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The part after the colon of all user and room ids; it can never be changed
    #[arg(short = 'H', long, value_name = "NAME")]
    server_name: String,
    /// File to write, or `-` for standard output [default: homeserver.yaml in the data folder]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the file, and a signing key beside the data.
pub fn execute(source: &Source, arguments: Arguments) -> Result<(), Failure> {
    let Ok(server_name) = arguments.server_name.as_str().try_into() else {
        return Err(Failure::usage(format!(
            "{:?} is not a server name; write a host name such as example.org",
            arguments.server_name
        )));
    };
    let data_dir = std::path::absolute(source.data_dir())
        .map_err(|error| Failure::cannot_create(format!("the data folder: {error}")))?;
    let new = NewConfig { server_name, data_dir: data_dir.clone() };
    if arguments.output.as_deref() == Some(Path::new("-")) {
        say(new.to_yaml().trim_end());
        return Ok(());
    }
    let file = arguments.output.unwrap_or_else(|| data_dir.join("homeserver.yaml"));
    new.write(&file).map_err(|error| Failure::cannot_create(error.to_string()))?;
    let key = data_dir.join(format!("{}.signing.key", new.server_name));
    SigningKeys::read_or_create(&key)?;
    note(format_args!("wrote {} and {}", file.display(), key.display()));
    note(format_args!("start the server with: chatd run -c {}", file.display()));
    Ok(())
}
