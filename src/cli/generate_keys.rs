//! `chatd generate-keys`: a new signing key, in the form of Synapse's key files.

use std::path::{Path, PathBuf};

use chatd_base::Clock;
use chatd_config::{SigningKey, SigningKeys};
use chatd_servers::public_key;
use clap::Args;

use super::{Failure, Source, note, say};

/// Arguments of `generate-keys`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// File to write, which must not be there yet, or `-` for standard output [default: -]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the key. With a configuration, tells what to do with the one that signs until now.
pub fn execute(source: &Source, arguments: &Arguments) -> Result<(), Failure> {
    let in_use = match source.config.is_empty() {
        true => None,
        false => Some(source.load()?.signing_key_path).filter(|path| path.exists()),
    };
    let in_use = in_use.map(|path| SigningKeys::read(&path)).transpose()?;
    let key = SigningKey::generate();
    match arguments.output.as_deref().filter(|path| *path != Path::new("-")) {
        None => say(key.to_line().trim_end()),
        Some(path) => {
            key.write(path).map_err(|error| {
                Failure::cannot_create(format!("{}: cannot be written: {error}", path.display()))
            })?;
            note(format_args!("wrote {} with the key {}", path.display(), key.key_id()));
        }
    }
    if let Some(in_use) = in_use {
        note(format_args!("{}", retirement(&in_use, Clock::system().now_ms())));
    }
    Ok(())
}

/// What belongs into the configuration when the keys in use give way to a new one.
fn retirement(keys: &SigningKeys, now_ms: u64) -> String {
    let entries: String = std::iter::once(keys.current())
        .chain(keys.others())
        .map(|key| {
            let (id, public) = (key.key_id(), public_key(key).to_base64());
            format!("\n  \"{id}\": {{ key: \"{public}\", expired_ts: {now_ms} }}")
        })
        .collect();
    format!(
        "to use it: put it in place of the file at signing_key_path, add this to the \
         configuration of every instance, and restart them\nold_signing_keys:{entries}"
    )
}
